"""Vector environments with Gymnasium's interface, and autoreset in the same step by default.

Names are imported on first use, so that a worker process loads only what it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xcfast.envs.registration import register

if TYPE_CHECKING:
    from xcfast.envs.classic import ClassicControlVecEnv
    from xcfast.envs.construct import make_env_fn
    from xcfast.envs.make import make_envs, make_native_or_subproc
    from xcfast.envs.mujoco import MujocoVecEnv
    from xcfast.envs.native import NativeVecEnv
    from xcfast.envs.serial import DummyVecEnv
    from xcfast.envs.subproc import SubprocVecEnv
    from xcfast.envs.vec_env import VecEnv, check_spaces
    from xcfast.errors import (
        EnvError,
        NotNativeError,
        SimulationError,
        WorkerDiedError,
        WorkerError,
        WorkerTimeoutError,
    )
    from xcfast.resources import available_cpus

_MODULE_OF = {
    "ClassicControlVecEnv": "envs.classic",
    "DummyVecEnv": "envs.serial",
    "EnvError": "errors",
    "MujocoVecEnv": "envs.mujoco",
    "NativeVecEnv": "envs.native",
    "NotNativeError": "errors",
    "SimulationError": "errors",
    "SubprocVecEnv": "envs.subproc",
    "VecEnv": "envs.vec_env",
    "WorkerDiedError": "errors",
    "WorkerError": "errors",
    "WorkerTimeoutError": "errors",
    "available_cpus": "resources",
    "check_spaces": "envs.vec_env",
    "make_env_fn": "envs.construct",
    "make_envs": "envs.make",
    "make_native_or_subproc": "envs.make",
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
    value = getattr(import_module(f"xcfast.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


# `gymnasium.make_vec("xcfast.envs:xcfast/Ant-v5")` imports this module and expects the id to be known then.
register()
