"""Vector environments: Gymnasium's contract, with autoreset in the same step.

Names are imported on first use, so that a worker process loads only what it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xcfast.envs.registration import register

if TYPE_CHECKING:
    from xcfast.envs.classic import ClassicControlVecEnv
    from xcfast.envs.cpus import available_cpus
    from xcfast.envs.dummy import DummyVecEnv
    from xcfast.envs.errors import (
        EnvError,
        NotNativeError,
        SimulationError,
        WorkerDiedError,
        WorkerError,
        WorkerTimeoutError,
    )
    from xcfast.envs.make import make_env_fn, make_envs, make_native_or_subproc
    from xcfast.envs.mujoco import MujocoVecEnv
    from xcfast.envs.native import NativeVecEnv
    from xcfast.envs.subproc import SubprocVecEnv
    from xcfast.envs.vec_env import VecEnv, check_spaces

_MODULE_OF = {
    "ClassicControlVecEnv": "classic",
    "DummyVecEnv": "dummy",
    "EnvError": "errors",
    "MujocoVecEnv": "mujoco",
    "NativeVecEnv": "native",
    "NotNativeError": "errors",
    "SimulationError": "errors",
    "SubprocVecEnv": "subproc",
    "VecEnv": "vec_env",
    "WorkerDiedError": "errors",
    "WorkerError": "errors",
    "WorkerTimeoutError": "errors",
    "available_cpus": "cpus",
    "check_spaces": "vec_env",
    "make_env_fn": "make",
    "make_envs": "make",
    "make_native_or_subproc": "make",
}

__all__ = [
    "ClassicControlVecEnv",
    "DummyVecEnv",
    "EnvError",
    "MujocoVecEnv",
    "NativeVecEnv",
    "NotNativeError",
    "SimulationError",
    "SubprocVecEnv",
    "VecEnv",
    "WorkerDiedError",
    "WorkerError",
    "WorkerTimeoutError",
    "available_cpus",
    "check_spaces",
    "make_env_fn",
    "make_envs",
    "make_native_or_subproc",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'xcfast.envs' has no attribute {name!r}")
    value = getattr(import_module(f"xcfast.envs.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


# `gymnasium.make_vec("xcfast.envs:xcfast/Ant-v5")` imports this module and expects the id to be known then.
register()
