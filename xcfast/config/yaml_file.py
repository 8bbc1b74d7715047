"""Reads YAML from files and from the command line, and keeps the place of every key for error messages."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from xcfast.config.keys import nearest_name
from xcfast.errors import ConfigError

Layer = dict[str, tuple[Any, str | None]]
"""Key -> (value, where it was given)."""

_MAX_BYTES = 100_000  # ten times a file with every key and a comment on each
_MAX_NODES, _MAX_DEPTH = 5_000, 50
_TOO_MANY = f"more than {_MAX_NODES} entries"
_LONGEST_NUMBER = 400  # digits
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with today's rules for plain words.

    YAML 1.1 reads 1e-3 as a text, 1:30 as the number 90 in base 60, 010 as 8, and 2026-01-01 as a date. Here 1e-3 is a
    number and the others are texts, which a key for numbers refuses. As in YAML 1.1, yes, no, on and off are booleans.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def fetch_flow_collection_start(self, token_class: type[yaml.Token]) -> None:
        """Reads a bracket, but refuses deep nesting at once: scanning it takes time with the square of its depth."""
        if self.flow_level > _MAX_DEPTH:
            raise RecursionError
        super().fetch_flow_collection_start(token_class)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Reads one node, but stops after as many as a configuration may have: reading all of them takes seconds."""
        self._num_nodes = getattr(self, "_num_nodes", 0) + 1
        if self._num_nodes > _MAX_NODES:
            raise yaml.MarkedYAMLError(problem=_TOO_MANY, problem_mark=self.get_mark())
        return super().compose_node(parent, index)


_WHOLE = r"(0|[1-9][0-9]*(_[0-9]+)*)"
for _kind, _pattern, _first in (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", [*"yYnNtTfFoO"]),
    ("int", rf"[-+]?({_WHOLE}|0x[0-9a-fA-F]+)", [*"-+0123456789"]),
    (
        "float",
        rf"[-+]?(({_WHOLE}\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|{_WHOLE}[eE][-+]?[0-9]+|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(rf"^(?:{_pattern})$"), _first)


def read_file(path: str | os.PathLike[str]) -> Layer:
    """Returns the top-level keys of a YAML (or JSON) file.

    Raises:
        ConfigError: If the file cannot be read, is not a YAML mapping, or repeats a key.
    """
    where = os.fspath(path)
    root = _compose(_read_text(path), where)
    if root is None:
        raise ConfigError("is empty; wanted: lines of 'key: value'", where=where)
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError("is not a mapping; wanted: lines of 'key: value'", where=where)
    _check_node(root, where)
    merged = list(_merged(root, where))
    layer: Layer = {}
    for mapping in (root, *merged):  # a mapping's own keys win over those that it merges
        seen: dict[str, str] = {}
        for name_node, value_node in mapping.value:
            if name_node.tag == _TAG + "merge" or any(value_node is one for one in merged):
                continue
            place = _line(where, name_node)
            name = _name(name_node, place)
            if name in seen:
                raise ConfigError(f"given twice, first in {seen[name]}", key=name, where=place)
            seen[name] = place
            if name not in layer:
                layer[name] = (_construct(value_node, name, place), place)
    return layer


def _read_text(path: str | os.PathLike[str]) -> str:
    """Returns the text of a file.

    Raises:
        ConfigError: If there is no such file, or it is not a text of reasonable size.
    """
    where = os.fspath(path)
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"is larger than {_MAX_BYTES} bytes; wanted: a YAML file", where=where)
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        near = _neighbour(Path(path))
        raise ConfigError("no such file", nearest=near, where=where) from None
    except IsADirectoryError:
        raise ConfigError("is a folder; wanted: a YAML file", where=where) from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text; wanted: a YAML file", where=where) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=where) from None
    except ValueError:  # a NUL or half of a surrogate pair in the name
        raise ConfigError("cannot be the name of a file", where=where) from None


def _neighbour(path: Path) -> str | None:
    """Returns the file in the same folder whose name comes nearest, or None."""
    try:
        names = [entry.name for entry in islice(path.parent.iterdir(), 1000)]
    except OSError:
        return None
    near = nearest_name(path.name, names)
    return near and os.fspath(path.parent / near)


def _compose(text: str, where: str, key: str | None = None) -> yaml.Node | None:
    """Returns the tree of nodes of one YAML document, or None for an empty one."""
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        if key is not None:
            raise ConfigError(
                _TOO_MANY if reason == _TOO_MANY else "broken YAML", key=key, given=text, where=where
            ) from None
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"broken YAML: {reason}", where=where + line) from None
    except (ValueError, OverflowError):
        raise ConfigError(r"broken YAML: an escape \U names no character", key=key, where=where) from None
    except RecursionError:
        raise ConfigError("lists or mappings are nested too deeply", key=key, where=where) from None


