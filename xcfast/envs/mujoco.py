"""MujocoVecEnv: Gymnasium's own MuJoCo tasks, stepped by threads in C++, with Gymnasium's numbers bit for bit."""

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray

from xcfast.envs import mujoco_state
from xcfast.envs.cpus import available_cpus
from xcfast.envs.env_slice import StepInfos
from xcfast.envs.mujoco_check import check_against_gymnasium, make_env
from xcfast.envs.mujoco_draws import ResetDraws
from xcfast.envs.mujoco_engine import build_engine
from xcfast.envs.mujoco_infos import reset_info, step_info
from xcfast.envs.mujoco_tasks import Found, find_task
from xcfast.envs.shared_memory import buffers_in
from xcfast.envs.vec_env import VecEnv

_DRAWN_AHEAD = 32
_MAX_WARNINGS = 16  # kWarnings in csrc/mujoco/engine.hpp
_NUM_TERMS = 6  # of Terms

Method = TypeVar("Method", bound=Callable[..., Any])


def _exclusive(method: Method) -> Method:
    """Lets one Python thread at a time into a method of MujocoVecEnv; another gets an error."""

    @functools.wraps(method)
    def guarded(self: "MujocoVecEnv", *args: Any, **kwargs: Any) -> Any:
        if not self._turn.acquire(blocking=False):
            raise RuntimeError("MujocoVecEnv is in use by another thread: it serves one thread at a time")
        try:
            return method(self, *args, **kwargs)
        finally:
            self._turn.release()

    return guarded  # type: ignore[return-value]


