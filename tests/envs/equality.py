"""Equality of whatever vector environments return: nested infos and states, bit for bit, with their types."""

from typing import Any

import numpy as np


def assert_equal(left: Any, right: Any) -> None:
    """Fails where two nests of dicts, lists, tuples, arrays and plain values differ in type, form or value."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_equal(one, other)
    elif isinstance(left, np.ndarray) and left.dtype == object:
        assert_equal(left.tolist(), right.tolist())
    elif isinstance(left, np.ndarray):
        np.testing.assert_array_equal(left, right, strict=True)
    else:
        assert left == right
