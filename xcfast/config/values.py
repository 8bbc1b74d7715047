"""Gives a value the type of its key, or says why the key refuses it."""

import math
import os
import re
import types
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin

from xcfast.config.keys import Key, nearest_name
from xcfast.errors import ConfigError, show_value

_MAX_WIDTH = 2**16
_MAX_LAYERS = 100
_MAX_TEXT = 1000
_MAX_ENTRIES, _MAX_DEPTH = 10_000, 20
_INT64 = 2**63

_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*(_[0-9]+)*)")
_DECIMAL = re.compile(r"[+-]?((0|[1-9][0-9]*(_[0-9]+)*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LONGEST_NUMBER = 400  # characters; a double's shortest exact form has fewer
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
# Line breaks and other control characters, and halves of surrogate pairs, which no file can store.
_UNUSABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MODULE_AND_CLASS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class _Refused(Exception):
    """A value that its key refuses."""

    def __init__(self, problem: str, nearest: str | None = None) -> None:
        super().__init__(problem)
        self.problem, self.nearest = problem, nearest


def describe_type(hint: Any, rules: Key) -> str:
    """Returns what a key accepts, in words."""
    if rules.words is not None:
        return rules.words
    members = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return f"{describe_type(_without_none(hint), rules)}, null"
    if get_origin(hint) is Literal:
        return ", ".join(str(member) for member in members)
    if get_origin(hint) is tuple:
        return f"a list of up to {_MAX_LAYERS} integers from 1 to {_MAX_WIDTH}"
    if hint is bool:
        return "True, False"
    if hint is str:
        return f"a text of one line and up to {_MAX_TEXT} characters"
    noun = "an integer" if hint is int else "a number"
    low, high = _bound(rules.low), _bound(rules.high)
    if low is not None and high is not None and not rules.open_low and not rules.open_high:
        return f"{noun} from {low} to {high}"
    bounds = [f"{'>' if rules.open_low else '>='} {low}"] if low is not None else []
    bounds += [f"{'<' if rules.open_high else '<='} {high}"] if high is not None else []
    return " ".join([noun, " and ".join(bounds)]).rstrip()


def _bound(number: float | None) -> str | None:
    if number is None:
        return None
    return f"{number:.0f}" if number > 1e5 else f"{number:g}"


def _without_none(hint: Any) -> Any:
    return next(member for member in get_args(hint) if member is not type(None))


def coerce(name: str, value: Any, hint: Any, rules: Key) -> Any:
    """Returns `value` as the type `hint` of the key `name`.

    Raises:
        ConfigError: If the value is refused, of another type, out of range, or not one of the choices.
    """
    try:
        return _convert(value, hint, rules)
    except _Refused as refusal:
        texts_differ = isinstance(value, str) and (hint is bool or get_origin(hint) in (tuple, dict))
        given = f"the text {value!r}" if texts_differ else value
        allowed = describe_type(hint, rules)
        raise ConfigError(refusal.problem, key=name, given=given, allowed=allowed, nearest=refusal.nearest) from None


def _convert(value: Any, hint: Any, rules: Key) -> Any:
    if isinstance(value, str) and value in rules.refused:
        raise _Refused(rules.refused[value])
    if get_origin(hint) in (Union, types.UnionType):
        if value is None or (isinstance(value, str) and value in ("none", "None", "null")):
            return None
        hint = _without_none(hint)
    if get_origin(hint) is Literal:
        return _choice(value, get_args(hint), rules)
    if get_origin(hint) is tuple:
        return _widths(value) if get_args(hint)[0] is int else _wrappers(value)
    if get_origin(hint) is dict:
        return _keyword_arguments(value)
    if hint is bool:
        return _boolean(value)
    if hint is str:
        return _text(value)
    return _quantity(value, hint, rules)


def _choice(value: Any, choices: tuple[str, ...], rules: Key) -> str:
    value = rules.aliases.get(value, value) if isinstance(value, str) else value
    if value is False and "off" in choices:  # YAML 1.1 reads a bare off as False
        return "off"
    if value is None and "none" in choices:
        return "none"
    if not isinstance(value, str):
        raise _wrong_type(value)
    if value not in choices:
        raise _Refused("not one of the choices", nearest_name(value, choices))
    return value


def _widths(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(value)
    widths = [_number(width) for width in value]
    numbers = [width for width in widths if width is not None and math.isfinite(width) and width == int(width)]
    if len(numbers) < len(widths):
        raise _Refused("wrong type")
    if len(numbers) > _MAX_LAYERS or any(not 1 <= number <= _MAX_WIDTH for number in numbers):
        raise _Refused("out of range")
    return tuple(int(number) for number in numbers)


def _boolean(value: Any) -> bool:
    if isinstance(value, str):
        value = _BOOLEANS.get(value.lower(), value)
    if not isinstance(value, bool):
        raise _wrong_type(value)
    return value


def _text(value: Any) -> str:
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(value, str) or not value:
        raise _wrong_type(value)
    if len(value) > _MAX_TEXT:
        raise _Refused(f"a text of {len(value)} characters")
    if _UNUSABLE.search(value):
        raise _Refused("a text with control characters")
    return value


def _quantity(value: Any, kind: type[int] | type[float], rules: Key) -> int | float:
    number = _number(value)
    if number is None:
        raise _wrong_type(value)
    too_low = rules.low is not None and (number < rules.low or (rules.open_low and number == rules.low))
    too_high = rules.high is not None and (number > rules.high or (rules.open_high and number == rules.high))
    if not math.isfinite(number) or too_low or too_high:
        raise _Refused("out of range")
    if kind is int and number != int(number):
        raise _Refused("wrong type")
    return kind(number)


def _wrong_type(value: Any) -> _Refused:
    return _Refused("no value" if value is None or (isinstance(value, str) and not value) else "wrong type")


def _number(value: Any) -> int | float | None:
    """Returns `value` as a number if it is one or is written like one, else None. Large integers become infinite."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        if len(text) > _LONGEST_NUMBER or not _DECIMAL.fullmatch(text):
            return None
        number: int | float = int(text) if _INTEGER.fullmatch(text) else float(text)
    elif isinstance(value, Integral):
        number = int(value)
    elif isinstance(value, Real):
        try:
            number = float(value)
        except OverflowError:  # a fraction of large integers
            return math.inf
    else:
        return None
    if isinstance(number, int) and abs(number) >= _INT64:
        return math.inf if number > 0 else -math.inf
    return number


def _wrappers(value: Any) -> tuple[str | dict[str, Any], ...]:
    """Checks texts `module:Class` and mappings `{module:Class: {keyword: value}}`, and returns them unchanged."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(value)
    wrappers: list[str | dict[str, Any]] = []
    for entry in value:
        name, kwargs = entry, None
        if isinstance(entry, Mapping) and len(entry) == 1:
            ((name, kwargs),) = entry.items()
        if not isinstance(name, str) or not _MODULE_AND_CLASS.fullmatch(_text(name)):
            raise _Refused(f"entry {len(wrappers) + 1} does not name a class as module:Class")
        if kwargs is None:
            wrappers.append(name)
        else:
            wrappers.append({name: _keyword_arguments(kwargs)})
    return tuple(wrappers)


def _keyword_arguments(value: Any) -> dict[str, Any]:
    """Returns a deep copy of a mapping from names of arguments to plain data."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _wrong_type(value)
    for name in value:
        if not isinstance(name, str) or not name.isidentifier():
            raise _Refused(f"{show_value(name)} is not the name of an argument")
    copied = _PlainCopy()(value, 0)
    assert isinstance(copied, dict)
    return copied


class _PlainCopy:
    """Copies plain data, as JSON can hold it. Refuses other data, and too much of it."""

    def __init__(self) -> None:
        self._entries = 0

    def __call__(self, value: Any, depth: int) -> Any:
        self._entries += 1
        if depth > _MAX_DEPTH or self._entries > _MAX_ENTRIES:
            raise _Refused(f"more than {_MAX_DEPTH} levels or {_MAX_ENTRIES} entries")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, (str, os.PathLike)):
            return _text(value) if value != "" else ""
        if isinstance(value, (Integral, Real)):
            number = _number(value)
            if number is None or not math.isfinite(number):
                raise _Refused("a number that is not finite or needs more than 64 bits")
            return number
        if isinstance(value, (list, tuple)):
            return [self(entry, depth + 1) for entry in value]
        if isinstance(value, Mapping):
            return {self._name(name): self(entry, depth + 1) for name, entry in value.items()}
        raise _Refused(f"a value of type {type(value).__name__}")

    def _name(self, name: Any) -> str:
        if not isinstance(name, str):
            raise _Refused(f"{show_value(name)} as the name of an entry; a name is a text")
        return _text(name)
