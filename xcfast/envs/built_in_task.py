"""BuiltInTask: one of Gymnasium's MuJoCo tasks in the native engine. OwnTask is its counterpart for a user's task."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xcfast.envs import mujoco_state
from xcfast.envs.mujoco_infos import Terms, reset_info, step_info
from xcfast.envs.mujoco_tasks import find_task
from xcfast.errors import SimulationError


class BuiltInTask:
    """One of Gymnasium's tasks in N environments.

    Args:
        base: Environment 0 without its wrappers.
        num_envs: The number of environments, N.

    Attributes:
        task: Gymnasium's task, whose C++ counterpart the engine runs.
        base: The environment of Gymnasium that has the keyword arguments of the task.
        exact: Whether the engine gives the numbers of `base` to the last bit.
        keyframe: The keyframe that episodes start from; -1: none.
        arrays: The engine's memory by name.
        draw_size: The size of an initial state.

    Raises:
        NotNativeError: The engine does not know the class of `base`.
    """

    exact = True
    keyframe = -1

    def __init__(self, base: Any, num_envs: int) -> None:
        self.base = base
        self.task = find_task(base)
        self.draw_size = base.model.nq + base.model.nv
        self.arrays = {"terms": np.zeros((num_envs, len(Terms._fields)))}

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        """Draws initial states [count, draw_size]: positions and velocities."""
        return self.task.draw(self.base, rng, count)

    def functions(self, datas: Sequence[Any]) -> tuple[dict[str, Any] | None, Any]:
        """Returns what describes a user's functions to the engine, here none; see `OwnTask.functions`."""
        return None, None

    def step_info(self, index: int, data: Any) -> dict[str, Any]:
        """Returns what the class's `step` returns as its info."""
        return step_info(self.task, self.base, data, self.arrays["terms"][index])

    def reset_info(self, data: Any) -> dict[str, Any]:
        """Returns what the class's `reset` returns as its info."""
        return reset_info(self.task, self.base, data)

    def get_state(self, index: int, data: Any) -> dict[str, Any]:
        """Returns the part of an environment's state that env_state.get_state takes from the simulation."""
        return mujoco_state.get_physics(self.base.model, data)

    def set_state(self, index: int, data: Any, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned."""
        mujoco_state.set_physics(self.base.model, data, state, self.base)

    def attribute(self, name: str) -> list[Any] | None:
        """Returns an attribute of each environment that only some tasks have; None if there is none of that name."""
        return None

    def explained(self, error: SimulationError, data: Any) -> SimulationError:
        """Returns an error of the engine, with more about its cause if that can be found out."""
        return error

    def take_reward_terms(self) -> dict[str, float]:
        """Returns the mean of each term since the last call; see `MujocoVecEnv.take_reward_terms`."""
        return {}
