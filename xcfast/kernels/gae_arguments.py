"""Checks of the arguments of advantage estimation, for arrays and tensors alike."""

from typing import Any

import numpy as np


def check_cuts(any_cut: bool) -> None:
    """Raises for a truncated step without a value to bootstrap from."""
    if any_cut:
        raise ValueError("truncated steps need final_values or next_values to bootstrap from; got neither")


def check_shapes(
    inputs: dict[str, Any], flags: dict[str, Any], ends: dict[str, Any], time_major: bool
) -> tuple[int, ...]:
    """Returns the shape of `rewards`; raises where another one does not fit it."""
    shape = tuple(inputs["rewards"].shape)
    if len(shape) not in (1, 2) or shape[0 if time_major or len(shape) == 1 else 1] < 1:
        layout = "[T, N]" if time_major else "[N, T]"
        raise ValueError(f"rewards must be float {layout} or [T] with T >= 1; got {describe(inputs['rewards'])}")
    for name, x in {**inputs, **flags}.items():
        if x is not None and tuple(np.shape(x)) != shape:
            raise ValueError(f"{name} must be {list(shape)} as rewards is; got {describe(x)}")
    ends_shape = () if len(shape) == 1 else (shape[1] if time_major else shape[0],)
    for name, x in ends.items():
        if x is not None and tuple(np.shape(x)) != ends_shape and not (len(shape) == 1 and tuple(np.shape(x)) == (1,)):
            raise ValueError(f"{name} must be {list(ends_shape)}, one for each env; got {describe(x)}")
    return shape


def describe(x: Any) -> str:
    """Dtype and shape of an array or a tensor, for error messages."""
    return f"{getattr(x, 'dtype', type(x).__name__)} {list(np.shape(x))}".removeprefix("torch.")
