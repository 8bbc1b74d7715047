import warnings

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from xcfast.errors import EnvError
from xcfast.policy import ActionMap


def box(low, high):
    return Box(np.float32(low), np.float32(high))


def test_action_map_maps_the_tanh_range_to_the_bounds_and_clips():
    space = Box(np.array([-0.4, 1.0], np.float32), np.array([0.4, 5.0], np.float32))
    action_map = ActionMap(space, "tanh")
    raw = np.array([[-1, -1], [0, 0], [1, 1], [2, -2], [0.5, 0.5]], np.float32)
    expected = [[-0.4, 1], [0, 3], [0.4, 5], [0.4, 1], [0.2, 4]]
    np.testing.assert_allclose(action_map(raw), np.array(expected, np.float32), rtol=3e-7)
    assert action_map(raw).dtype == np.float32
    assert (action_map(raw) >= space.low).all() and (action_map(raw) <= space.high).all()


@pytest.mark.parametrize(
    ("space", "activation"),
    [
        (Box(-2.0, 2.0, (1,)), None),
        (Box(np.float32([-2.0]), np.float32([np.inf])), None),
        (Box(-1.0, 1.0, (1,)), "tanh"),
    ],
)
def test_action_map_only_clips_otherwise(space, activation):
    raw = np.array([[-3.0], [0.7], [3.0]], np.float32)
    np.testing.assert_array_equal(ActionMap(space, activation)(raw), np.clip(raw, space.low, space.high))


def test_action_map_discrete_and_shapes():
    np.testing.assert_array_equal(ActionMap(Discrete(3, start=4), None)(np.array([0, 2])), [4, 6])
    shaped = ActionMap(Box(-1.0, 1.0, (2, 2)), "tanh")(np.zeros((5, 4), np.float32))
    assert shaped.shape == (5, 2, 2)


@pytest.mark.parametrize(
    ("low", "high", "activation"),
    [
        ([-np.inf], [np.inf], "tanh"),
        ([-1.0, -np.inf], [1.0, 2.0], "tanh"),
        ([0.0], [np.inf], "sigmoid"),
        ([-np.inf], [np.inf], "relu"),
    ],
)
def test_a_bounded_mean_of_unbounded_actions_is_warned_of(low, high, activation):
    with pytest.warns(UserWarning, match=f"activation_action: {activation} keeps.*activation_action: null"):
        action_map = ActionMap(box(low, high), activation)
    raw = np.full((1, len(low)), 1e3, np.float32)
    np.testing.assert_array_equal(action_map(raw), np.clip(raw, low, high))


@pytest.mark.parametrize(
    ("low", "high", "activation", "identity"),
    [
        ([-np.inf], [np.inf], None, False),
        ([-np.inf], [np.inf], "leaky_relu", False),
        ([0.0], [np.inf], "relu", False),
        ([-5.0], [5.0], "tanh", False),
        ([-np.inf], [np.inf], "tanh", True),
    ],
)
def test_no_warning_where_the_mean_reaches_the_bounds(low, high, activation, identity):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ActionMap(box(low, high), activation, identity)


def test_the_warning_is_shown_once():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(3):
            ActionMap(box([-np.inf], [np.inf]), "tanh")
    assert len(shown) == 1


@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("activation", ["tanh", None])
def test_a_dimension_without_a_choice_is_an_error(activation, identity):
    space = box([[-1.0, 0.5], [-2.0, -2.0]], [[1.0, 0.5], [2.0, 2.0]])
    with pytest.raises(EnvError, match=r"low 0\.5 and high 0\.5 in dimension 0, 1; low must be below high"):
        ActionMap(space, activation, identity)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        ([-1.0], [1.0], "clipped to the bounds"),
        ([-2.0], [1.0], "tanh range mapped to the bounds, then clipped"),
        ([-np.inf], [np.inf], "unbounded, not clipped"),
        ([-1.0, -1.0], [1.0, np.inf], "clipped to the finite bounds"),
    ],
)
@pytest.mark.filterwarnings("ignore:activation_action")
def test_the_description_is_what_happens(low, high, words):
    assert ActionMap(box(low, high), "tanh").describe() == words


def test_the_description_of_identity_and_discrete_actions():
    identity = ActionMap(box([-1.0], [1.0]), "tanh", identity=True)
    assert identity.describe() == "the policy's samples, neither mapped nor clipped"
    assert ActionMap(Discrete(2), None).describe() == "discrete"
