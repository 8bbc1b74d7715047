"""Reads the arguments of a XuanCe script, and makes a ``Config`` from them."""

from __future__ import annotations

import os
import random
import sys
from argparse import Namespace
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, get_args

import gymnasium
import numpy as np
import torch

from xcfast.config import Config, ConfigError, load_config, shipped_config
from xcfast.config.keys import INERT_KEYS, RENAMED_KEYS, keys_of, nearest_name
from xcfast.config.schema import hints
from xcfast.config.yaml_file import read_file
from xcfast.envs import make_env_fn
from xcfast.output.console import say
from xcfast.xuance.checks import values_of
from xcfast.xuance.raw_environment import REGISTRY_ENV, is_own, with_own_environment

# Arguments that XuanCe's scripts have besides the configuration's keys.
_OF_SCRIPTS = {
    *("test", "benchmark", "method", "algo", "env", "config", "config_path", "result_path", "is_test"),
    *("observation_space", "action_space", "agent_name", "episode_length"),
}
_ENV_FAMILIES = {name.lower().replace(" ", "_"): name for name in get_args(hints()["env_name"])}
_FALLEN_BACK: set[str] = set()


def load_yaml(file_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the keys and values of a YAML file.

    Raises:
        ConfigError: The file cannot be read, or has a key that no PPO run knows, which is probably a misspelling. If
            `env_name` is in ``REGISTRY_ENV``, such a key may be the environment's.
    """
    layer = read_file(file_dir)
    own = is_own(layer["env_name"][0]) if "env_name" in layer else False
    for name, (_, where) in layer.items():
        if not own and not _known(name):
            nearest = nearest_name(name, (*keys_of(Config), *RENAMED_KEYS, *INERT_KEYS))
            allowed = "the keys that python -m xcfast.config lists"
            raise ConfigError("unknown key", key=name, allowed=allowed, nearest=nearest, where=where)
    return {name: value for name, (value, _) in layer.items()}


def get_configs(file_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Does the same as ``load_yaml``, under its name until XuanCe 1.4.3."""
    return load_yaml(file_dir)


def recursive_dict_update(basic_dict: Mapping[str, Any], target_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a deep copy of ``basic_dict`` with the values of ``target_dict``; dicts in both are merged."""
    merged = dict(deepcopy(basic_dict))
    for name, value in target_dict.items():
        if isinstance(value, Mapping):
            below = merged.get(name)
            value = recursive_dict_update(below if isinstance(below, Mapping) else {}, value)
        merged[name] = value
    return merged


def get_arguments(
    algo: str | None = None,
    env: str | None = None,
    env_id: str | None = None,
    config_path: str | os.PathLike[str] | None = None,
    parser_args: Namespace | Mapping[str, Any] | None = None,
    is_test: bool = False,
    *,
    method: str | None = None,
) -> Namespace:
    """Returns all keys of a run: those of the task's shipped file, then the given file, then the command line.

    If none of them has ``policy``, the result has the one that fits the environment's actions. It stays ``auto`` if the
    environment cannot be made, or if only the file names its module.

    Args:
        algo: ``ppo``; ``method`` is its older name.
        env: The family: ``mujoco``, ``classic_control``, ``box2d``; or a name of ``REGISTRY_ENV``.
        env_id: Gymnasium's id.
        config_path: A YAML file, relative to the current folder.
        parser_args: The result of argparse, or a dict. A value None counts as not given.
        is_test: Whether ``RunnerDRL.run()`` tests by default.
        method: See ``algo``.

    Raises:
        ConfigError: There is no such algorithm, family or file.
    """
    name = str(method if algo is None else algo)
    if name.lower() not in ("ppo", "ppo_clip", "ppoclip", "ppo_kl", "ppokl"):
        raise ConfigError("not available", key="algo", given=name, allowed="ppo, ppo_kl")
    if env is not None and env.lower() not in _ENV_FAMILIES and env not in REGISTRY_ENV:
        raise ConfigError("not available", key="env", given=env, allowed=", ".join(_ENV_FAMILIES))
    given: dict[str, Any] = {}
    if env_id is not None:
        shipped = None if env in REGISTRY_ENV else shipped_config(env_id)
        if shipped is not None:
            given |= _renamed(load_yaml(shipped))
            if env is not None and given["env_name"] != _ENV_FAMILIES[env.lower()]:
                raise ConfigError(f"does not fit {env_id}, whose env_name is {given['env_name']}", key="env", given=env)
        elif env is not None:
            given["env_name"] = _ENV_FAMILIES.get(env.lower(), env)
        given["env_id"] = env_id
    if name.lower().endswith("kl"):
        given |= {"agent": "PPO_KL", "learner": "PPOKL_Learner"}
    in_file = {} if config_path is None else load_yaml(config_path)
    on_line = {} if parser_args is None else values_of("parser_args", parser_args)
    on_line = {key: value for key, value in on_line.items() if value is not None}
    given |= _renamed(in_file)
    given |= _renamed(on_line)
    if env_id is not None and given["env_id"] != env_id:
        source = "parser_args" if "env_id" in on_line else config_path
        print(f"env_id is {given['env_id']}, which {source} sets, not {env_id}", file=sys.stderr)
    if name.lower().endswith("kl") and _todays_agent(given["agent"]) != "PPO_KL":
        print(f"agent is {given['agent']}, which the configuration sets, not {name}", file=sys.stderr)
    if "policy" not in given and "env_id" in given:
        own = str(with_own_environment(given)["env_id"])
        # An id that only the file names may not import its module here; the policy then stays "auto".
        if ":" not in str(given["env_id"]) or given["env_id"] in (env_id, on_line.get("env_id")):
            given |= _fitting_policy(own)
    values = Config().to_dict() | given
    if is_test:
        values["test_mode"] = True
    return Namespace(**values)


def _fitting_policy(env_id: str) -> dict[str, str]:
    """Returns the key ``policy`` that fits an environment's actions, or {} if the environment cannot be made.

    The function that makes the training environments reports that error.
    """
    try:
        env = make_env_fn(env_id)()
    except Exception:
        return {}
    discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
    env.close()
    return {"policy": "Categorical_AC" if discrete else "Gaussian_AC"}


def to_config(args: Namespace | Mapping[str, Any] | Config | Any, **changes: Any) -> Config:
    """Makes the configuration that a script's arguments describe.

    Args:
        args: An object with the keys as attributes, or a mapping of them.
        **changes: Keys that win over those of ``args``.

    Raises:
        ConfigError: The configuration cannot be run.
    """
    if isinstance(args, Config):
        given: dict[str, Any] = args.to_dict()
    else:
        given = values_of("config", args)
    env_name = given.get("env_name")
    own = is_own(env_name)
    given = with_own_environment(given)
    strange = [name for name in given if not _known(name) and name not in _OF_SCRIPTS]
    config = load_config(None, {**_renamed({n: v for n, v in given.items() if _known(n)}), **changes})
    if strange:
        near = {name: nearest_name(name, keys_of(Config)) for name in strange}
        listed = ", ".join(f"{name} (did you mean {close}?)" if close else name for name, close in near.items())
        line = f"keys that only {env_name} reads" if own else "ignored arguments, which are not keys"
        object.__setattr__(config, "notices", (*config.notices, f"{line}: {listed}"))
    return config


def keys_of_class(config: Namespace | Mapping[str, Any] | Config | Any, agent: str) -> dict[str, Any]:
    """Returns the keys that an agent's class sets, whatever the configuration says.

    A configuration's ``PPO`` may be no more than the default, so a class for ``PPO_KL`` warns and wins. A
    configuration's ``PPO_KL`` is a choice, so a class for ``PPO`` refuses it.

    Args:
        config: The script's arguments.
        agent: ``PPO`` or ``PPO_KL``.

    Raises:
        ConfigError: The configuration says ``PPO_KL``, and the class clips.
    """
    given = _todays_agent(config.agent if isinstance(config, Config) else values_of("config", config).get("agent"))
    if (agent, given) == ("PPO", "PPO_KL"):
        allowed = "PPO_Clip; or PPOKL_Agent, or PPO_Agent, which follows the configuration"
        raise ConfigError("contradicts PPOCLIP_Agent", key="agent", given=given, allowed=allowed)
    if agent == "PPO":
        return {"agent": agent}
    if given == "PPO":
        say("warning: PPOKL_Agent trains with agent PPO_KL; the configuration's agent is PPO", error=True)
    return {"agent": agent, "learner": "PPOKL_Learner"}


def _todays_agent(name: Any) -> Any:
    return keys_of(Config)["agent"].aliases.get(name, name)


def _known(name: str) -> bool:
    return name in keys_of(Config) or name in RENAMED_KEYS or name in INERT_KEYS


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values under their current key names, so that all layers use the same ones."""
    return {RENAMED_KEYS.get(name, name): value for name, value in values.items()}


def get_total_iters(agent_name: str, config: Namespace | Any) -> int:
    """Returns the number of gradient steps in the run. A scheduler is stepped once after each of them.

    Args:
        agent_name: XuanCe's name of the algorithm. All names of PPO count alike.
        config: The script's arguments.
    """
    return to_config(config).num_updates


def set_seed(seed: int) -> None:
    """Seeds the global generators of torch, numpy and Python.

    A policy that a script makes draws its weights from them. Everything else in a run has generators of its own, made
    from the configuration's seeds.
    """
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (a user's own code may draw from it)
    random.seed(seed)


def set_device(expected_device: str | torch.device | None) -> torch.device:
    """Returns the device, or the CPU if the device is not available, after printing a line that says so."""
    name = "cpu" if expected_device is None else str(expected_device)
    name = "cuda:0" if name.lower() == "gpu" else name
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        if name not in _FALLEN_BACK:
            print(f"xcfast: there is no CUDA device, so {name} is not available; using the CPU", file=sys.stderr)
            _FALLEN_BACK.add(name)
        name = "cpu"
    return torch.device(name)


def space2shape(space: gymnasium.Space[Any] | tuple[int, ...]) -> Any:
    """Returns the shape of a space: a tuple as it is, a dict of shapes for a Dict space."""
    if isinstance(space, tuple):
        return space
    if isinstance(space, gymnasium.spaces.Dict):
        return {name: space2shape(one) for name, one in space.items()}
    return space.shape