def _check_node(root: yaml.Node, where: str, key: str | None = None) -> None:
    """Checks the size of a tree with all aliases expanded, its numbers, and that no mapping repeats a key.

    Raises:
        ConfigError: If aliases make it endless or very large, a number is in base 60 or of hundreds of digits, or a
            mapping below the first level repeats a key.
    """
    todo, count = [(root, 0, key)], 0
    while todo:
        node, depth, key = todo.pop()
        count += 1
        if depth > _MAX_DEPTH:
            raise ConfigError("lists or mappings are nested too deeply", key=key, where=where)
        if count > _MAX_NODES:
            raise ConfigError(_TOO_MANY, key=key, where=where)
        if isinstance(node, yaml.ScalarNode):
            if node.tag in (_TAG + "int", _TAG + "float") and (":" in node.value or len(node.value) > _LONGEST_NUMBER):
                problem = "a number in base 60" if ":" in node.value else "a number of too many digits"
                raise ConfigError(problem, key=key, given=node.value, where=_line(where, node))
        elif isinstance(node, yaml.SequenceNode):
            todo += [(entry, depth + 1, key) for entry in node.value]
        elif isinstance(node, yaml.MappingNode):
            names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
            if depth > 0 and len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ConfigError(f"{twice} is given twice", key=key, where=_line(where, node))
            for name, value in node.value:
                below = name.value if key is None and isinstance(name, yaml.ScalarNode) else key
                todo += [(name, depth + 1, below), (value, depth + 1, below)]


def _merged(node: yaml.MappingNode, where: str) -> Iterator[yaml.MappingNode]:
    """Yields the mappings that `<<` merges into a mapping, and those merged into them; earlier ones win."""
    for name_node, value_node in node.value:
        if name_node.tag == _TAG + "merge":
            for part in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                if not isinstance(part, yaml.MappingNode):
                    raise ConfigError("merges something that is not a mapping", key="<<", where=_line(where, name_node))
                yield part
                yield from _merged(part, where)


def _line(where: str, node: yaml.Node) -> str:
    return where if where == "command line" else f"{where}, line {node.start_mark.line + 1}"


def _name(node: yaml.Node, place: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError("a key that is not a text; wanted: lines of 'key: value'", where=place)
    return str(node.value)


def _construct(node: yaml.Node, name: str, where: str) -> Any:
    try:
        return _Loader("").construct_object(node, deep=True)
    except (
        yaml.YAMLError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        # An unknown tag, or a tag such as !!timestamp on a value that PyYAML does not expect.
        reason = getattr(error, "problem", None) or f"the value does not fit the tag {node.tag.removeprefix(_TAG)}"
        given = node.value if isinstance(node.value, str) else "a list or a mapping"
        raise ConfigError(f"broken YAML: {reason}", key=name, given=given, where=where) from None


def read_overrides(overrides: Mapping[str, Any] | Iterable[str], where: str | None = None) -> Layer:
    """Returns overrides as a layer: a mapping as it is, or texts `key=value` whose values are YAML.

    The last value of a repeated key counts, so that a user can add one more to the end of a script's command.

    Raises:
        ConfigError: If a text is not `key=value`, or its value is not YAML.
    """
    if isinstance(overrides, Mapping):
        return {str(name): (value, where) for name, value in overrides.items()}
    if isinstance(overrides, str):
        overrides = [overrides]
    where = where or "command line"
    layer: Layer = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError("cannot be read as an override; wanted: key=value", given=text, where=where)
        layer.pop(name, None)  # so that env_kwargs={} after env_kwargs.width=3 clears it
        layer[name] = (_read_value(value, name, where), where)
    return layer


def _read_value(text: str, name: str, where: str) -> Any:
    """Returns the value that YAML reads from a text, or the text itself where YAML would drop a part as a comment."""
    if len(text) > _MAX_BYTES:
        raise ConfigError(f"a value of {len(text)} characters", key=name, allowed=f"up to {_MAX_BYTES}", where=where)
    node = _compose(text, where, name)
    read_to = 0 if node is None else node.end_mark.index
    if text[read_to:].strip():
        return text.strip()
    if node is None:
        return None
    _check_node(node, where, name)
    return _construct(node, name, where)
