"""XuanCe's names and signatures, on the objects that the command line uses.

A script for XuanCe's PPO runs with ``from xcfast.xuance import ...`` in place of its imports from ``xuance``.
docs/from_xuance.md says what is done differently, and why.

Names are imported on first use, so that a worker process with a script's own environment does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xcfast.xuance.agent import PPO_Agent, PPOCLIP_Agent, PPOKL_Agent
    from xcfast.xuance.arguments import (
        get_arguments,
        get_configs,
        get_total_iters,
        load_yaml,
        recursive_dict_update,
        set_device,
        set_seed,
        space2shape,
    )
    from xcfast.xuance.environment import XuanCeVecEnv, make_envs
    from xcfast.xuance.networks import (
        ActivationFunctions,
        Basic_Identical,
        Basic_MLP,
        Categorical_AC_Policy,
        Gaussian_AC_Policy,
        NormalizeFunctions,
    )
    from xcfast.xuance.raw_environment import REGISTRY_ENV, RawEnvironment
    from xcfast.xuance.runner import REGISTRY_Agents, RunnerDRL, get_runner

_MODULE_OF = {
    **dict.fromkeys(("PPO_Agent", "PPOCLIP_Agent", "PPOKL_Agent"), "agent"),
    **dict.fromkeys(("get_arguments", "get_configs", "get_total_iters", "load_yaml"), "arguments"),
    **dict.fromkeys(("recursive_dict_update", "set_device", "set_seed", "space2shape"), "arguments"),
    **dict.fromkeys(("XuanCeVecEnv", "make_envs"), "environment"),
    **dict.fromkeys(("ActivationFunctions", "NormalizeFunctions", "Basic_Identical", "Basic_MLP"), "networks"),
    **dict.fromkeys(("Categorical_AC_Policy", "Gaussian_AC_Policy"), "networks"),
    **dict.fromkeys(("REGISTRY_ENV", "RawEnvironment"), "raw_environment"),
    **dict.fromkeys(("REGISTRY_Agents", "RunnerDRL", "get_runner"), "runner"),
}

__all__ = [
    "REGISTRY_ENV",
    "ActivationFunctions",
    "Basic_Identical",
    "Basic_MLP",
    "Categorical_AC_Policy",
    "Gaussian_AC_Policy",
    "NormalizeFunctions",
    "PPOCLIP_Agent",
    "PPOKL_Agent",
    "PPO_Agent",
    "REGISTRY_Agents",
    "RawEnvironment",
    "RunnerDRL",
    "XuanCeVecEnv",
    "get_arguments",
    "get_configs",
    "get_runner",
    "get_total_iters",
    "load_yaml",
    "make_envs",
    "recursive_dict_update",
    "set_device",
    "set_seed",
    "space2shape",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'xcfast.xuance' has no attribute {name!r}")
    value = getattr(import_module(f"xcfast.xuance.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
