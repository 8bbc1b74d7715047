"""XuanCe's names and signatures, on the objects that the command line uses.

A script for XuanCe's PPO runs with ``from xcfast.xuance import ...`` in place of its imports from ``xuance``. What is
done differently, and why, is in docs/from_xuance.md.
"""

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
from xcfast.xuance.runner import REGISTRY_Agents, RunnerDRL, get_runner

__all__ = [
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
