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
        max_episode_steps: The time limit in steps; None: none.

    Raises:
        TaskError: The class is not a task.
    """

    def decorate(kind: Kind) -> Kind:
        task_spec(kind)
        gymnasium.register(
            env_id,
            entry_point=_MAKE,
            max_episode_steps=max_episode_steps,
            vector_entry_point="xcfast.envs.make:make_task_envs",
            kwargs={"task": kind},
        )
        return kind

    return decorate


def task_spec(kind: Any) -> EnvSpec:
    """Returns the specification with which `gymnasium.make` makes a task's environment.

    It is what the class is registered as; for a class without an id, a specification without a time limit.

    Raises:
        TaskError: `kind` is not the class of a task.
    """
    if not (isinstance(kind, type) and issubclass(kind, MujocoTask | GymnasiumTask)):
        raise TaskError(f"a task must be a class derived from MujocoTask or GymnasiumTask; got {kind!r}")
    for spec in gymnasium.registry.values():
        if spec.kwargs.get("task") is kind:
            return spec
    return EnvSpec(f"{kind.__name__}-v0", entry_point=_MAKE, kwargs={"task": kind})
