"""The base class of the native vector environments, which C++ threads step, bit for bit like Gymnasium."""

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from xcfast.envs.construct import make_env_fn
from xcfast.envs.env_state import STANDARD_WRAPPERS
from xcfast.envs.native_draws import Draw, ResetDraws
from xcfast.envs.shared_memory import Buffers, buffers_in
from xcfast.envs.vec_env import (
    NEXT_STEP,
    RUNNING,
    STEP_FAILED,
    Phase,
    StepInfos,
    StepResult,
    VecEnv,
    autoreset_mode_of,
    description_of,
)
from xcfast.errors import NotNativeError, SimulationError
from xcfast.resources import available_cpus

_DRAWN_AHEAD = 32

Method = TypeVar("Method", bound=Callable[..., Any])


def exclusive(method: Method) -> Method:
    """Lets one Python thread at a time into a method of a NativeVecEnv. Another thread gets an error.

    Where a simulation failed, the environment may say more.
    """

    @functools.wraps(method)
    def guarded(self: "NativeVecEnv", *args: Any, **kwargs: Any) -> Any:
        if not self._turn.acquire(False):  # the name of the argument would double the time
            raise RuntimeError(f"{type(self).__name__} is in use by another thread; it serves one thread at a time")
        try:
            return method(self, *args, **kwargs)
        except SimulationError as error:
            raise self._explained(error) from None
        finally:
            self._turn.release()

    return guarded  # type: ignore[return-value]


