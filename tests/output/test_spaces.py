"""Spaces as plain data: what comes back, and what is refused."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xcfast.output.checkpoint import read_torch_file, save_checkpoint
from xcfast.output.spaces import space_from_data, space_to_data

BOX_DTYPES = [np.dtype(name) for name in "f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8".split()]


def assert_same_space(one, other):
    assert one == other and type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape
    if isinstance(one, Box):
        np.testing.assert_array_equal(one.low, other.low)
        np.testing.assert_array_equal(one.high, other.high)
        assert one.low.dtype == other.low.dtype


@st.composite
def boxes(draw):
    dtype = draw(st.sampled_from(BOX_DTYPES))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    elements = hnp.from_dtype(dtype, allow_nan=False)
    low, high = (draw(hnp.arrays(dtype, shape, elements=elements)) for _ in range(2))
    return Box(np.minimum(low, high), np.maximum(low, high), shape, dtype.type)


@st.composite
def discretes(draw):
    dtype = draw(st.sampled_from([np.dtype(name) for name in "i1 i2 i4 i8 u1 u2 u4 u8".split()]))
    limits = np.iinfo(dtype)
    start = draw(st.integers(int(limits.min), int(limits.max)))
    n = draw(st.integers(1, min(int(limits.max), int(limits.max) - start + 1)))
    return Discrete(n, start=start, dtype=dtype.type)


@pytest.mark.filterwarnings("ignore:.*Box:UserWarning")
@given(st.one_of(boxes(), discretes()))
def test_a_space_comes_back_as_it_was(space):
    assert_same_space(space_from_data(space_to_data(space)), space)


@pytest.mark.parametrize(
    "space",
    [
        Box(-np.inf, np.inf, (3,), np.float64),
        Box(np.array([-1.0, -np.inf], np.float32), np.array([np.inf, 2.0], np.float32)),
        Box(0, 255, (2, 2), np.uint8),
        Box(0, 2**64 - 1, (2,), np.uint64),
        Box(-1.0, 1.0, (), np.float32),
        Discrete(5, start=-3),
        Discrete(4),
    ],
)
def test_a_space_comes_back_from_a_file(tmp_path, space):
    save_checkpoint(tmp_path / "c.pth", {"space": space_to_data(space)})
    assert_same_space(space_from_data(read_torch_file(tmp_path / "c.pth")["space"]), space)


def test_other_spaces_are_refused():
    with pytest.raises(TypeError, match="space must be a Box or a Discrete space; got Dict"):
        space_to_data(Dict({"a": Discrete(2)}))


BOX = space_to_data(Box(-1.0, 1.0, (2,), np.float32))
DISCRETE = space_to_data(Discrete(3, start=1))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "type is Box or Discrete"),
        ({}, "type is Box or Discrete"),
        ({"type": "Dict"}, "type is Box or Discrete"),
        ({"type": []}, "type is Box or Discrete"),
        ({**BOX, "dtype": "object"}, "dtype is one of"),
        ({**BOX, "dtype": []}, "dtype is one of"),
        ({**BOX, "shape": [3]}, r"low and high are float32 \[3\]"),
        ({**BOX, "shape": [10**9]}, "at most"),
        ({**BOX, "shape": [-2]}, "integers >= 0"),
        ({**BOX, "low": torch.ones(2), "high": torch.zeros(2)}, "low is at most its high"),
        ({**BOX, "low": torch.full((2,), np.nan)}, "low is at most its high"),
        ({**BOX, "low": torch.zeros(2, dtype=torch.float64)}, "low and high are float32"),
        ({**BOX, "low": torch.zeros(2, dtype=torch.bfloat16)}, "low and high are float32"),
        ({**DISCRETE, "n": 0}, "n is an integer >= 1"),
        ({**DISCRETE, "n": True}, "n is an integer >= 1"),
        ({**DISCRETE, "n": 2**70}, "within int64"),
        ({**DISCRETE, "start": 2**63 - 1}, "within int64"),
        ({**DISCRETE, "dtype": "float32"}, "dtype is one of"),
    ],
)
def test_wrong_data_is_refused(data, words):
    with pytest.raises(ValueError, match=words):
        space_from_data(data)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(torch.zeros(2)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.filterwarnings("ignore:.*Box:UserWarning")
@given(st.sampled_from([BOX, DISCRETE]), st.data())
def test_any_wrong_entry_is_a_space_or_a_value_error(data, drawn):
    key = drawn.draw(st.sampled_from(sorted(data)))
    try:
        space_from_data({**data, key: drawn.draw(PLAIN)})
    except ValueError as error:
        assert "\n" not in str(error)
