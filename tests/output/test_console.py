"""Numbers as a run prints them."""

import pytest

from xcfast.output.console import score_text


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (0.0, "0.00"),
        (-12.346, "-12.35"),
        (999999999999.0, "999999999999.00"),
        (2e301, "2e+301"),
        (-1.23456789e15, "-1.23457e+15"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (None, "none"),
    ],
)
def test_a_score_is_short(score, text):
    assert score_text(score) == text
