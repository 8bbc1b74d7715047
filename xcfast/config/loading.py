"""Loads a configuration: merges defaults, file and overrides into one `Config`, with notices and errors."""

import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from xcfast.config.keys import INERT_KEYS, RENAMED_KEYS, keys_of, nearest_name
from xcfast.config.schema import Config
from xcfast.config.yaml_file import Layer, read_file, read_overrides
from xcfast.errors import ConfigError, show_value


def load_config(
    path: str | os.PathLike[str] | None = None, overrides: Mapping[str, Any] | Iterable[str] = (), **more: Any
) -> Config:
    """Reads a configuration: defaults, then the file, then `overrides`, then keyword arguments; later ones win.

    Args:
        path: A YAML file with any of the keys, or None for the defaults.
        overrides: A mapping, or texts `key=value` with values in YAML.
        **more: Further overrides by keyword.

    Returns:
        The configuration; `notices` holds the lines to show the user.

    Raises:
        ConfigError: If it cannot be run; the message names file, line, key, what was given and what is allowed.
    """
    path = None if path is None else os.path.expanduser(path)
    file_layer = {} if path is None else read_file(path)
    notices: list[str] = []
    of_file, *of_caller = (
        _rename(layer, notices) for layer in (file_layer, read_overrides(overrides), read_overrides(more))
    )
    given: Layer = {}
    for layer in (of_file, *of_caller):
        _add_layer(given, layer)
    for name in [name for name in given if name in INERT_KEYS]:
        notices.append(f"{name} has no effect: {INERT_KEYS[name]}")
        del given[name]
    for name, (_, where) in given.items():
        if name not in keys_of(Config):
            near = nearest_name(name, (*keys_of(Config), *RENAMED_KEYS, *INERT_KEYS))
            allowed = "the keys that python -m xcfast.config lists"
            raise ConfigError("unknown key", key=name, allowed=allowed, nearest=near, where=where)
    try:
        config = Config(**{name: value for name, (value, _) in given.items()})
        notices += _value_notices(config, given)
        config, machine_notices = _fit_machine(config)
    except ConfigError as error:
        if error.where is None:
            in_file = None if path is None else os.fspath(path)
            error.where = given[error.key][1] if error.key in given else in_file
        raise
    source = "" if path is None else os.fspath(path)
    named = config.modules_of(*(name for layer in of_caller for name in layer))
    file_modules = tuple(module for module in config.modules if path is not None and module not in named)
    return replace(config, notices=(*notices, *machine_notices), source=source, file_modules=file_modules)


def _add_layer(given: Layer, layer: Layer) -> None:
    """Adds a layer, whose values win; `env_kwargs.NAME` sets one entry of the mapping `env_kwargs`."""
    for name, (value, where) in layer.items():
        key, dot, entry = name.partition(".")
        if dot and key == "env_kwargs":
            whole = given[key][0] if key in given else None
            if whole is not None and not isinstance(whole, Mapping):
                continue  # it is refused below
            name, value = key, {**(whole or {}), entry: value}
        given[name] = (value, where)


def _rename(layer: Layer, notices: list[str]) -> Layer:
    """Returns a layer with the current key names, and adds a notice for each key that had an older one."""
    renamed: Layer = {}
    spelled: dict[str, str] = {}
    for name, (value, where) in layer.items():
        new = RENAMED_KEYS.get(name, name)
        if new in renamed and renamed[new][0] != value:
            other, other_where = spelled[new], renamed[new][1]
            place = f" ({other_where})" if other_where else ""
            raise ConfigError(
                f"the same key as {other}{place}, which says {show_value(renamed[new][0])}",
                key=name,
                given=value,
                where=where,
            )
        if new != name:
            notices.append(f"{name} is read as {new}, its name here")
        renamed[new], spelled[new] = (value, where), name
    return renamed


def _value_notices(config: Config, given: Layer) -> list[str]:
    """Returns lines about the given values: old spellings, and keys that another key makes meaningless."""
    notices = []
    old = []
    for name, rules in keys_of(Config).items():
        value = given[name][0] if name in given else None
        if isinstance(value, str) and value in rules.aliases:
            old.append(f"{name}: {value} is {rules.aliases[value]}")
    if old:
        notices.append(f"old names accepted: {', '.join(old)}")
    if config.representation == "Basic_Identical" and given.get("representation_hidden_size", (None, None))[0]:
        notices.append("representation_hidden_size has no effect: Basic_Identical has no layers")
    # A file with every key was written by an earlier run, so the user may not have chosen this value.
    if "compile" in given and config.device == "cpu" and len(given) < len(keys_of(Config)):
        notices.append("compile has no effect on the CPU: the update is native or eager there")
    if config.agent == "PPO_KL" and given.get("learner", ("PPOKL_Learner",))[0] != "PPOKL_Learner":
        notices.append("learner has no effect: agent PPO_KL has PPOKL_Learner")
    if len(given) < len(keys_of(Config)):
        others = _of_the_other_agent(config) + _of_other_schedules(config)
        notices += [f"{name} has no effect: {reason}" for name, reason in others if name in given]
    if config.policy == "Categorical_AC" and given.get("activation_action", (None, None))[0]:
        notices.append("activation_action has no effect: it acts on the mean of Gaussian_AC")
    return notices


def _of_the_other_agent(config: Config) -> list[tuple[str, str]]:
    """Returns the keys that have no effect with this agent, each with its reason."""
    if config.agent == "PPO_KL":
        return [("clip_range", "PPO_KL does not clip the probability ratio; kl_coef and target_kl limit it")]
    reason = "PPO_KL only; PPO limits the ratio with clip_range"
    keys = [("kl_coef", reason)]
    if not config.early_stop_kl:
        keys.append(("target_kl", f"{reason}, and by target_kl only with early_stop_kl: True"))
    return keys


def _of_other_schedules(config: Config) -> list[tuple[str, str]]:
    """Returns the keys that have no effect with this `lr_schedule`, each with its reason."""
    schedule = config.lr_schedule
    readers = {"end_factor_lr_decay": ("linear", "late"), "lr_decay_start": ("late",), "desired_kl": ("kl",)}
    return [
        (name, f"lr_schedule is {schedule}; {' and '.join(of)} read{'s' * (len(of) == 1)} it")
        for name, of in readers.items()
        if schedule not in of
    ]


def _fit_machine(config: Config) -> tuple[Config, list[str]]:
    """Returns the configuration for this machine, and the lines that say what was replaced.

    Raises:
        ConfigError: If the machine lacks a CUDA device of that number, or the logger's package.
    """
    notices = []
    if config.device.startswith("cuda"):
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(config.device.partition(":")[2] or 0)
        if count == 0:
            notices.append(f"warning: there is no CUDA device, so {config.device} is not available; running on the CPU")
            config = replace(config, device="cpu")
        elif index >= count:
            last = f"cuda:{count - 1}"
            raise ConfigError("no such device", key="device", given=config.device, allowed=f"cpu, cuda:0 to {last}")
    if config.logger == "wandb" and not _installed("wandb"):
        raise ConfigError(
            "wandb is not installed; pip install wandb",
            key="logger",
            given="wandb",
            allowed="tensorboard, none",
        )
    return config, notices


def _installed(module: str) -> bool:
    """Returns whether `module` can be imported. A mere folder of that name, such as wandb makes, does not count."""
    if module in sys.modules:
        return sys.modules[module] is not None
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None
