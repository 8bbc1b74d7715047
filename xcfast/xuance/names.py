"""Looking up by name, by an older one too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")


class Names(dict[str, Value]):
    """A dict that finds a value by today's name and by older ones; what it lists are today's.

    Args:
        values: by name.
        older: older name -> today's.
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
        """The value of that name, or ``default``."""
        return self[name] if name in self else default
