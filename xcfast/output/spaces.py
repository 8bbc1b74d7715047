"""Observation and action spaces as plain data, so that a checkpoint can hold them.

Reading them needs no environment, and imports nothing that a file names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space

_BOX_DTYPES = (
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
)
_DISCRETE_DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_MAX_ENTRIES = 10**8


def space_to_data(space: Space[Any]) -> dict[str, Any]:
    """Describes a space with texts, integers, lists and numpy arrays.

    Args:
        space: A ``Box`` or a ``Discrete`` space.

    Returns:
        For a box: ``type``, ``dtype``, ``shape``, and ``low`` and ``high``, arrays of the box's dtype and shape.
        For a discrete space: ``type``, ``dtype``, ``n``, ``start``.

    Raises:
        TypeError: The space is of another kind.
    """
    if isinstance(space, Box):
        bounds = {name: _to_data(np.asarray(getattr(space, name))) for name in ("low", "high")}
        return {"type": "Box", "dtype": space.dtype.name, "shape": list(space.shape), **bounds}
    if isinstance(space, Discrete):
        return {"type": "Discrete", "dtype": space.dtype.name, "n": int(space.n), "start": int(space.start)}
    raise TypeError(f"space must be a Box or a Discrete space; got {space}")


def space_from_data(data: Any) -> Box | Discrete:
    """Makes the space that ``space_to_data`` described, with the same bounds, dtype and start.

    Args:
        data: The description; arrays may be numpy arrays or CPU tensors.

    Raises:
        ValueError: The data do not describe a space; the message says what is wanted.
    """
    if not isinstance(data, Mapping) or data.get("type") not in ("Box", "Discrete"):
        raise ValueError("a space: a dict whose type is Box or Discrete")
    return _box(data) if data["type"] == "Box" else _discrete(data)


def _box(data: Mapping[str, Any]) -> Box:
    dtype, shape = data.get("dtype"), data.get("shape")
    if dtype not in _BOX_DTYPES:
        raise ValueError(f"a Box whose dtype is one of {', '.join(_BOX_DTYPES)}")
    if type(shape) is not list or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a Box whose shape is a list of integers >= 0")
    if math.prod(shape) > _MAX_ENTRIES:
        raise ValueError(f"a Box with at most {_MAX_ENTRIES} numbers")
    low, high = (_from_data(data.get(name), dtype, tuple(shape)) for name in ("low", "high"))
    if np.isnan(low).any() or np.isnan(high).any() or not (low <= high).all():
        raise ValueError("a Box whose low is at most its high")
    return Box(low, high, tuple(shape), np.dtype(dtype).type)


def _discrete(data: Mapping[str, Any]) -> Discrete:
    dtype, n, start = data.get("dtype"), data.get("n"), data.get("start")
    if dtype not in _DISCRETE_DTYPES:
        raise ValueError(f"a Discrete space whose dtype is one of {', '.join(_DISCRETE_DTYPES)}")
    limits = np.iinfo(dtype)
    if type(n) is not int or type(start) is not int or n < 1:
        raise ValueError("a Discrete space whose n is an integer >= 1 and whose start is an integer")
    if start < limits.min or start + n - 1 > limits.max or n > limits.max:
        raise ValueError(f"a Discrete space whose n and actions are within {dtype}")
    return Discrete(n, start=start, dtype=np.dtype(dtype).type)


def _to_data(bounds: np.ndarray) -> np.ndarray:
    """Some versions of torch lack unsigned integers of 16, 32 and 64 bits, so these are stored by their bits."""
    signed = np.dtype(bounds.dtype.name.removeprefix("u"))
    return bounds.view(signed).copy() if bounds.dtype.kind == "u" and bounds.itemsize > 1 else bounds.copy()


def _from_data(value: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(value, torch.Tensor) and value.layout is torch.strided and value.device.type == "cpu":
        try:
            value = value.detach().numpy()
        except (RuntimeError, TypeError):  # a dtype that numpy does not have
            value = None
    stored = dtype.removeprefix("u") if dtype != "uint8" else dtype
    if not isinstance(value, np.ndarray) or value.dtype.name != stored or value.shape != shape:
        raise ValueError(f"a Box whose low and high are {stored} {list(shape)}")
    return np.ascontiguousarray(value).reshape(shape).view(dtype)
