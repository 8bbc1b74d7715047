"""MujocoVecEnv: Gymnasium's own MuJoCo tasks, and users', stepped by threads in C++ with the numbers of Python."""

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from xcfast.envs import classic_state
from xcfast.envs.built_in_task import BuiltInTask
from xcfast.envs.mujoco_engine import build_engine
from xcfast.envs.native import NativeVecEnv
from xcfast.envs.native_check import check_against_gymnasium
from xcfast.envs.native_draws import Draw
from xcfast.errors import NotNativeError, SimulationError
from xcfast.tasks import is_task_env

if TYPE_CHECKING:
    from xcfast.envs.own_task import OwnTask

_MAX_WARNINGS = 16  # kWarnings in csrc/mujoco/simulations.hpp
_CONSTANTS = ("model", "init_qpos", "init_qvel", "frame_skip", "dt", "metadata", "observation_structure")


class MujocoVecEnv(NativeVecEnv):
    """N environments of one MuJoCo task, stepped in C++ on a pool of threads.

    The task is one of Gymnasium's (v4 and v5), or a user's, see `xcfast.tasks`. For Gymnasium's tasks, observations,
    terminations, truncations and resets, seeded or not, are those of `gymnasium.make(env_id)` bit for bit. So are the
    rewards, except for Reacher and Pusher on a CPU for which numpy's BLAS has its own order of operations: there they
    agree within one unit of float32's last place. Results do not depend on the number of threads.

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

        self._kind = _kind_of(base, num_envs)
        self.exact = self._kind.exact
        self._datas = [base.data, *(mujoco.MjData(base.model) for _ in range(num_envs - 1))]
        return self._kind.draw_size, self._kind.draw

    def _build_engine(self, arrays: dict[str, Any], config: dict[str, int], pool: Any) -> Any:
        self._warning_counts = np.zeros((self.num_envs, _MAX_WARNINGS), np.int64)
        arrays = {**arrays, "warning_counts": self._warning_counts}
        return build_engine(self._kind, self._base, self._datas, arrays, config, pool)

    def _step_info(self, index: int) -> dict[str, Any]:
        return self._kind.step_info(index, self._datas[index])

    def _reset_info(self, index: int) -> dict[str, Any]:
        return self._kind.reset_info(self._datas[index])

    def _get_physics(self, index: int) -> dict[str, Any]:
        return self._kind.get_state(index, self._datas[index])

    def _set_physics(self, index: int, state: dict[str, Any]) -> None:
        self._kind.set_state(index, self._datas[index], state)

    def _attribute(self, name: str) -> list[Any] | None:
        if name == "data":
            return list(self._datas)
        return [getattr(self._base, name)] * self.num_envs if name in _CONSTANTS else self._kind.attribute(name)

    def _explained(self, error: SimulationError) -> SimulationError:
        return self._kind.explained(error, self._datas[error.env_index])

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
        return self._kind.take_reward_terms()


def _kind_of(base: Any, num_envs: int) -> "BuiltInTask | OwnTask":
    if not is_task_env(type(base)):
        return BuiltInTask(base, num_envs)
    from xcfast.envs.own_task import OwnTask  # which loads numba

    return OwnTask(base, num_envs)
