"""The schema of a checkpoint: every entry that the program reads, with its type, range and shape.

``check_checkpoint`` compares a whole file with this schema before anything in it is used. Entries that the schema does
not name are ignored: they belong to another version. A run may have gone wrong when its checkpoint was written, so
numbers that only describe an episode or a score may be infinite or NaN; numbers that decide how a run goes on may not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

import torch
from torch import Tensor

from xcfast.config.keys import keys_of
from xcfast.config.schema import Config
from xcfast.errors import CheckpointError, ConfigError
from xcfast.output.spaces import space_from_data

Check = Callable[[Any, str], None]
"""Checks the value at a place (a path such as ``progress.best.step``); raises _Fault where it is wrong."""

_MAX_INT64 = 2**63 - 1


class _Fault(Exception):
    """A wrong entry: where it is, what was found and what is wanted."""

    def __init__(self, place: str, found: Any, wanted: str) -> None:
        super().__init__(f"{place or 'the file'}: found {_shown(found)}; wanted: {wanted}")


def check_checkpoint(path: Path, state: Any) -> None:
    """Checks the contents of a checkpoint file.

    Args:
        path: The file, for the message.
        state: The contents, as ``torch.load`` returned them.

    Raises:
        CheckpointError: An entry is missing or wrong; the message names it, what was found and what is wanted.
    """
    try:
        _CHECKPOINT(state, "")
        _check_relations(state)
    except _Fault as fault:
        raise CheckpointError(f"{path}: {fault}") from None


# Building blocks


def _integer(low: int = 0, high: int = _MAX_INT64) -> Check:
    def check(value: Any, place: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise _Fault(
                place, value, f"an integer from {low} to {high}" if high < _MAX_INT64 else f"an integer >= {low}"
            )

    return check


def _number(low: float | None = None, finite: bool = True, below: float = float("inf")) -> Check:
    words = "a number" if not finite else "a finite number"
    words += "" if low is None else f" >= {low:g}"
    words += "" if below == float("inf") else f", < {below:g}"

    def check(value: Any, place: str) -> None:
        if type(value) not in (int, float):
            raise _Fault(place, value, words)
        if finite and not (abs(value) <= 1.7e308 and (low is None or value >= low) and value < below):
            raise _Fault(place, value, words)

    return check


def _flag(value: Any, place: str) -> None:
    if type(value) is not bool:
        raise _Fault(place, value, "True or False")


def _text(*choices: str) -> Check:
    def check(value: Any, place: str) -> None:
        if type(value) is not str or (choices and value not in choices):
            raise _Fault(place, value, " or ".join(map(repr, choices)) or "a text")

    return check


def _array(dtypes: str, ndim: int | None = None, low: float | None = None, finite: bool = True) -> Check:
    """Checks a dense tensor on the CPU.

    Args:
        dtypes: Names of the allowed dtypes, separated by spaces; "" allows all.
        ndim: Number of dimensions; None allows any.
        low: Smallest allowed value; None allows any.
        finite: Whether infinite and NaN entries are refused.
    """
    allowed = [getattr(torch, name) for name in dtypes.split()]
    words = f"an array of {dtypes.replace(' ', ' or ')}" if dtypes else "an array"
    words += "" if ndim is None else f" with {ndim} dimension{'s' * (ndim != 1)}"
    words += ", finite" * finite + ("" if low is None else f", >= {low:g}")

    def check(value: Any, place: str) -> None:
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.device.type != "cpu":
            raise _Fault(place, value, words)
        if value.dtype.is_complex or value.is_quantized:
            raise _Fault(place, value, words)
        if (allowed and value.dtype not in allowed) or (ndim is not None and value.ndim != ndim):
            raise _Fault(place, value, words)
        if finite and value.dtype.is_floating_point and not bool(torch.isfinite(value).all()):
            raise _Fault(place, value, words)
        if low is not None and not bool((value >= low).all()):
            raise _Fault(place, value, words)

    return check


def _optional(inner: Check) -> Check:
    def check(value: Any, place: str) -> None:
        if value is not None:
            inner(value, place)

    return check


def _either(first: Check, second: Check) -> Check:
    """Checks tensors with the second check, and other values with the first."""

    def check(value: Any, place: str) -> None:
        (second if isinstance(value, Tensor) else first)(value, place)

    return check


def _list(inner: Check, length: int | None = None) -> Check:
    def check(value: Any, place: str) -> None:
        if type(value) is not list or (length is not None and len(value) != length):
            raise _Fault(place, value, "a list" if length is None else f"a list of {length}")
        for index, item in enumerate(value):
            inner(item, f"{place}[{index}]")

    return check


def _mapping(key_type: type, inner: Check) -> Check:
    def check(value: Any, place: str) -> None:
        _dict(value, place)
        for key, item in value.items():
            if type(key) is not key_type:
                raise _Fault(place, key, f"keys of type {key_type.__name__}")
            inner(item, _below(place, key))

    return check


def _record(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Checks the named entries of a dict; others are ignored."""

    def check(value: Any, place: str) -> None:
        _dict(value, place)
        missing = [key for key in required if key not in value]
        if missing:
            raise _Fault(place, sorted(map(str, value)), f"a dict with {', '.join(missing)}")
        for key, inner in {**required, **(optional or {})}.items():
            if key in value:
                inner(value[key], _below(place, key))

    return check


