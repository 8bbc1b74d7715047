"""Connects a task of one's own to the native engine: compiled functions, and the memory that they work on."""

import inspect
import re
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xcfast.envs import mujoco_state
from xcfast.envs.mujoco_infos import Terms
from xcfast.envs.mujoco_tasks import Task, find_task
from xcfast.errors import SimulationError
from xcfast.tasks.compiled import compile_task
from xcfast.tasks.contacts import field_address
from xcfast.tasks.env import TaskEnv
from xcfast.tasks.records import as_numbers, empty_record

_CONTACT_FORCES = frozenset(("cacc", "cfrc_int", "cfrc_ext"))


class OwnTask:
    """A task of one's own in N environments.

    Args:
        env: Environment 0, whose task counts.
        num_envs: The number of environments, N.

    Attributes:
        task: The task of Gymnasium below it, or None.
        base: The environment of Gymnasium that has the keyword arguments of `task`, or None.
        exact: Whether the engine gives the numbers of Python to the last bit: not of every function.
        keyframe: The keyframe that episodes start from; -1: none.
        arrays: The engine's memory by name.
        draw_size: The size of an initial state.

    Raises:
        NotNativeError: A statement of the task cannot be compiled.
    """

    exact = False

    def __init__(self, env: TaskEnv, num_envs: int) -> None:
        self.env, self.base = env, env.base
        self.task: Task | None = None if env.base is None else find_task(env.base)
        self.keyframe: int = -1 if env.base is not None else env.task.keyframe_id
        self._compiled = compile_task(env)
        self._initial = as_numbers(env.task.initial_memory)
        size, terms = self._initial.size, len(env.term_names)
        self.draw_size = env.model.nq + env.model.nv + size
        self._taken = np.zeros(1 + terms)
        self.arrays = {
            "terms": np.zeros((num_envs, len(Terms._fields))),
            "own_memory": np.tile(self._initial, (num_envs, 1)),
            "own_terms": np.zeros((num_envs, terms)),
            "own_sums": np.zeros((num_envs, 1 + terms)),
            "own_action": np.zeros((num_envs, env.action_size)),
            "own_obs": np.zeros((num_envs, env.obs_size)),
        }

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        """Draws initial states [count, draw_size]: positions, velocities, memory."""
        if self.task is not None:
            states = self.task.draw(self.base, rng, count)
            return np.hstack((states, np.repeat(self._initial, count, axis=0)))
        nq, nv = self.env.model.nq, self.env.model.nv
        states = np.tile(np.concatenate((self.env.task.init_qpos, self.env.task.init_qvel)), (count, 1))
        memories = self.env.task.initial_memory.repeat(count)
        for state, memory in zip(states, memories, strict=True):
            self.env.task.reset(rng, state[:nq], state[nq : nq + nv], memory)
        return np.hstack((states, memories.view(np.ndarray).view(np.float64).reshape(count, -1)))

    def functions(self, datas: Sequence[Any]) -> tuple[dict[str, Any], Any]:
        """Returns what `_core.mujoco_engine` takes as `own`, and the objects that must live as long as the engine."""
        compiled, env = self._compiled, self.env
        fields = np.array([[field_address(data, name) for name in compiled.fields] for data in datas], np.uintp)
        fields = fields.reshape(len(datas), -1)
        start, stride = fields.__array_interface__["data"][0], fields.strides[0]
        description = {
            **compiled.addresses,
            "constants": compiled.constants.__array_interface__["data"][0],
            "obs_size": env.obs_size,
            "action_size": env.action_size,
            "memory_size": self._initial.size,
            "contact_forces": not _CONTACT_FORCES.isdisjoint(compiled.fields),
            "terms": list(env.term_names),
            "fields": [start + k * stride for k in range(len(datas))],
        }
        return description, (fields, compiled, self.arrays)

    def attribute(self, name: str) -> list[Any] | None:
        """Returns memory, terms or task of each environment, as `TaskEnv` has them; None for other names."""
        if name not in ("memory", "terms", "task"):
            return None
        if name == "task":
            return [self.env.task] * len(self.arrays["own_memory"])
        if name == "terms" and not self.env.term_names:
            return [empty_record(())[0]] * len(self.arrays["own_memory"])
        dtype = getattr(self.env, name).dtype
        return [row.view(dtype).view(np.recarray)[0] for row in self.arrays[f"own_{name}"]]

    def reset_info(self, data: Any) -> dict[str, Any]:
        """Returns what `TaskEnv.reset` returns as its info."""
        return {}

    def step_info(self, index: int, data: Any) -> dict[str, Any]:
        """Returns what `TaskEnv.step` returns as its info."""
        return dict(zip(self.env.term_names, self.arrays["own_terms"][index].tolist(), strict=True))

    def get_state(self, index: int, data: Any) -> dict[str, Any]:
        """Returns the part of an environment's state that env_state.get_state returns for a TaskEnv."""
        return {**mujoco_state.get_own_physics(self.env, data), "memory": self.arrays["own_memory"][index].copy()}

    def set_state(self, index: int, data: Any, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned."""
        mujoco_state.set_own_physics(self.env, data, state)
        self.arrays["own_memory"][index] = state["memory"]

    def explained(self, error: SimulationError, data: Any) -> SimulationError:
        """Returns an error of compiled code, with the exception that the same function raises as Python."""
        name = re.search(r"(before_step|control|step|observe) raised an exception", str(error))
        if name is None:
            return error
        env, index = self.env, error.env_index
        memory = self.arrays["own_memory"][index].copy().view(env.memory.dtype).view(np.recarray)[0]
        terms = empty_record((term, "f8", ()) for term in env.term_names)[0]
        given = {"data": data, "action": self.arrays["own_action"][index], "memory": memory, "terms": terms}
        method = getattr(env.task, name.group(1))
        try:
            method(*[given[one] for one in inspect.signature(method).parameters])
        except Exception as cause:
            place = traceback.extract_tb(cause.__traceback__)[-1]
            what = f"{type(cause).__name__}: {cause}".rstrip(": ")
            return SimulationError(f"{error}: {place.filename}:{place.lineno}: {place.line}: {what}", index)
        return error

    def take_reward_terms(self) -> dict[str, float]:
        """Returns the mean of each term per step since the last call; empty if there was no step."""
        # Differences, since the engine may be adding in another thread.
        now = self.arrays["own_sums"].sum(axis=0)
        sums, self._taken = now - self._taken, now
        if sums[0] == 0:
            return {}
        return dict(zip(self.env.term_names, (sums[1:] / sums[0]).tolist(), strict=True))
