"""Records: named numbers and arrays in one piece of memory, which Python and compiled code read by the same names."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xcfast.errors import TaskError


def memory_record(owner: str, fields: Mapping[str, Any]) -> np.recarray:
    """Returns a record array of one element with the initial contents of a task's memory.

    Args:
        owner: The task's name, for errors.
        fields: The initial value of each field: a number, or an array of numbers. They are kept as float64.

    Raises:
        TaskError: A field is no number or array of numbers, or has no valid name.
    """
    names = {}
    for name, value in fields.items():
        array = np.asarray(value)
        check_name(owner, "memory", name)
        if array.dtype.kind not in "biuf" or array.size == 0:
            raise TaskError(f"{owner}: memory.{name} must start as a number or an array of numbers; got {value!r}")
        names[name] = np.asarray(array, np.float64)
    record = empty_record((name, "f8", array.shape) for name, array in names.items())
    for name, array in names.items():
        record[name][0] = array
    return record


def check_name(owner: str, record: str, name: Any) -> None:
    """Raises TaskError where a field of `memory` or `terms` cannot have this name."""
    if not isinstance(name, str) or not name.isidentifier():
        raise TaskError(f"{owner}: a field of {record} must have a name such as last_action; got {name!r}")
    if hasattr(np.record, name):
        raise TaskError(f"{owner}: a field of {record} must have another name than {name}, which numpy's records have")


def empty_record(fields: Iterable[tuple[str, str, tuple[int, ...]]]) -> np.recarray:
    """Returns a record array of one element; `fields` are (name, format, shape)."""
    listed = [(name, kind, shape) if shape else (name, kind) for name, kind, shape in fields]
    return np.zeros(1, np.dtype(listed or [("_", "f8")], align=True)).view(np.recarray)


def as_numbers(record: np.recarray) -> NDArray[np.float64]:
    """Returns the memory of a record of float64 fields as one array [1, size]."""
    return record.view(np.ndarray).view(np.float64).reshape(1, -1)
