"""ClassicControlVecEnv: Gymnasium's classic control, stepped by threads in C++, bit for bit as Gymnasium steps it."""

import functools
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

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

    Args:
        env_id: Gymnasium's id, such as "CartPole-v1".
        num_envs: The number of environments, N.
        num_threads: The number of threads that step; None or 0 for as many as this process may use.
        infos: Whether to deliver the tasks' own infos too, which are empty except at the end of an episode.
        copy: Whether `reset` and `step` return copies; else they return the internal arrays, which the next step
            overwrites.
        autoreset_mode: "same_step" or "next_step", see `VecEnv`.
        episode_statistics: Whether infos report each episode's return and length, see `VecEnv`.
        check: Whether to compare steps with Gymnasium's first (once per process and arguments).
        **env_kwargs: Keyword arguments of `gymnasium.make`.

    Attributes:
        num_threads: The number of threads that step.

    Raises:
        NotNativeError: `env_id` is not one of these tasks, or the engine's numbers differ from Gymnasium's on this
            machine. `make_native_or_subproc` falls back to SubprocVecEnv.
        EnvError: Gymnasium cannot make it.

    Note:
        One Python thread may use it at a time; another gets a RuntimeError.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        num_threads: int | None = None,
        infos: bool = False,
        *,
        copy: bool = True,
        autoreset_mode: str | AutoresetMode = "same_step",
        episode_statistics: bool = True,
        check: bool = True,
        **env_kwargs: Any,
    ) -> None:
        self.closed = True  # until there is something to close
        if check:
            check_against_gymnasium(env_id, env_kwargs, functools.partial(ClassicControlVecEnv, check=False))
        super().__init__(
            env_id,
            num_envs,
            num_threads,
            infos,
            copy=copy,
            autoreset_mode=autoreset_mode,
            episode_statistics=episode_statistics,
            env_kwargs=env_kwargs,
        )

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
        """Returns states of all magnitudes that the class reaches, and larger angles, in either precision."""
        task = self._task
        rows = rng.uniform(-1, 1, (_PROBES, len(task.probe))) * task.probe
        return [{"physics": row.astype(np.float32) if task.flagged and k % 2 else row} for k, row in enumerate(rows)]
