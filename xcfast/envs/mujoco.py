"""MujocoVecEnv: Gymnasium's own MuJoCo tasks, stepped by threads in C++, with Gymnasium's numbers bit for bit."""

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from xcfast.envs import classic_state, mujoco_state
from xcfast.envs.mujoco_engine import build_engine
from xcfast.envs.mujoco_infos import reset_info, step_info
from xcfast.envs.mujoco_tasks import find_task
from xcfast.envs.native import NativeVecEnv
from xcfast.envs.native_check import check_against_gymnasium
from xcfast.envs.native_draws import Draw
from xcfast.errors import NotNativeError, SimulationError

if TYPE_CHECKING:
    from xcfast.envs.own_task import OwnTask

_MAX_WARNINGS = 16  # kWarnings in csrc/mujoco/simulations.hpp
_NUM_TERMS = 6  # the fields of Terms
_CONSTANTS = ("model", "init_qpos", "init_qvel", "frame_skip", "dt", "metadata", "observation_structure")


class MujocoVecEnv(NativeVecEnv):
    """N environments of one of Gymnasium's MuJoCo tasks (v4 and v5), stepped in C++ on a pool of threads.

    Observations, terminations, truncations and resets, seeded or not, are those of `gymnasium.make(env_id)` bit for
    bit. So are the rewards, except for Reacher and Pusher on a CPU for which numpy's BLAS has its own order of
    operations: there they agree within one unit of float32's last place. Results do not depend on the number of
    threads.

    Contact forces (`cfrc_ext`) of the simulations are computed only for tasks whose observation or reward needs them.

    Arguments, attributes and errors are those of `NativeVecEnv`.
    """

    _attributes = ("data", *_CONSTANTS)

    @staticmethod
    def _check(env_id: str | type, env_kwargs: dict[str, Any]) -> None:
        check_against_gymnasium(env_id, env_kwargs, functools.partial(MujocoVecEnv, check=False))

    def _prepare(self, num_envs: int) -> tuple[int, Draw]:
        base = self._base
        if classic_state.is_known(base):
            kind = f"{type(base).__module__}.{type(base).__qualname__}"
            raise NotNativeError(f"{kind} is not one of Gymnasium's MuJoCo classes; ClassicControlVecEnv steps it")
        import mujoco

        self._own = _own_task(base, num_envs)
        self._task = find_task(base) if self._own is None else self._own.built_in
        self._datas = [base.data, *(mujoco.MjData(base.model) for _ in range(num_envs - 1))]
        if self._own is not None:
            self.exact = False
            return self._own.draw_size, self._own.draw
        assert self._task is not None
        return base.model.nq + base.model.nv, functools.partial(self._task.draw, base)

    def _build_engine(self, arrays: dict[str, Any], config: dict[str, int], pool: Any) -> Any:
        self._terms = np.zeros((self.num_envs, _NUM_TERMS))
        self._warning_counts = np.zeros((self.num_envs, _MAX_WARNINGS), np.int64)
        arrays = {**arrays, "terms": self._terms, "warning_counts": self._warning_counts}
        return build_engine(self._task, self._base, self._datas, arrays, config, pool, self._own)

    def _step_info(self, index: int) -> dict[str, Any]:
        if self._own is not None:
            return self._own.step_info(index)
        assert self._task is not None
        return step_info(self._task, self._base, self._datas[index], self._terms[index])

    def _reset_info(self, index: int) -> dict[str, Any]:
        if self._own is not None:
            return {}
        assert self._task is not None
        return reset_info(self._task, self._base, self._datas[index])

    def _get_physics(self, index: int) -> dict[str, Any]:
        if self._own is not None:
            return self._own.get_state(index, self._datas[index])
        return mujoco_state.get_physics(self._base.model, self._datas[index])

    def _set_physics(self, index: int, state: dict[str, Any]) -> None:
        if self._own is not None:
            self._own.set_state(index, self._datas[index], state)
        else:
            mujoco_state.set_physics(self._base.model, self._datas[index], state, self._base)

    def _attribute(self, name: str) -> list[Any] | None:
        if name == "data":
            return list(self._datas)
        if self._own is not None and name in ("memory", "terms", "task"):
            return self._own.attribute(name)
        return [getattr(self._base, name)] * self.num_envs if name in _CONSTANTS else None

    def _explained(self, error: SimulationError) -> SimulationError:
        if self._own is None:
            return error
        return self._own.explained(error, self._datas[error.env_index])

    def _picture(self, index: int) -> Any:
        # The renderer draws the simulation of env 0. To draw another one, its state is copied there for the moment.
        if index == 0:
            return self._base.render()
        import mujoco

        model, shown = self._base.model, self._datas[0]
        kept = mujoco.MjData(model)
        mujoco.mj_copyData(kept, model, shown)
        mujoco.mj_copyData(shown, model, self._datas[index])
        try:
            return self._base.render()
        finally:
            mujoco.mj_copyData(shown, model, kept)

    @property
    def warning_counts(self) -> dict[str, int]:
        """The number of MuJoCo's warnings so far, over all environments, by name; only those that occurred.

        BADQPOS, BADQVEL and BADQACC say that physics became unstable and MuJoCo reset the simulation.
        """
        import mujoco

        counts = self._warning_counts.sum(axis=0)
        for data in self._datas:
            now = data.warning.number
            counts[: now.size] += now
        names = {int(value): name.removeprefix("mjWARN_") for name, value in mujoco.mjtWarning.__members__.items()}
        return {names.get(kind, str(kind)): int(counts[kind]) for kind in np.flatnonzero(counts).tolist()}

    def take_reward_terms(self) -> dict[str, float]:
        """Returns the mean per step of each term of the reward, over all environments, since the last call.

        Only tasks of one's own have terms. For others, and where no step was done, it returns an empty dict.
        """
        return {} if self._own is None else self._own.take_reward_terms()


def _own_task(base: Any, num_envs: int) -> "OwnTask | None":
    if type(base).__module__ != "xcfast.tasks.env":
        return None
    from xcfast.envs.own_task import OwnTask  # which loads numba

    return OwnTask(base, num_envs)
