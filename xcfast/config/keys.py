"""What a configuration key may be: documentation, type, range and old names, and how a bad one is reported."""

import difflib
import math
import os
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin

from xcfast.errors import ConfigError


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` is most likely a misspelling of, or None."""
    folded = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


# Keys that XuanCe has renamed: old (or competing) name -> the name used here.
RENAMED_KEYS = {
    "n_steps": "horizon_size",
    "n_epoch": "n_epochs",
    "clip_grad_norm": "grad_clip_norm",
    "use_ddp": "distributed_training",
    "dl_backend": "dl_toolbox",
}

_ATARI = "Atari only"
# Keys that XuanCe's files may contain and that cannot mean anything here, each with the reason.
INERT_KEYS = {
    "runner": "there is one runner for every configuration",
    "result_dir": "result files are written to the run folder under log_dir",
    "clip_type": "MindSpore only; grad_clip_norm always limits the global norm",
    "test_steps": "XuanCe never read it; test_episode sets the length of a test",
    "use_linear_lr_decay": "XuanCe never acted on it; end_factor_lr_decay sets where the learning rate ends",
    "use_tensor_memory": "the engines decide where a rollout lives",
    "rt_epoch": "--resume restores the position in the learning-rate schedule",
    **dict.fromkeys(
        ("obs_type", "img_size", "num_stack", "frame_skip", "noop_max", "full_action_space", "fc_hidden_sizes"), _ATARI
    ),
    **dict.fromkeys(("filters", "kernels", "strides"), "image representations only"),
    **dict.fromkeys(("ImgObsWrapper", "RGBImgPartialObsWrapper"), "MiniGrid only"),
    **dict.fromkeys(("act_type", "num_drones", "obstacles", "record", "sleep"), "drones only"),
    "max_episode_steps": "drones only; the time limit of a Gymnasium id is its own",
    "env_config": "MetaDrive only",
}


@dataclass(frozen=True)
class Key:
    """Everything about a key besides its type and default.

    Attributes:
        doc: One line for the reader of the YAML.
        low: Smallest number allowed.
        high: Largest number allowed.
        open_low: `low` itself is not allowed.
        words: What is allowed, where the type does not say it.
        aliases: Old spellings of a value -> the value.
        refused: Values that exist elsewhere and are refused by name -> the reason.
    """

    doc: str
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    words: str | None = None
    aliases: Mapping[Any, Any] = field(default_factory=dict)
    refused: Mapping[Any, str] = field(default_factory=dict)


def key(default: Any, doc: str, **rules: Any) -> Any:
    """A dataclass field that is a YAML key; `rules` are the attributes of `Key`."""
    return field(default=default, metadata={"key": Key(doc, **rules)})


def keys_of(config_class: type) -> dict[str, Key]:
    """The keys of a config dataclass in the order of definition."""
    return {f.name: f.metadata["key"] for f in dataclass_fields(config_class) if "key" in f.metadata}


def describe_type(hint: Any, rules: Key) -> str:
    """What a key accepts, in words."""
    if rules.words is not None:
        return rules.words
    members = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        inner = next(member for member in members if member is not type(None))
        return f"{describe_type(inner, rules)}, null"
    if get_origin(hint) is Literal:
        return ", ".join(str(member) for member in members)
    if get_origin(hint) is tuple:
        return "a list of positive integers"
    if hint is bool:
        return ", ".join(str(choice) for choice in (True, False) if choice not in rules.refused)
    if hint is str:
        return "a text"
    noun = "an integer" if hint is int else "a number"
    low, high = (None if bound is None else f"{bound:g}" for bound in (rules.low, rules.high))
    if rules.high is not None and rules.high > 1e6:
        high = f"{rules.high:.0f}"
    if low and high:
        return f"{noun} from {low} to {high}"
    if low:
        return f"{noun} {'>' if rules.open_low else '>='} {low}"
    return noun


# YAML 1.1 reads 1e-3 and 1e6 (no dot) as text; whoever writes them means the number.
_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _number(value: Any) -> int | float | None:
    """`value` as a number where it is one, or is written like one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        number = float(value)
        return int(number) if number.is_integer() and "e" in value.lower() else number
    return None


def coerce(name: str, value: Any, hint: Any, rules: Key) -> Any:
    """`value` as the type that `hint` asks for.

    Raises:
        ConfigError: If it is refused, of another type, out of range, or none of the choices.
    """
    allowed = describe_type(hint, rules)

    def fail(problem: str, nearest: str | None = None) -> ConfigError:
        return ConfigError(problem, key=name, given=value, allowed=allowed, nearest=nearest)

    hashable = value if isinstance(value, (str, bool, int)) else None
    if hashable is not None and hashable in rules.refused and type(hashable) in map(type, rules.refused):
        raise fail(rules.refused[hashable])
    if get_origin(hint) in (Union, types.UnionType):
        if value is None or value in ("none", "None", "null"):
            return None
        hint = next(member for member in get_args(hint) if member is not type(None))

    if get_origin(hint) is Literal:
        choices = get_args(hint)
        value = rules.aliases.get(value, value) if isinstance(value, str) else value
        if value is False and "off" in choices:  # YAML 1.1 reads a bare off as False
            return "off"
        if value is None and "none" in choices:
            return "none"
        if not isinstance(value, str):
            raise fail("wrong type" if value is not None else "no value")
        if value not in choices:
            raise fail("not one of the choices", nearest_name(value, choices))
        return value
    if get_origin(hint) is tuple:
        if value is None:
            return ()
        sizes = [_number(size) for size in value] if isinstance(value, (list, tuple)) else [None]
        if any(size is None or not math.isfinite(size) or size != int(size) or size < 1 for size in sizes):
            raise fail("wrong type")
        return tuple(int(size) for size in sizes if size is not None)
    if hint is bool:
        if not isinstance(value, bool):
            raise fail("wrong type")
        return value
    if hint is str:
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if not isinstance(value, str) or not value:
            raise fail("wrong type" if value is not None else "no value")
        return value

    number = _number(value)
    if number is None:
        raise fail("wrong type" if value is not None else "no value")
    too_low = rules.low is not None and (number < rules.low or (rules.open_low and number == rules.low))
    too_high = rules.high is not None and number > rules.high
    if not math.isfinite(number) or too_low or too_high:
        raise fail("out of range")
    if hint is int and number != int(number):
        raise fail("wrong type")
    return hint(number)
