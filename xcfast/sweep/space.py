"""Reads the seeds, grids and ranges of a sweep from its command line."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from xcfast.config import ConfigError
from xcfast.config.keys import nearest_name
from xcfast.config.schema import hints
from xcfast.config.yaml_file import read_overrides

Range = tuple[float, float, bool]
"""Low, high, logarithmic."""

_OWN_KEYS = {"seed": "--seeds", "env_seed": "--seeds", "log_dir": "-o", "model_dir": "-o"}


def seeds_of(text: str) -> list[int]:
    """Returns seeds 1 to N for "N", or the seeds of a list such as "3,7,11"."""
    try:
        seeds = [int(word) for word in text.split(",") if word]
    except ValueError:
        seeds = []
    if len(seeds) == 1 and "," not in text:
        seeds = list(range(1, seeds[0] + 1))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted: how many (seeds 1 to N), or a list such as 3,7,11")
    return seeds


def jobs_of(text: str) -> int | None:
    """Returns a number >= 1, or None for "auto"."""
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; wanted: a number, at least 1")
    return int(text)


def refuse_own_keys(keys: Iterable[str]) -> None:
    """Refuses the keys that the sweep sets itself.

    Raises:
        ConfigError: One of them is given.
    """
    for key in keys:
        if key in _OWN_KEYS:
            raise ConfigError(f"a sweep sets it itself; use {_OWN_KEYS[key]}", key=key, where="command line")


def grid_points(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Returns all combinations of ``key=v1,v2`` texts; one empty combination for no texts.

    Raises:
        ConfigError: A text has another form, or its key is one that the sweep sets itself.
    """
    axes: dict[str, list[Any]] = {}
    for key, values in (_choices("--grid", text) for text in texts):
        if key in axes:
            raise ConfigError("given twice; give all its values in one --grid", key=key, where="command line")
        axes[key] = values
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def search_space(texts: Sequence[str]) -> dict[str, list[Any] | Range]:
    """Returns key -> choices or range for ``key=v1,v2`` and ``key=low:high[:log]`` texts.

    Raises:
        ConfigError: A text has another form, its key is unknown (or not of numbers, for a range), or is one that the
            sweep sets itself.
    """
    space: dict[str, list[Any] | Range] = {}
    for text in texts:
        key, _, values = text.partition("=")
        if ":" in values:
            space[key] = _range(key, values)
        else:
            key, space[key] = _choices("--search", text)
        if key not in hints() and not key.startswith("env_kwargs."):  # those are the environment's own
            near = nearest_name(key, tuple(hints()))
            raise ConfigError("unknown key", key=key, nearest=near, where="command line")
    return space


def _choices(flag: str, text: str) -> tuple[str, list[Any]]:
    """Returns key and values. The values are YAML, so that a list can be one of them."""
    key, _, values = text.partition("=")
    ((key, (found, _)),) = read_overrides([f"{key}=[{values}]"]).items()
    if not found:
        raise ConfigError("no values", key=flag, given=text, allowed="key=v1,v2", where="command line")
    _check_key(key)
    return key, found


def _range(key: str, values: str) -> Range:
    low, high, *rest = values.split(":")
    try:
        bounds = float(low), float(high), rest == ["log"]
    except ValueError:
        bounds = 0.0, 0.0, False
    whole = hints().get(key) is not int or (bounds[0].is_integer() and bounds[1].is_integer())
    if rest not in ([], ["log"]) or not bounds[0] < bounds[1] or (bounds[2] and bounds[0] <= 0) or not whole:
        allowed = "low:high or low:high:log; low < high, 0 < low with log, whole numbers for a key of whole numbers"
        raise ConfigError("not a range", key=key, given=values, allowed=allowed, where="command line")
    if hints().get(key, float) not in (int, float):
        raise ConfigError("is not a number, so it has no range", key=key, allowed=f"{key}=v1,v2", where="command line")
    _check_key(key)
    return bounds


def _check_key(key: str) -> None:
    refuse_own_keys([key])
    if key == "num_threads":
        raise ConfigError("must be the same for all jobs; set it with num_threads=N", key=key, where="command line")
