"""Registers a task of one's own with Gymnasium."""

from collections.abc import Callable
from typing import Any, TypeVar

import gymnasium

from xcfast.errors import TaskError
from xcfast.tasks.env import TaskEnv
from xcfast.tasks.task import GymnasiumTask, MujocoTask

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
        spec = task_spec(kind, env_id, max_episode_steps)
        gymnasium.registry[env_id] = spec
        return kind

    return decorate


def task_spec(kind: Any, env_id: str = "", max_episode_steps: int | None = None) -> gymnasium.envs.registration.EnvSpec:
    """Returns the specification with which `gymnasium.make` makes a task's environment.

    Args:
        kind: The task's class.
        env_id: Its id; by default the name of the class.
        max_episode_steps: The time limit in steps; None: none.

    Raises:
        TaskError: `kind` is not the class of a task.
    """
    if not (isinstance(kind, type) and issubclass(kind, MujocoTask | GymnasiumTask)):
        raise TaskError(f"a task must be a class derived from MujocoTask or GymnasiumTask; got {kind!r}")
    return gymnasium.envs.registration.EnvSpec(
        env_id or f"{kind.__name__}-v0",
        entry_point=TaskEnv,
        max_episode_steps=max_episode_steps,
        kwargs={"task": kind},
        vector_entry_point="xcfast.envs.make:make_native_or_subproc",
    )
