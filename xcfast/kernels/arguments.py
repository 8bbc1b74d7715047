"""Checks of the arguments that the public wrappers of the kernels share."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import byte_bounds


def describe(x: Any) -> str:
    """Returns dtype and shape of an array or a tensor, for error messages."""
    return f"{getattr(x, 'dtype', type(x).__name__)} {list(np.shape(x))}".removeprefix("torch.")


def check_unmasked(arguments: Mapping[str, Any]) -> None:
    """Raises a TypeError for a masked array: the kernels would read what its mask hides."""
    for name, x in arguments.items():
        if isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{name} must not be a masked array, since its mask would be lost; give {name}.filled(...)")


def check_memory(outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Raises a ValueError if the memory of an output overlaps that of another output, of an input, or itself.

    Args:
        outputs: Arrays and tensors that are written, by name. Other objects are ignored, since they share no memory.
        inputs: Arrays and tensors that are only read, by name.
    """
    if not outputs:
        return
    everything = {**inputs, **outputs}
    for name, out in outputs.items():
        if _overlaps_itself(out):
            raise ValueError(f"{name} must have memory of its own for each element; several elements share theirs")
        for other_name, other in everything.items():
            if other_name != name and _overlap(out, other):
                raise ValueError(f"{name} must not share memory with {other_name}; give separate arrays")


def _overlaps_itself(x: Any) -> bool:
    """Returns whether elements may share memory, as those of a broadcast array do."""
    if isinstance(x, np.ndarray):
        strides, itemsize = x.strides, x.itemsize
    elif hasattr(x, "data_ptr"):  # a tensor; torch is not imported for it
        itemsize = x.element_size()
        strides = tuple(stride * itemsize for stride in x.stride())
    else:
        return False
    reach = itemsize  # bytes that the axes of smaller strides take
    for stride, length in sorted((abs(stride), length) for stride, length in zip(strides, x.shape, strict=True)):
        if length == 0:
            return False
        if length > 1 and stride < reach:
            return True
        reach += stride * (length - 1)
    return False


def _overlap(x: Any, y: Any) -> bool:
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        return np.may_share_memory(x, y)
    (x_first, x_end), (y_first, y_end) = _memory_range(x), _memory_range(y)
    return x_first < y_end and y_first < x_end


def _memory_range(x: Any) -> tuple[int, int]:
    """Returns the addresses of the first byte and of the one after the last; they are equal if there is no memory."""
    if isinstance(x, np.ndarray) and x.size:
        return byte_bounds(x)
    if hasattr(x, "data_ptr") and x.device.type != "meta" and x.numel():  # a tensor; torch is not imported for it
        reach = sum((length - 1) * stride for length, stride in zip(x.shape, x.stride(), strict=True))
        return x.data_ptr(), x.data_ptr() + (reach + 1) * x.element_size()
    return 0, 0


def check_output(name: str, out: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    """Raises a ValueError if `out` is not a writable numpy array of this dtype and shape."""
    if not isinstance(out, np.ndarray) or out.dtype != dtype or out.shape != shape:
        raise ValueError(f"{name} must be {np.dtype(dtype)} {list(shape)}; got {describe(out)}")
    check_unmasked({name: out})
    if not out.flags.writeable:
        raise ValueError(f"{name} must be writable; got a read-only array")


def float_array(name: str, x: Any) -> npt.NDArray[Any]:
    """Returns `x` C-contiguous, aligned and float32 or float64; other real dtypes become float64."""
    check_unmasked({name: x})
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be real numbers; got {describe(array)}")
    dtype = np.float32 if array.dtype.newbyteorder("=") == np.float32 else np.float64
    return np.require(array, dtype, ["C", "A", "E"])


def flag_array(name: str, x: Any) -> npt.NDArray[np.bool_]:
    """Returns `x` as bool, C-contiguous; numbers must be 0 or 1."""
    check_unmasked({name: x})
    array = np.asarray(x)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be bool; got {describe(array)}")
    if array.dtype.kind != "b":
        wrong = (array != 0) & (array != 1)
        if wrong.any():
            raise ValueError(f"{name} must be bool, or numbers that are 0 or 1; got {array[wrong].flat[0]}")
    return np.require(array.astype(bool, copy=False), None, ["C", "E"])


def check_cuts(any_cut: bool) -> None:
    """Raises a ValueError if a step is truncated and there is no value to bootstrap from."""
    if any_cut:
        raise ValueError("truncated steps need final_values or next_values to bootstrap from; got neither")


def check_rollout_shapes(
    inputs: dict[str, Any], flags: dict[str, Any], ends: dict[str, Any], time_major: bool
) -> tuple[int, ...]:
    """Returns the shape of `rewards`; raises a ValueError if another argument does not fit it.

    Args:
        inputs: Floating-point arguments of the shape of `rewards`, which is one of them.
        flags: Flags of that shape, or None.
        ends: Arguments with one entry for each env, or None.
        time_major: Whether time is the first axis.
    """
    shape = tuple(inputs["rewards"].shape)
    if len(shape) not in (1, 2) or shape[0 if time_major or len(shape) == 1 else 1] < 1:
        layout = "[T, N]" if time_major else "[N, T]"
        raise ValueError(f"rewards must be float {layout} or [T] with T >= 1; got {describe(inputs['rewards'])}")
    for name, x in {**inputs, **flags}.items():
        if x is not None and tuple(np.shape(x)) != shape:
            raise ValueError(f"{name} must be {list(shape)} as rewards is; got {describe(x)}")
    wanted: tuple[tuple[int, ...], ...] = ((), (1,))
    if len(shape) == 2:
        num_envs = shape[1] if time_major else shape[0]
        wanted = ((num_envs,), (1, num_envs) if time_major else (num_envs, 1))
    for name, x in ends.items():
        if x is not None and tuple(np.shape(x)) not in wanted:
            raise ValueError(
                f"{name} must be {list(wanted[0])} or {list(wanted[1])}, one for each env; got {describe(x)}"
            )
    return shape
