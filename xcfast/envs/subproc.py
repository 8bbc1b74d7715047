"""SubprocVecEnv: environments in worker processes, which exchange all data of a step in shared memory."""

import math
import os
import warnings
import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from gymnasium.vector import AutoresetMode

from xcfast.envs.serial import EnvFn
from xcfast.envs.vec_env import StepInfos, VecEnv, autoreset_mode_of, check_spaces
from xcfast.envs.worker_pool import WorkerPool
from xcfast.errors import EnvError, WorkerError
from xcfast.resources import available_cpus


class SubprocVecEnv(VecEnv):
    """Steps N environments in K worker processes, each with a contiguous slice of them.

    The trajectories are those of DummyVecEnv, bit for bit. Workers are fresh interpreters, so a script needs no main
    guard. They end with this process, however it ends, and with each worker ends every process that its environments
    have started.

    Args:
        env_fns: Constructors of the N environments, anything that cloudpickle can pickle.
        num_workers: The number of workers, K, at most N; None for as many as this process may use CPUs.
        timeout: Seconds that one environment may take for a step, a reset or any other request; the configuration's
            key is `env_timeout`. A constructor has at least a minute.
        copy: Whether `reset` and `step` return copies; else they return the internal arrays, which the next step
            overwrites.
        infos: Whether to deliver the environments' own infos, as Gymnasium does. They are pickled at every step, which
            is slow.
        action_masks: Whether to deliver the masks of allowed actions in the attribute `action_masks`, through the
            shared memory.
        autoreset_mode: "same_step" or "next_step", see `VecEnv`.
        episode_statistics: Whether infos report each episode's return and length, see `VecEnv`.

    Raises:
        EnvError: A space has a kind that is not supported, or the compiled core is missing.
        WorkerError: A constructor raised. The message holds the worker's traceback.
        WorkerDiedError: A worker ended. All methods may raise it.
        WorkerTimeoutError: An environment took longer than `timeout`. All methods may raise it.
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        num_workers: int | None = None,
        timeout: float = 60.0,
        *,
        copy: bool = True,
        infos: bool = False,
        action_masks: bool = False,
        autoreset_mode: str | AutoresetMode = "same_step",
        episode_statistics: bool = True,
    ) -> None:
        self.closed = True  # until there is something to close
        if not env_fns:
            raise ValueError("env_fns must name at least one environment")
        if num_workers is not None and num_workers < 1:
            raise ValueError(f"num_workers must be None or at least 1; got {num_workers}")
        if not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout must be a positive number of seconds; got {timeout}")
        mode = autoreset_mode_of(autoreset_mode)
        num_envs = len(env_fns)
        self.num_workers = min(num_envs, num_workers or available_cpus())
        bounds = [num_envs * worker // self.num_workers for worker in range(self.num_workers + 1)]
        slices = list(pairwise(bounds))
        next_step = mode is AutoresetMode.NEXT_STEP
        self._pool = WorkerPool(
            env_fns, slices, timeout=timeout, infos=infos, action_masks=action_masks, next_step=next_step
        )
        # Closes at garbage collection and at exit, and leaves the workers alone in a fork of this process.
        self._closer = weakref.finalize(self, _close, self._pool, os.getpid())
        try:
            description = self._pool.build()
            check_spaces(description["observation_space"], description["action_space"])
            super().__init__(
                num_envs,
                description,
                copy=copy,
                infos=infos,
                autoreset_mode=mode,
                episode_statistics=episode_statistics,
            )
            self._buffers = self._pool.attach(self.single_observation_space, self.single_action_space)
        except BaseException:
            self._closer()
            raise
        self.closed = False

    def _reset_envs(
        self, seeds: list[int | None], options: dict[str, Any] | None, mask: list[bool] | None
    ) -> list[dict[str, Any]] | None:
        requests = [
            ("reset", (seeds[start:stop], options, None if mask is None else mask[start:stop]))
            for start, stop in self._pool.slices
        ]
        try:
            answers = self._pool.request(requests)
        except WorkerError as error:
            raise _in_one_sentence(error) from None
        return [info for answer in answers for info in answer] if self.infos else None

    def _step_envs(self) -> StepInfos | None:
        try:
            answers = self._pool.step()
        except WorkerError as error:
            raise _in_one_sentence(error) from None
        return None if answers is None else [info for answer in answers for info in answer]

    def _ask(self, method: str, *args: Any) -> list[Any]:
        def part(arg: Any, start: int, stop: int) -> Any:
            return arg[start:stop] if isinstance(arg, list) else arg

        requests = [(method, tuple(part(arg, *rows) for arg in args)) for rows in self._pool.slices]
        return [item for answer in self._pool.request(requests) for item in answer or ()]

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the environments and ends the workers; warns of environments that could not be closed."""
        self._closer()
        del self._buffers


def _in_one_sentence(error: WorkerError) -> WorkerError:
    """Returns the error, without the worker's traceback if it is an EnvError, whose message says everything."""
    if error.exception_type != EnvError.__name__:
        return error
    return WorkerError(
        error.exception_message,
        worker=error.worker,
        env_index=error.env_index,
        exception_type=error.exception_type,
        exception_message=error.exception_message,
    )


def _close(pool: WorkerPool, owner: int) -> None:
    if os.getpid() == owner:
        for failure in pool.close():
            warnings.warn(failure, RuntimeWarning, stacklevel=2)
