"""Checks what an environment's `reset` and `step` return.

The values are copied into arrays afterwards, which would silently cast and broadcast whatever they get.
"""

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from xcfast.errors import EnvError

# Types that numpy stores without a change. Integers are not among those for rewards, since Python's may be too large.
REWARD_TYPES = frozenset({float, np.float64, np.float32})
FLAG_TYPES = frozenset({bool, np.bool_})

_RESET_FORM = "(observation, info)"
_STEP_FORM = "(observation, reward, terminated, truncated, info)"

Step = tuple[Any, Any, Any, Any, dict[str, Any]]


def observation_and_info(returned: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Any, dict[str, Any]]:
    """Checks what `reset` returned.

    Args:
        returned: The value that `reset` returned.
        shape: The shape of the observation space.
        dtype: The type of the observation space.

    Returns:
        The observation, of that shape and type, and the info.

    Raises:
        EnvError: The value is not such a pair.
    """
    if not isinstance(returned, tuple | list) or len(returned) != 2 or not isinstance(returned[1], dict):
        raise EnvError(f"reset must return {_RESET_FORM} with a dict as info; got {_described(returned)}")
    return observation(returned[0], shape, dtype, "reset"), returned[1]


def whole_step(returned: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Step:
    """Checks what `step` returned, and converts types if no value changes.

    Args:
        returned: The value that `step` returned.
        shape: The shape of the observation space.
        dtype: The type of the observation space.

    Returns:
        The observation, of that shape and type, the reward as a float, both flags as truth values, and the info.

    Raises:
        EnvError: One of them is missing or of another kind.
    """
    if not isinstance(returned, tuple | list) or len(returned) != 5:
        raise EnvError(f"step must return {_STEP_FORM}; got {_described(returned)}")
    ob, reward, terminated, truncated, info = returned
    if not isinstance(info, dict):
        raise EnvError(f"step must return {_STEP_FORM} with a dict as info; its info is {_described(info)}")
    return (
        observation(ob, shape, dtype, "step"),
        reward if type(reward) in REWARD_TYPES else _reward(reward),
        terminated if type(terminated) in FLAG_TYPES else _flag("terminated", terminated),
        truncated if type(truncated) in FLAG_TYPES else _flag("truncated", truncated),
        info,
    )


def observation(value: Any, shape: tuple[int, ...], dtype: np.dtype[Any], method: str) -> NDArray[Any]:
    """Converts an observation to the type of its space, if no number changes by more than rounding.

    Args:
        value: The observation as the environment gave it.
        shape: The shape of the observation space.
        dtype: The type of the observation space.
        method: The method that returned it, for the error.

    Returns:
        The observation as an array of that shape and type.

    Raises:
        EnvError: Its shape or the kind of its numbers differs, or a number does not fit the type.
    """

    def refuse() -> NoReturn:
        raise EnvError(
            f"{method} returned an observation that does not fit the observation space: "
            f"wanted {dtype} {list(shape)}; got {_described(value)}"
        ) from None

    if isinstance(value, np.ma.MaskedArray):
        refuse()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError):  # a ragged list, say
        refuse()
    if array.shape != shape:
        refuse()
    if array.dtype == dtype:
        return array
    if array.dtype.kind in "biu" and dtype.kind in "biu":
        converted = array.astype(dtype)
        if not np.array_equal(converted, array):
            refuse()
        return converted
    if array.dtype.kind not in "biuf" or dtype.kind != "f":
        refuse()
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype)
    except FloatingPointError:  # a number that the type holds only as infinity
        refuse()


def _reward(value: Any) -> float:
    try:
        if type(value) is int:
            return float(value)
        array = _single(value)
        if array is None or array.dtype.kind not in "biuf":
            raise EnvError(f"step must return one real number as reward; got {_described(value)}")
        with np.errstate(over="raise"):
            return float(array.astype(np.float64).item())
    except (OverflowError, FloatingPointError):
        raise EnvError("step returned a reward that is too large for a float64") from None


def _flag(name: str, value: Any) -> bool:
    array = _single(value)
    if array is None or array.dtype.kind not in "biuf" or array.item() not in (0, 1):
        raise EnvError(f"step must return True or False as {name}; got {_described(value)}")
    return bool(array.item())


def _single(value: Any) -> NDArray[Any] | None:
    """Returns the value as an array of one element, or None if it is not a single one."""
    if isinstance(value, np.ma.MaskedArray):
        return None
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return array if array.size == 1 else None


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        numbers = f" with {_short(value.tolist())}" if value.size <= 8 else ""
        return f"{type(value).__name__} {value.dtype} {list(value.shape)}{numbers}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}: {_short(value)}"
    return f"{type(value).__name__} {_short(value)}"


def _short(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception:  # integers of thousands of digits, and whatever a class does in its own __repr__
        return "(which cannot be printed)"
    return text if len(text) <= 80 else f"{text[:77]}..."