def _dict(value: Any, place: str) -> None:
    if not isinstance(value, dict):
        raise _Fault(place, value, "a dict")


def _anything(value: Any, place: str) -> None:
    pass


def _check_config(value: Any, place: str) -> None:
    """Checks the keys that this version knows; a key that is absent has its default."""
    _mapping(str, _anything)(value, place)
    try:
        Config(**{name: item for name, item in value.items() if name in keys_of(Config)})
    except ConfigError as error:
        key = place if error.key is None else f"{place}.{error.key}"
        raise _Fault(key, value.get(error.key), " ".join(error.problem.split())) from None


def _check_space(value: Any, place: str) -> None:
    try:
        space_from_data(value)
    except ValueError as error:
        raise _Fault(place, value, " ".join(str(error).split())) from None


# The entries

_FLOATS = "float32 float64"
_STATISTICS = _record(
    {"mean": _array("float64"), "var": _array("float64", low=0), "count": _integer()}, {"epsilon_outside": _flag}
)

_ENV = _record(
    {
        "physics": _array(_FLOATS, 1, finite=False),
        "np_random": _record(
            {
                "bit_generator": _text("PCG64"),
                "state": _record({"state": _integer(high=2**128 - 1), "inc": _integer(high=2**128 - 1)}),
                "has_uint32": _integer(high=1),
                "uinteger": _integer(high=2**32 - 1),
            }
        ),
        "np_random_seed": _optional(_integer(-1, 2**128)),
        "elapsed_steps": _optional(_integer()),
        "has_reset": _optional(_flag),
    },
    {name: _array("float64", 2, finite=False) for name in ("xpos", "xipos", "site_xpos")},
)

_ENVS = _record(
    {
        "version": _integer(),
        "env_id": _text(),
        "envs": _list(_ENV),
        "obs": _array("", finite=False),
        "episode_returns": _array("float64", 1, finite=False),
        "episode_lengths": _array("int64", 1, low=0),
    },
    {"action_masks": _array("bool", 2)},
)

_PROGRESS = _record(
    {
        "iteration": _integer(),
        "evaluations": _integer(),
        "evaluation_due": _flag,
        **{f"{name}_seconds": _number(0) for name in ("collection", "update", "evaluation", "elapsed")},
        "best": _optional(_record({"mean": _number(), "std": _number(finite=False), "step": _integer()})),
        "last_scores": _optional(_list(_number(finite=False))),
        "recent_returns": _list(_number(finite=False)),
    }
)

