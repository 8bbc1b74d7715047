"""Registers a task of one's own with Gymnasium."""

from collections.abc import Callable
from typing import Any, TypeVar

import gymnasium
from gymnasium.envs.registration import EnvSpec

from xcfast.errors import TaskError
from xcfast.tasks.env import TaskEnv
from xcfast.tasks.task import GymnasiumTask, MujocoTask

_MAKE: Any = TaskEnv
Kind = TypeVar("Kind", bound=type[MujocoTask] | type[GymnasiumTask])


def register(env_id: str, max_episode_steps: int | None = None) -> Callable[[Kind], Kind]:
    """Returns a class decorator that gives a task an id, for `gymnasium.make`, configurations and the command line.

    Args:
        env_id: The id, such as "RunBackwards-v0". Where the class's module is not imported yet, the id is
            "my_module:RunBackwards-v0".
        max_episode_steps: The time limit in steps. None: that of the class that it is derived from, or of Gymnasium's
            task below it; without these, none.

    Raises:
        TaskError: The class is not a task.
    """

    def decorate(kind: Kind) -> Kind:
        limit = task_spec(kind).max_episode_steps if max_episode_steps is None else max_episode_steps
        gymnasium.register(
            env_id,
            entry_point=_MAKE,
            max_episode_steps=limit,
            vector_entry_point="xcfast.envs.make:make_task_envs",
            kwargs={"task": kind},
        )
        return kind

    return decorate


def task_spec(kind: Any) -> EnvSpec:
    """Returns the specification with which `gymnasium.make` makes a task's environment.

    It is what the class is registered as. A class without an id has the time limit of the class that it is derived
    from, or of Gymnasium's task below it, if there is one.

    Raises:
        TaskError: `kind` is not the class of a task.
    """
    if not (isinstance(kind, type) and issubclass(kind, MujocoTask | GymnasiumTask)):
        raise TaskError(f"a task must be a class derived from MujocoTask or GymnasiumTask; got {kind!r}")
    registered = {spec.kwargs.get("task"): spec for spec in gymnasium.registry.values() if "task" in spec.kwargs}
    if kind in registered:
        return registered[kind]
    limit = next((registered[one].max_episode_steps for one in kind.__mro__ if one in registered), _base_limit(kind))
    return EnvSpec(f"{kind.__name__}-v0", entry_point=_MAKE, max_episode_steps=limit, kwargs={"task": kind})


def _base_limit(kind: Any) -> int | None:
    """Returns the time limit of Gymnasium's task below a task; None where there is none."""
    spec = gymnasium.registry.get(kind.env_id) if issubclass(kind, GymnasiumTask) else None
    return None if spec is None else spec.max_episode_steps
