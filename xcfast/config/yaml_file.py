"""Reading YAML with the place of every key kept, so that an error can name its line."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from xcfast.config.keys import INERT_KEYS, nearest_name
from xcfast.errors import ConfigError

Layer = dict[str, tuple[Any, str | None]]
"""Key -> (value, where it was given)."""


def read_file(path: str | os.PathLike[str]) -> Layer:
    """The top-level keys of a YAML (or JSON) file.

    Raises:
        ConfigError: If the file cannot be read, is no YAML mapping, nests keys or repeats one.
    """
    where = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = Path(path).parent
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        near = nearest_name(Path(path).name, names)
        raise ConfigError("no such file", nearest=near and os.fspath(folder / near), where=where) from None
    except IsADirectoryError:
        raise ConfigError("is a folder; wanted: a YAML file", where=where) from None
    except UnicodeDecodeError:
        raise ConfigError("is no UTF-8 text; wanted: a YAML file", where=where) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=where) from None

    layer: Layer = {}
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            raise ConfigError("is empty; wanted: lines of 'key: value'", where=where)
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError("is no mapping; wanted: lines of 'key: value'", where=where)
        for name_node, value_node in root.value:
            place = f"{where}, line {name_node.start_mark.line + 1}"
            if not isinstance(name_node, yaml.ScalarNode):
                raise ConfigError("a key that is no text; wanted: lines of 'key: value'", where=place)
            name = name_node.value
            if name in layer:
                raise ConfigError(f"given twice, first in {layer[name][1]}", key=name, where=place)
            if isinstance(value_node, yaml.MappingNode) and name not in INERT_KEYS:
                raise ConfigError("has keys below it; the keys of a configuration do not nest", key=name, where=place)
            layer[name] = (_construct(value_node, name, place), place)
    except yaml.YAMLError as error:
        raise _broken(error, where) from None
    return layer


def _construct(node: yaml.Node, name: str, where: str) -> Any:
    try:
        return yaml.SafeLoader("").construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError, TypeError, LookupError) as error:  # an unknown tag, a date of month 13, ...
        reason = getattr(error, "problem", None) or error
        given = node.value if isinstance(node.value, str) else "a list"
        raise ConfigError(f"broken YAML: {reason}", key=name, given=given, where=where) from None


def _broken(error: yaml.YAMLError, where: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    line = f", line {mark.line + 1}" if mark is not None else ""
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    return ConfigError(f"broken YAML: {reason}", where=where + line)


def read_overrides(overrides: Mapping[str, Any] | Iterable[str], where: str | None = None) -> Layer:
    """Overrides as a layer: a mapping as it is, or texts `key=value` whose values are YAML.

    Of a key that comes twice the last value counts, so that a script's command can be given one more at its end.

    Raises:
        ConfigError: If a text is no `key=value`, or its value is no YAML.
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
        try:
            node = yaml.compose(value, Loader=yaml.SafeLoader)
        except yaml.YAMLError:
            raise ConfigError("broken YAML", key=name, given=value, where=where) from None
        if isinstance(node, yaml.MappingNode):
            raise ConfigError("the keys of a configuration do not nest", key=name, given=value, where=where)
        layer[name] = (None if node is None else _construct(node, name, where), where)
    return layer