_RATE = _either(_number(0), _array(_FLOATS, 0, low=0))
_MOMENT = _either(_optional(_number()), _array(""))
_OPTIMIZER = _record(
    {
        "state": _mapping(int, _mapping(str, _MOMENT)),
        "param_groups": _list(
            _record(
                {"params": _list(_integer()), "lr": _RATE},
                {
                    "initial_lr": _RATE,
                    "betas": _list(_either(_number(0, below=1), _array(_FLOATS, 0, low=0)), 2),
                    "eps": _number(0),
                    "weight_decay": _RATE,
                    **dict.fromkeys(("amsgrad", "maximize", "capturable", "differentiable"), _flag),
                    **dict.fromkeys(("foreach", "fused"), _optional(_flag)),
                },
            )
        ),
    }
)
_SCHEDULER = _record(
    {},
    {
        "last_epoch": _integer(-1),
        "_step_count": _integer(),
        "base_lrs": _list(_RATE),
        "_last_lr": _list(_RATE),
    },
)

_ROLLOUT = _record(
    {
        "rows": _mapping(str, _array("")),
        "last_obs": _array("float32"),
        "final_obs": _array("float32"),
        "final_index": _array("int64", 1, low=0),
        "episodes": _record({"ret": _array(_FLOATS, 1)}, {}),
    }
)

_CHECKPOINT = _record(
    {
        "config": _check_config,
        "step": _integer(),
        "iteration": _integer(),
        "policy": _mapping(str, _array("")),
        "obs_normalizer": _record(
            {"rms": _STATISTICS},
            {"counts": _array("int64", 1, low=0), "means": _array("float64"), "m2s": _array("float64", low=0)},
        ),
    },
    {
        "reward_normalizer": _record({"rms": _STATISTICS}, {"returns": _array("float64", 1, finite=False)}),
        "collector": _record(
            {
                "noise_counters": _array("int64", 1, low=0),
                "envs": _optional(_ENVS),
                "obs": _optional(_array("", finite=False)),
            }
        ),
        "episodes": _record({"returns": _array("float64", 1, finite=False), "lengths": _array("int64", 1, low=0)}),
        "identity_actions": _flag,
        "engines": _mapping(str, _text()),
        "versions": _mapping(str, _text()),
        "learner": _record({}, {"optimizer": _OPTIMIZER, "scheduler": _SCHEDULER, "kl_coef": _number(0)}),
        "progress": _PROGRESS,
        "collected": _record({"rollout": _ROLLOUT, "weights": _array("", 1)}),
        "spaces": _record(
            {}, {name: lambda value, place: _check_space(value, place) for name in ("observation", "action")}
        ),
    },
)


# Relations between entries


def _check_relations(state: dict[str, Any]) -> None:
    """Checks counters against each other, and shapes against the number of environments and of observations."""
    config = Config(**{name: value for name, value in state["config"].items() if name in keys_of(Config)})
    steps = state["iteration"] * config.batch_size
    if state["step"] != steps:
        raise _Fault("step", state["step"], f"iteration * parallels * horizon_size = {steps}")
    if "progress" in state and state["progress"]["iteration"] != state["iteration"]:
        raise _Fault("progress.iteration", state["progress"]["iteration"], f"iteration = {state['iteration']}")
    for name in ("obs_normalizer", "reward_normalizer"):
        if name in state:
            rms = state[name]["rms"]
            shape = rms["mean"].shape if name == "obs_normalizer" else torch.Size([])
            _shaped(rms["mean"], f"{name}.rms.mean", shape)
            _shaped(rms["var"], f"{name}.rms.var", shape)
    num_envs, obs_shape = config.parallels, state["obs_normalizer"]["rms"]["mean"].shape
    for place, shape in {
        "obs_normalizer.counts": [num_envs],
        "obs_normalizer.means": [num_envs, *obs_shape],
        "obs_normalizer.m2s": [num_envs, *obs_shape],
        "reward_normalizer.returns": [num_envs],
        "collector.noise_counters": [num_envs],
        "collector.obs": [num_envs, *obs_shape],
        "collector.envs.obs": [num_envs, *obs_shape],
        "collector.envs.episode_returns": [num_envs],
        "collector.envs.episode_lengths": [num_envs],
        "episodes.returns": [num_envs],
        "episodes.lengths": [num_envs],
        "collected.rollout.last_obs": [num_envs, *obs_shape],
    }.items():
        _shaped(_at(state, place), place, torch.Size(shape))
    envs = _at(state, "collector.envs.envs")
    if envs is not None and len(envs) != num_envs:
        raise _Fault("collector.envs.envs", f"{len(envs)} environments", f"parallels = {num_envs}")
    _check_optimizer(_at(state, "learner.optimizer"))
    _check_rollout(_at(state, "collected.rollout"), config, obs_shape)