class MujocoVecEnv(VecEnv):
    """N environments of one of Gymnasium's MuJoCo tasks (v4 and v5), stepped in C++ on a pool of threads.

    Observations, terminations, truncations and resets, seeded or not, are those of `gymnasium.make(env_id)` bit for
    bit; rewards too, but for Reacher and Pusher on a CPU for which numpy's BLAS has its own order of operations:
    there within one unit of float32's last place. Results do not depend on the number of threads.

    Contact forces (`cfrc_ext`) of the simulations are computed only for tasks that observe them or pay for them.

    Args:
        env_id: Gymnasium's id, such as "Ant-v4".
        num_envs: N.
        num_threads: threads that step; None or 0: as many as this process may use.
        infos: whether to deliver the tasks' own infos too, as Gymnasium does; slower.
        copy: whether `reset` and `step` return copies; else the internal arrays, which the next step overwrites.
        check: whether to compare a few steps with Gymnasium's first (once per process and arguments).
        **env_kwargs: for `gymnasium.make`.

    Attributes:
        num_threads: threads that step.

    Raises:
        NotNativeError: it is not one of these tasks, or Gymnasium and the engine do not agree about it on this
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
        check: bool = True,
        **env_kwargs: Any,
    ) -> None:
        self.closed = True  # until there is something to close
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1; got {num_envs}")
        if check:
            check_against_gymnasium(env_id, env_kwargs, functools.partial(MujocoVecEnv, check=False))
        env = make_env(env_id, env_kwargs)
        try:
            self._found = found = find_task(env)
            super().__init__(num_envs, _describe(env), copy=copy, infos=infos)
            self._id = "" if env.spec is None else env.spec.id
            self._simulations = self._make_simulations(found, num_envs)
            self._make_engine(found, num_threads or available_cpus())
        except BaseException:
            env.close()
            raise
        self._env = env
        self._turn = threading.Lock()
        self.closed = False

    def _make_simulations(self, found: Found, num_envs: int) -> list["_Simulation"]:
        import mujoco

        base = found.base
        nq, nv = base.model.nq, base.model.nv
        self._draws = ResetDraws(num_envs, nq + nv, _DRAWN_AHEAD, functools.partial(found.task.draw, base))
        datas = [base.data, *(mujoco.MjData(base.model) for _ in range(num_envs - 1))]
        return [_Simulation(base.model, data) for data in datas]

    def _make_engine(self, found: Found, num_threads: int) -> None:
        from xcfast import _core

        num_envs, spaces = self.num_envs, (self.single_observation_space, self.single_action_space)
        _, nbytes = buffers_in(None, 0, num_envs, *spaces)
        self._buffers, _ = buffers_in(bytearray(nbytes), 0, num_envs, *spaces)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._finished_returns = np.zeros(num_envs)
        self._finished_lengths = np.zeros(num_envs, np.int64)
        self._terms = np.zeros((num_envs, _NUM_TERMS))
        self._warning_counts = np.zeros((num_envs, _MAX_WARNINGS), np.int64)
        arrays = {
            **self._buffers._asdict(),
            "episode_returns": self.episode_returns,
            "episode_lengths": self.episode_lengths,
            "finished_returns": self._finished_returns,
            "finished_lengths": self._finished_lengths,
            "elapsed": self._elapsed,
            "draws": self._draws.rows,
            "drawn": self._draws.drawn,
            "used": self._draws.used,
            "terms": self._terms,
            "warning_counts": self._warning_counts,
        }
        self.num_threads = num_threads
        self._pool = _core.ThreadPool(num_threads)
        datas = [simulation.data for simulation in self._simulations]
        self._engine = build_engine(found, datas, arrays, _DRAWN_AHEAD, self._pool)

    reset = _exclusive(VecEnv.reset)
    get_state = _exclusive(VecEnv.get_state)
    set_state = _exclusive(VecEnv.set_state)
    call = _exclusive(VecEnv.call)

    @_exclusive
    def step(
        self, actions: Any
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Steps all envs; one whose episode ends is reset at once. See `VecEnv.step`."""
        if self.closed or self._needs_reset:
            self._check_open()
            raise RuntimeError(self._needs_reset)
        buffers = self._buffers
        actions = np.asarray(actions)
        if actions.shape != buffers.actions.shape:
            raise ValueError(f"actions must have shape {buffers.actions.shape}; got {actions.shape}")
        np.copyto(buffers.actions, actions, casting="same_kind")
        self._needs_reset = "the last step() failed: call reset() before step()"
        ended = self._engine.step(not self.infos)
        infos = self._env_infos() if self.infos else {}
        self._needs_reset = ""
        if ended:
            if ended == 2:
                self._draws.refill()
            done = buffers.terminated | buffers.truncated
            np.copyto(self.episode_returns, self._finished_returns, where=done)
            np.copyto(self.episode_lengths, self._finished_lengths, where=done)
            self._episode_infos(infos, done)
        if self.copy:
            return (
                buffers.obs.copy(),
                buffers.rewards.copy(),
                buffers.terminated.copy(),
                buffers.truncated.copy(),
                infos,
            )
        return buffers.obs, buffers.rewards, buffers.terminated, buffers.truncated, infos

    @property
    def engine(self) -> Any:
        """`_core.MujocoEngine`, for native code that steps the envs itself; see `drive`."""
        return self._engine

    @property
    def observations(self) -> NDArray[np.float64]:
        """float64 [N, *obs_shape], the current observations: the internal array."""
        return self._buffers.obs

    @_exclusive
    def drive(self, run: Callable[[], bool]) -> None:
        """Lets native code step the envs: calls run() until it returns True.

        Where it returns False, an env has no initial state left; some are drawn before it is called again.

        Raises:
            SimulationError: MuJoCo raised an error; the envs need a `reset`.
        """
        if self.closed or self._needs_reset:
            self._check_open()
            raise RuntimeError(self._needs_reset)
        self._needs_reset = "the last step() failed: call reset() before step()"
        self._draws.refill(self._draws.capacity // 2)
        while not run():
            self._draws.refill()
        self._needs_reset = ""

    def _env_infos(self) -> dict[str, Any]:
        """Infos of the step just done; resets the envs whose episode ended, which the engine has left to this."""
        task, base = self._found.task, self._found.base
        done = np.flatnonzero(self._buffers.terminated | self._buffers.truncated).tolist()
        envs: StepInfos = [
            (step_info(task, base, simulation.data, terms), None)
            for simulation, terms in zip(self._simulations, self._terms, strict=True)
        ]
        if done:
            self._engine.reset(done)
            self._draws.refill()
        for index in done:
            envs[index] = reset_info(task, base, self._simulations[index].data), envs[index][0]
        infos: dict[str, Any] = {}
        for index, (info, final_info) in enumerate(envs):
            if final_info is not None:
                infos = self._add_info(infos, {"final_info": final_info}, index)
            infos = self._add_info(infos, info, index)
        return infos

    def _reset_envs(
        self, seeds: list[int | None], options: dict[str, Any] | None, mask: list[bool] | None
    ) -> list[dict[str, Any]] | None:
        chosen = [index for index in range(self.num_envs) if mask is None or mask[index]]
        for index in chosen:
            seed = seeds[index]
            if seed is not None:
                self._draws.seed(index, seed)
            else:
                self._draws.fill(index, 1)
        self._engine.reset(chosen)
        self._draws.refill()
        if not self.infos:
            return None
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in chosen:
            infos[index] = reset_info(self._found.task, self._found.base, self._simulations[index].data)
        return infos

    @property
    def warning_counts(self) -> dict[str, int]:
        """MuJoCo's warnings since this was made, over all envs, by name; only those that occurred.

        BADQPOS, BADQVEL and BADQACC say that physics became unstable and MuJoCo reset the simulation.
        """
        import mujoco

        counts = self._warning_counts.sum(axis=0)
        for simulation in self._simulations:
            now = simulation.data.warning.number
            counts[: now.size] += now
        names = {int(value): name.removeprefix("mjWARN_") for name, value in mujoco.mjtWarning.__members__.items()}
        return {names.get(kind, str(kind)): int(counts[kind]) for kind in np.flatnonzero(counts).tolist()}

    def _ask(self, method: str, *args: Any) -> list[Any]:
        if method == "get_state":
            return [self._get_env_state(index) for index in range(self.num_envs)]
        if method == "set_state":
            for index, state in enumerate(args[0]):
                self._set_env_state(index, state)
            return []
        if method == "call" and args[0] in _CONSTANTS:
            return [getattr(self._found.base, args[0])] * self.num_envs
        if method == "call" and args[0] == "data":
            return [simulation.data for simulation in self._simulations]
        raise AttributeError(
            f"the environments of MujocoVecEnv are not Python objects: {method}({args[0]!r}) works with DummyVecEnv "
            f"and SubprocVecEnv; here one can get data, {', '.join(_CONSTANTS)}"
        )

    def _get_env_state(self, index: int) -> dict[str, Any]:
        simulation = self._simulations[index]
        state = mujoco_state.get_state(simulation)  # type: ignore[arg-type]
        generator, seed = self._draws.get_state(index)
        limited = self._found.max_episode_steps is not None
        elapsed = int(self._elapsed[index]) if limited else None
        own = {"np_random": generator, "np_random_seed": seed, "elapsed_steps": elapsed, "has_reset": True}
        return {**state, **own}

    def _set_env_state(self, index: int, state: dict[str, Any]) -> None:
        mujoco_state.set_state(self._simulations[index], state)  # type: ignore[arg-type]
        self._draws.set_state(index, state["np_random"], state["np_random_seed"])
        self._elapsed[index] = state["elapsed_steps"] or 0

    def _env_id(self) -> str:
        return self._id

    @_exclusive
    def render(self) -> Any:
        """The frame of the first env, as its `render_mode` says."""
        self._check_open()
        return self._found.base.render()

    @_exclusive
    def close_extras(self, **kwargs: Any) -> None:
        """Ends the threads."""
        self._pool.stop()
        self._env.close()


class _Simulation:
    """One env's model and data, in the shape in which mujoco_state reads an environment. Its generator is unused."""

    def __init__(self, model: Any, data: Any) -> None:
        self.model, self.data = model, data
        self.np_random, self.np_random_seed = _UNUSED_GENERATOR
        self.unwrapped = self


_UNUSED_GENERATOR = seeding.np_random(0)
_CONSTANTS = ("model", "init_qpos", "init_qvel", "frame_skip", "dt", "metadata", "observation_structure")


def _describe(env: gymnasium.Env) -> dict[str, Any]:
    return {
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "metadata": dict(env.metadata),
        "render_mode": env.render_mode,
        "spec": env.spec,
        "state_supported": True,
    }
