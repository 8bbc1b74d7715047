"""ClassicControlVecEnv: Gymnasium's classic control tasks, stepped by threads in C++, with Gymnasium's bits."""

import functools
from typing import Any

import numpy as np

from xcfast.envs import classic_state
from xcfast.envs.classic_tasks import find_task
from xcfast.envs.native import NativeVecEnv
from xcfast.envs.native_check import check_against_gymnasium
from xcfast.envs.native_draws import Draw
from xcfast.errors import NotNativeError

_PROBES = 200


class ClassicControlVecEnv(NativeVecEnv):
    """N environments of one of Gymnasium's classic control tasks, stepped in C++ on a pool of threads.

    CartPole-v0 and -v1, Acrobot-v1, Pendulum-v1, MountainCar-v0, MountainCarContinuous-v0. Observations, rewards,
    terminations, truncations and resets, seeded or not, are those of `gymnasium.make(env_id)` bit for bit. Results do
    not depend on the number of threads.

    Arguments, attributes and errors are those of `NativeVecEnv`.
    """

    @staticmethod
    def _check(env_id: str | type, env_kwargs: dict[str, Any]) -> None:
        check_against_gymnasium(env_id, env_kwargs, functools.partial(ClassicControlVecEnv, check=False))

    def _prepare(self, num_envs: int) -> tuple[int, Draw]:
        base = self._base
        if type(base).__module__.startswith("gymnasium.envs.mujoco."):
            kind = f"{type(base).__module__}.{type(base).__qualname__}"
            raise NotNativeError(f"{kind} is not one of Gymnasium's classic control classes; MujocoVecEnv may step it")
        self._task = task = find_task(base)
        self._attributes = ("state", "metadata", *task.constants)
        self._states = np.zeros((num_envs, task.row_size))
        return task.draw_size, task.draw()

    def _build_engine(self, arrays: dict[str, Any], config: dict[str, int], pool: Any) -> Any:
        from xcfast import _core

        task, arrays = self._task, {**arrays, "states": self._states}
        try:
            return _core.classic_engine(task.name, task.values(self._base), config, arrays, pool)
        except ValueError as error:
            raise NotNativeError(str(error)) from None

    def _draw_with(self, options: dict[str, Any] | None) -> Draw | None:
        return self._task.draw(options) if options else None

    def _step_info(self, index: int) -> dict[str, Any]:
        return {}

    def _reset_info(self, index: int) -> dict[str, Any]:
        return {}

    def _get_physics(self, index: int) -> dict[str, Any]:
        return {"physics": self._task.to_physics(self._states[index])}

    def _set_physics(self, index: int, state: dict[str, Any]) -> None:
        self._states[index] = self._task.to_row(classic_state.check_physics(self._task.name, state))

    def _attribute(self, name: str) -> list[Any] | None:
        if name == "state":
            return [self._task.to_physics(row) for row in self._states]
        return [getattr(self._base, name)] * self.num_envs if name in self._attributes else None

    def _picture(self, index: int) -> Any:
        classic_state.set_physics(self._base, self._get_physics(index))
        if self._task.name == "Pendulum" and self._elapsed[index]:
            self._base.last_u = self._buffers.actions[index, 0]
        return self._base.render()

    def probes(self, rng: np.random.Generator) -> list[dict[str, Any]]:
        """Returns states of all magnitudes that the class reaches, and larger angles, in both precisions."""
        task = self._task
        rows = rng.uniform(-1, 1, (_PROBES, len(task.probe))) * task.probe
        return [{"physics": row.astype(np.float32) if task.flagged and k % 2 else row} for k, row in enumerate(rows)]