def _check_optimizer(optimizer: Any) -> None:
    """Checks that moments belong to parameters and have one shape, and that second moments are not negative."""
    if optimizer is None:
        return
    place = "learner.optimizer.state"
    parameters = {index for group in optimizer["param_groups"] for index in group["params"]}
    for index, moments in optimizer["state"].items():
        if index not in parameters:
            raise _Fault(place, index, "the numbers of parameters in param_groups")
        here = f"{place}.{index}"
        if ("exp_avg" in moments) != ("exp_avg_sq" in moments):
            raise _Fault(here, sorted(moments), "both exp_avg and exp_avg_sq")
        if "exp_avg" in moments:
            for name in ("exp_avg", "exp_avg_sq"):
                _array("float32 float64 bfloat16 float16")(moments[name], f"{here}.{name}")
            _shaped(moments["exp_avg_sq"], f"{here}.exp_avg_sq", moments["exp_avg"].shape)
            _array("", low=0)(moments["exp_avg_sq"], f"{here}.exp_avg_sq")
            _either(_number(0), _array("float32 float64 int64", 0, low=0))(moments.get("step"), f"{here}.step")


def _check_rollout(rollout: Any, config: Config, obs_shape: torch.Size) -> None:
    """Checks a rollout that was collected ahead: its rows are [t, N, ...], its final observations have indices."""
    if rollout is None:
        return
    place = "collected.rollout"
    if "rewards" not in rollout["rows"]:
        raise _Fault(f"{place}.rows", sorted(rollout["rows"]), "a dict with rewards")
    lead = torch.Size([min(rollout["rows"]["rewards"].shape[:1], default=0), config.parallels])
    for name, rows in rollout["rows"].items():
        if rows.shape[:2] != lead or lead[0] > config.horizon_size:
            wanted = f"[{lead[0]}, {lead[1]}, ...], at most horizon_size = {config.horizon_size} rows"
            raise _Fault(_below(f"{place}.rows", name), rows, wanted)
    count = len(rollout["final_index"])
    _shaped(rollout["final_obs"], f"{place}.final_obs", torch.Size([count, *obs_shape]))
    if count and int(rollout["final_index"].max()) >= config.batch_size:
        raise _Fault(f"{place}.final_index", rollout["final_index"], f"indices below {config.batch_size}")
    for name, items in rollout["episodes"].items():
        _array("", 1, finite=False)(items, _below(f"{place}.episodes", name))
        _shaped(items, _below(f"{place}.episodes", name), rollout["episodes"]["ret"].shape)


def _shaped(value: Tensor | None, place: str, shape: torch.Size) -> None:
    if value is not None and value.shape != shape:
        raise _Fault(place, value, f"the shape {list(shape)}")


def _at(state: Any, place: str) -> Any:
    """Returns the entry at a path, or None if a part of the path is absent."""
    for key in place.split("."):
        if state is None or key not in state:
            return None
        state = state[key]
    return state


# Messages


def _below(place: str, key: Any) -> str:
    word = key if isinstance(key, str) and re.fullmatch(r"[\w.:/-]{1,60}", key, re.ASCII) else _shown(key)
    return f"{place}.{word}" if place else word


def _shown(value: Any) -> str:
    """Returns a short description of a value, in one line."""
    if isinstance(value, Tensor):
        words = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        return f"{words}, {value.item()}" if value.ndim == 0 and value.dtype.is_floating_point else words
    try:
        text = short_repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 100 and "\n" not in text else f"a value of type {type(value).__name__}"
