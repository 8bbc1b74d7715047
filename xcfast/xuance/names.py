"""A dict that also knows older names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")


class Names(dict[str, Value]):
    """A dict that finds a value by its current name and by older names. It lists current names only.

    Args:
        values: Values by name.
        older: Older name -> current name.
    """

    def __init__(self, values: Mapping[str, Value], older: Mapping[str, str] | None = None) -> None:
        super().__init__(values)
        self._older = {} if older is None else dict(older)

    def __missing__(self, name: str) -> Value:
        if name in self._older:
            return self[self._older[name]]
        raise KeyError(f"{name!r}; allowed: {', '.join(self)}")

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._older

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the value of a name, or ``default`` if there is none."""
        return self[name] if name in self else default
