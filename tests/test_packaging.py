"""What an installation offers, and what importing it costs."""

import subprocess
import sys

import pytest

import xcfast

HEAVY = ["torch", "numba", "gymnasium", "mujoco", "tensorboard", "yaml"]


@pytest.mark.parametrize(
    "statement",
    [
        "import xcfast",
        "from xcfast import compute_gae, compute_returns",
        "from xcfast import RunningMeanStd, ObservationNormalizer, RewardNormalizer",
        "from xcfast import Rollout",
        "import numpy as np, xcfast; x = np.zeros((2, 1)); xcfast.compute_gae(x, x, x > 0, last_values=x[0])",
    ],
)
def test_fast_utilities_load_nothing_heavy(statement: str) -> None:
    script = f"import sys; {statement}; print(*[name for name in {HEAVY} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


@pytest.mark.parametrize("name", xcfast.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(xcfast, name) is not None
    assert name in dir(xcfast)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'compute_gea'"):
        _ = xcfast.compute_gea
