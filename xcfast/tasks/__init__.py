"""Your own MuJoCo tasks: arithmetic in Python, compiled by numba, stepped by C++ threads. See docs/own_tasks.md.

Names are imported on first use, since they load MuJoCo.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xcfast.tasks.env import TaskEnv
    from xcfast.tasks.registration import register
    from xcfast.tasks.task import GymnasiumTask, MujocoTask

_MODULE_OF = {"GymnasiumTask": "task", "MujocoTask": "task", "TaskEnv": "env", "register": "registration"}

__all__ = ["GymnasiumTask", "MujocoTask", "TaskEnv", "is_task_env", "register"]


def is_task_env(kind: Any) -> bool:
    """Returns whether a class is `TaskEnv`, without loading it."""
    return isinstance(kind, type) and (kind.__module__, kind.__qualname__) == ("xcfast.tasks.env", "TaskEnv")


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'xcfast.tasks' has no attribute {name!r}")
    value = getattr(import_module(f"xcfast.tasks.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