class NativeVecEnv(VecEnv):
    """N environments of one Gymnasium task, stepped in C++ on a pool of threads.

    Environment 0 is made by `gymnasium.make` too, so keyword arguments and attributes are Gymnasium's. Results do not
    depend on the number of threads. `MujocoVecEnv` and `ClassicControlVecEnv` are the two kinds.

    Args:
        env_id: Gymnasium's id; for `MujocoVecEnv` also the class of a task of one's own, see `xcfast.tasks`.
        num_envs: The number of environments, N.
        num_threads: The number of threads that step; None or 0 for as many as this process may use.
        infos: Whether to deliver the environments' own infos too, as Gymnasium does, which is slower.
        copy: Whether `reset` and `step` return copies; else they return the internal arrays, which the next step
            overwrites.
        autoreset_mode: "same_step" or "next_step", see `VecEnv`.
        episode_statistics: Whether infos report each episode's return and length, see `VecEnv`.
        check: Whether to compare a few steps with Gymnasium's first (once per process and arguments).
        **env_kwargs: Keyword arguments of `gymnasium.make`.

    Attributes:
        num_threads: The number of threads that step.

    Raises:
        NotNativeError: The engine does not know the environment, or its numbers differ from Gymnasium's on this
            machine. `make_native_or_subproc` falls back to SubprocVecEnv.
        EnvError: Gymnasium cannot make the environment.

    Note:
        One Python thread may use it at a time; another gets a RuntimeError.
    """

    def __init__(
        self,
        env_id: str | type,
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
        self.exact = True  # whether the numbers are to be those of the single environments to the last bit
        if check:
            self._check(env_id, env_kwargs)
        mode = autoreset_mode_of(autoreset_mode)
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1; got {num_envs}")
        env = make_env_fn(env_id, **env_kwargs)()
        try:
            self._base, self._limit = _bare(env)
            draw_size, draw = self._prepare(num_envs)
            super().__init__(
                num_envs,
                description_of(env, state_supported=True),
                copy=copy,
                infos=infos,
                autoreset_mode=mode,
                episode_statistics=episode_statistics,
            )
            self._id = "" if env.spec is None else env.spec.id
            self._draws = ResetDraws(num_envs, draw_size, _DRAWN_AHEAD, draw)
            self._make_memory()
            self._make_engine(num_threads or available_cpus())
        except BaseException:
            env.close()
            raise
        self._env = env
        self._turn = threading.Lock()
        self.closed = False

    # The parts that differ between the kinds of native environments.

    @staticmethod
    def _check(env_id: str | type, env_kwargs: dict[str, Any]) -> None:
        """Compares environments of this kind with Gymnasium's.

        Raises:
            NotNativeError: Their numbers differ.
        """
        raise NotImplementedError

    def _prepare(self, num_envs: int) -> tuple[int, Draw]:
        """Finds out the task of `self._base`; returns the size of an initial state and the function that draws it.

        Raises:
            NotNativeError: The engine does not know the environment.
        """
        raise NotImplementedError

    def _build_engine(self, arrays: dict[str, Any], config: dict[str, int], pool: Any) -> Any:
        raise NotImplementedError

    def _draw_with(self, options: dict[str, Any] | None) -> Draw | None:
        """Returns how `reset` draws the next initial state with these options; None: as without options."""
        return None

    def _step_info(self, index: int) -> dict[str, Any]:
        raise NotImplementedError

    def _reset_info(self, index: int) -> dict[str, Any]:
        raise NotImplementedError

    def _get_physics(self, index: int) -> dict[str, Any]:
        """Returns the part of an environment's state that this kind adds, in the form of env_state.get_state."""
        raise NotImplementedError

    def _set_physics(self, index: int, state: dict[str, Any]) -> None:
        raise NotImplementedError

    def _attribute(self, name: str) -> list[Any] | None:
        """Returns an attribute of each environment; None if there is none of that name."""
        raise NotImplementedError

    def _explained(self, error: SimulationError) -> SimulationError:
        """Returns an error of the engine, with more about its cause where that can be found out."""
        return error

    def _picture(self, index: int) -> Any:
        """Returns the frame of one environment."""
        raise NotImplementedError

    def probes(self, rng: np.random.Generator) -> list[dict[str, Any]]:
        """Returns further states from which one step is compared with Gymnasium's."""
        return []

    _attributes: tuple[str, ...]

    def _make_memory(self) -> None:
        num_envs, spaces = self.num_envs, (self.single_observation_space, self.single_action_space)
        _, nbytes = buffers_in(None, 0, num_envs, *spaces)
        self._buffers, _ = buffers_in(bytearray(nbytes), 0, num_envs, *spaces)
        # The same arrays if they have the engine's types; else arrays of types that hold their numbers exactly.
        self._rows: Buffers = self._buffers._replace(
            obs=_as_type(self._buffers.obs, np.float64),
            final_obs=_as_type(self._buffers.final_obs, np.float64),
            actions=_as_type(self._buffers.actions, np.float32),
        )
        self._elapsed = np.zeros(num_envs, np.int64)
        self._finished_returns = np.zeros(num_envs)
        self._finished_lengths = np.zeros(num_envs, np.int64)

    def _make_engine(self, num_threads: int) -> None:
        from xcfast import _core

        arrays = {
            **self._rows._asdict(),
            "episode_returns": self.episode_returns,
            "episode_lengths": self.episode_lengths,
            "finished_returns": self._finished_returns,
            "finished_lengths": self._finished_lengths,
            "elapsed": self._elapsed,
            "draws": self._draws.rows,
            "drawn": self._draws.drawn,
            "used": self._draws.used,
        }
        config = {
            "max_episode_steps": self._limit or 0,
            "draws_capacity": self._draws.capacity,
            "obs_size": int(np.prod(self._rows.obs.shape[1:])),
            "num_envs": self.num_envs,
        }
        self.num_threads = min(num_threads, self.num_envs)
        self._pool = _core.ThreadPool(self.num_threads)
        self._engine = self._build_engine(arrays, config, self._pool)

    reset = exclusive(VecEnv.reset)
    get_state = exclusive(VecEnv.get_state)
    call = exclusive(VecEnv.call)

    @exclusive
    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned; see `VecEnv.set_state`."""
        VecEnv.set_state(self, state)
        if self._rows.obs is not self._buffers.obs:
            self._rows.obs[...] = self._buffers.obs

    @exclusive
    def step(self, actions: Any) -> StepResult:
        """Steps all environments, see `VecEnv.step`."""
        self._take(actions)
        buffers = self._buffers
        if self._rows.actions is not buffers.actions:
            self._check_choices()
            self._rows.actions[...] = buffers.actions
        if self.autoreset_mode is NEXT_STEP:
            return self._step_next()
        self._phase = STEP_FAILED
        ended = self._engine.step(not self.infos)
        infos = self._env_infos() if self.infos else {}
        self._phase = RUNNING
        self._deliver()
        if ended:
            if ended == 2:
                self._draws.refill()
            done = buffers.terminated | buffers.truncated
            if self._rows.final_obs is not buffers.final_obs:
                buffers.final_obs[done] = self._rows.final_obs[done]
            np.copyto(self.episode_returns, self._finished_returns, where=done)
            np.copyto(self.episode_lengths, self._finished_lengths, where=done)
            self._report_ends(infos, done)
        return self._results(infos)

    def _step_next(self) -> StepResult:
        """Steps all environments with NEXT_STEP autoreset.

        The engine steps those that are to be reset too, which changes nothing, since a reset sets their whole state.
        """
        buffers = self._buffers
        restarted = np.flatnonzero(buffers.terminated | buffers.truncated).tolist()
        self._rows.actions[restarted] = 0
        self._phase = Phase.STEP_FAILED
        self._engine.step(False)
        for flags in (buffers.rewards, buffers.terminated, buffers.truncated):
            flags[restarted] = 0
        done = buffers.terminated | buffers.truncated
        self._rows.obs[done] = self._rows.final_obs[done]
        if restarted:
            self._engine.reset(restarted)
            self._draws.refill()
        infos: dict[str, Any] = {}
        for index in range(self.num_envs if self.infos else 0):
            infos = self._add_info(infos, (self._reset_info if index in restarted else self._step_info)(index), index)
        self._phase = Phase.RUNNING
        self._deliver()
        if done.any():
            self._report_ends(infos, done)
        return self._results(infos)

    def _check_choices(self) -> None:
        """Raises ValueError if an action is not in the Discrete space, which starts with 0."""
        space, actions = self.single_action_space, self._buffers.actions
        assert isinstance(space, Discrete)
        if (actions < 0).any() or (actions >= space.n).any():
            raise ValueError(f"actions must be in [0, {space.n}); got {actions.tolist()}")

    def _deliver(self) -> None:
        """Copies the engine's observations to an array of the environment's own type, if that differs."""
        if self._rows.obs is not self._buffers.obs:
            np.copyto(self._buffers.obs, self._rows.obs, casting="same_kind")

    @property
    def engine(self) -> Any:
        """The `_core.EnvEngine`, for native code that steps the environments itself; see `drive`."""
        return self._engine

    @property
    def observations(self) -> NDArray[np.float64]:
        """The current observations float64 [N, *obs_shape]: the engine's array."""
        return self._rows.obs

    @exclusive
    def drive(self, run: Callable[[], bool]) -> None:
        """Lets native code step the environments: calls run() until it returns True.

        If it returns False, an environment has used up its initial states, or some time has passed. New initial states
        are drawn before the next call. Between two calls, Python runs signal handlers, so that Ctrl-C works.

        Raises:
            SimulationError: MuJoCo raised an error. The environments need a `reset`.
        """
        if self.closed or self._phase is not Phase.RUNNING:
            raise self._not_ready("step")
        self._phase = Phase.STEP_FAILED
        self._draws.refill(ahead=True)
        while not run():
            self._draws.refill()
        self._deliver()
        self._phase = Phase.RUNNING

    def _env_infos(self) -> dict[str, Any]:
        """Returns the infos of the step just done, and resets the environments whose episode ended."""
        done = np.flatnonzero(self._buffers.terminated | self._buffers.truncated).tolist()
        envs: StepInfos = [(self._step_info(index), None) for index in range(self.num_envs)]
        if done:
            self._engine.reset(done)
            self._draws.refill()
        for index in done:
            envs[index] = self._reset_info(index), envs[index][0]
        return self._joined(envs)

    def _reset_envs(
        self, seeds: list[int | None], options: dict[str, Any] | None, mask: list[bool] | None
    ) -> list[dict[str, Any]] | None:
        draw = self._draw_with(options)
        chosen = [index for index in range(self.num_envs) if mask is None or mask[index]]
        for index in chosen:
            seed = seeds[index]
            if seed is not None:
                self._draws.seed(index, seed)
            else:
                self._draws.fill(index, 1)
            if draw is not None:
                self._draws.redraw_next(index, draw)
        self._engine.reset(chosen)
        self._draws.refill()
        self._deliver()
        if not self.infos:
            return None
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in chosen:
            infos[index] = self._reset_info(index)
        return infos

    def _ask(self, method: str, *args: Any) -> list[Any]:
        if method == "get_state":
            return [self._get_env_state(index) for index in range(self.num_envs)]
        if method == "set_state":
            for index, state in enumerate(args[0]):
                self._set_env_state(index, state)
            return []
        values = self._attribute(args[0]) if method == "call" else None
        if values is not None:
            return values
        raise AttributeError(
            f"the environments of {type(self).__name__} are not Python objects: {method}({args[0]!r}) works with "
            f"DummyVecEnv and SubprocVecEnv; here one can get {', '.join(self._attributes)}"
        )

    def _get_env_state(self, index: int) -> dict[str, Any]:
        generator, seed = self._draws.get_state(index)
        elapsed = None if self._limit is None else int(self._elapsed[index])
        own = {"np_random": generator, "np_random_seed": seed, "elapsed_steps": elapsed, "has_reset": True}
        return {**self._get_physics(index), **own}

    def _set_env_state(self, index: int, state: dict[str, Any]) -> None:
        self._set_physics(index, state)
        self._draws.set_state(index, state["np_random"], state["np_random_seed"])
        self._elapsed[index] = state["elapsed_steps"] or 0

    def _env_id(self) -> str:
        return self._id

    @exclusive
    def render(self) -> tuple[Any, ...]:
        """Returns the frames of all environments, N of them, as their `render_mode` says."""
        self._check_open()
        return tuple(self._picture(index) for index in range(self.num_envs))

    @exclusive
    def close_extras(self, **kwargs: Any) -> None:
        """Ends the threads."""
        self._pool.stop()
        self._env.close()


def _bare(env: gymnasium.Env) -> tuple[Any, int | None]:
    """Returns the environment below the wrappers, and its time limit (None: no limit)."""
    limits = []
    while isinstance(env, gymnasium.Wrapper):
        if type(env) not in STANDARD_WRAPPERS:
            raise NotNativeError(f"it is wrapped in {type(env).__name__}")
        if type(env) is TimeLimit:
            limits.append(env._max_episode_steps)
        env = env.env
    if len(limits) > 1:
        raise NotNativeError("it has two time limits")
    if env.render_mode == "human":
        raise NotNativeError("render_mode='human' draws a window for each environment")
    return env, limits[0] if limits else None


def _as_type(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Returns the array itself if it has that type, else an array with room for its numbers."""
    return array if array.dtype == dtype else np.zeros(array.shape, dtype)
