"""The parent's side of the worker processes: their start, commands, answers, errors and end."""

import os
import pickle
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from gymnasium import Space
from numpy.typing import NDArray

from xcfast.envs.channel import Channel
from xcfast.envs.sending import to_send
from xcfast.envs.serial import EnvFn
from xcfast.envs.shared_memory import Buffers, array_in, buffers_in, create_memory, map_memory
from xcfast.envs.worker import MESSAGE, STEP, failure
from xcfast.envs.worker_process import WorkerProcess
from xcfast.errors import EnvError, WorkerDiedError, WorkerError, WorkerTimeoutError
from xcfast.resources import available_cpus

PARENT_SPIN_SECONDS = 50e-6  # about the cost of a sleep and a wake-up
# During a rollout the next step comes soon, and waking a sleeping CPU can cost more than a cheap step.
WORKER_SPIN_SECONDS = 1e-3
_SLICE_SECONDS = 0.1  # a wait is interrupted this often, to run signal handlers and see whether the workers live
_START_SECONDS = 60.0  # the least time for the imports of a worker, and for one constructor
_EXIT_SECONDS = 5.0  # for a worker to end by itself once its environments are closed
_INTERRUPTED_SECONDS = 5.0  # for an interrupted call to make progress before the environments are closed

Request = tuple[str, tuple[Any, ...]]  # a method of EnvSlice and its arguments


class WorkerPool:
    """K worker processes, each with a contiguous slice of the environments.

    Args:
        env_fns: Constructors of all environments.
        slices: (start, stop) of each worker's environments.
        timeout: Seconds that one environment may take for one request, such as a step or a reset.
        infos: Whether steps answer with the environments' infos.
        action_masks: Whether steps and resets write action masks.
        next_step: Whether an environment whose episode ended is reset by the next step instead of the same one.
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        slices: Sequence[tuple[int, int]],
        *,
        timeout: float,
        infos: bool,
        action_masks: bool = False,
        next_step: bool = False,
    ) -> None:
        self._core = _load_core()
        self.slices = slices
        self._timeout = timeout
        self._infos, self._action_masks, self._next_step = infos, action_masks, next_step
        self._env_fns: Sequence[EnvFn] = env_fns
        self._processes: list[WorkerProcess] = []
        self._memory_fd = -1
        self._sync: Any = None
        self._progress: NDArray[np.int32] = np.full(len(slices), -1, np.int32)
        self._stepping = False  # whether a step was published whose end has not been seen yet
        self._owing: list[int] = []  # workers whose answer is still to come
        self._ended = ""  # why the workers are gone
        self._not_closed: list[str] = []  # a text for each environment, or worker, whose close failed

    def build(self) -> dict[str, Any]:
        """Starts the workers, which make the environments; returns the description of the first environment."""
        timeout = max(self._timeout, _START_SECONDS)
        self._memory_fd = create_memory()
        for _ in self.slices:
            self._processes.append(WorkerProcess(self._memory_fd))
        pythonpath = {name: os.environ.get(name) for name in ("PYTHONPATH", "PYTHONSAFEPATH")}
        for worker, (start, stop) in enumerate(self.slices):
            setup = {
                "sys_path": [os.path.abspath(path) for path in sys.path],
                "environ": pythonpath,
                "env_fns": to_send(list(self._env_fns[start:stop]), "env_fns"),
                "infos": self._infos,
                "action_masks": self._action_masks,
                "next_step": self._next_step,
            }
            self._send(worker, setup, timeout)
        self._owing = list(range(len(self.slices)))
        descriptions = self._answers(timeout)
        self._env_fns = ()
        for worker, description in enumerate(descriptions):
            for kind in ("observation_space", "action_space"):
                if description[kind] != descriptions[0][kind]:
                    raise EnvError(
                        f"{kind} of all envs must be equal; env 0 has {descriptions[0][kind]}, "
                        f"env {self.slices[worker][0]} has {description[kind]}"
                    )
        description = descriptions[0]
        description["state_supported"] = all(one["state_supported"] for one in descriptions)
        return description

    def attach(self, observation_space: Space[Any], action_space: Space[Any]) -> Buffers:
        """Lays out the shared memory, passes it to the workers and returns the parent's view of it."""
        num_envs, num_workers = self.slices[-1][1], len(self.slices)
        layout = num_envs, observation_space, action_space, self._action_masks
        _, end = buffers_in(None, self._core.Sync.nbytes, *layout)
        _, nbytes = array_in(None, end, (num_workers,), np.int32)
        os.ftruncate(self._memory_fd, nbytes)
        memory = map_memory(self._memory_fd)
        os.close(self._memory_fd)
        self._memory_fd = -1
        buffers, _ = buffers_in(memory, self._core.Sync.nbytes, *layout)
        self._progress, _ = array_in(memory, end, (num_workers,), np.int32)
        cpus = available_cpus()
        spin_yields = cpus <= num_workers + 1
        # If the workers use all CPUs, a parent that spins only slows them down.
        self._sync = self._core.Sync(memory, PARENT_SPIN_SECONDS if cpus > num_workers else 0.0, spin_yields)
        for worker, rows in enumerate(self.slices):
            plan = {
                "worker": worker,
                "num_workers": num_workers,
                "layout": layout,
                "rows": rows,
                "spin_seconds": WORKER_SPIN_SECONDS,
                "spin_yields": spin_yields,
            }
            self._send(worker, plan, self._timeout)
        self._owing = list(range(num_workers))
        self._answers(max(self._timeout, _START_SECONDS))
        return buffers

    def step(self) -> list[Any] | None:
        """Steps all environments; returns the infos of each worker, or None without `infos`."""
        self._finish_interrupted(self._timeout)
        self._stepping = True
        self._sync.publish(STEP, len(self.slices))
        return self._step_answers(self._timeout)

    def request(self, requests: Sequence[Request]) -> list[Any]:
        """Has every worker run its request; returns the answers in the order of the workers."""
        self._finish_interrupted(self._timeout)
        packed = [Channel.pack(request) for request in requests]  # an object that cannot be pickled raises here
        self._sync.publish(MESSAGE, len(self.slices))
        try:
            for worker, request in enumerate(packed):
                self._send_packed(worker, request, self._timeout)
        except WorkerError as error:
            raise self._lost(error, [worker]) from None
        except BaseException:  # some workers know of the request, some do not
            self._end("a request was interrupted")
            raise
        self._owing = list(range(len(self.slices)))
        return self._answers(self._timeout)

    def close(self) -> list[str]:
        """Closes the environments of all workers that live, and ends the workers in any case.

        Returns:
            One text for each environment that could not be closed. It also reports those that an earlier error made
            this pool close.
        """
        self._shut_down("closed", range(len(self.slices)))
        failures, self._not_closed = self._not_closed, []
        return failures

    def _lost(self, error: WorkerError, workers: Sequence[int]) -> WorkerError:
        """Ends all workers because some died or hang, and closes the environments of the others; returns the error."""
        for worker in workers:
            self._processes[worker].kill()
        self._shut_down(str(error), [worker for worker in range(len(self.slices)) if worker not in workers])
        return error

    def _shut_down(self, reason: str, workers: Sequence[int]) -> None:
        try:
            if self._sync is not None:  # else these workers do not serve requests yet, or they have ended
                self._close_envs(workers)
        finally:
            self._end(reason)

    def _close_envs(self, workers: Sequence[int]) -> None:
        """Makes these workers close their environments, each as soon as it has finished its current work.

        The answers to an interrupted call come first and are dropped: a worker announces that it begins to close.
        """
        self._sync.publish(MESSAGE, len(self.slices))
        request = Channel.pack(("close", ()))
        patience = Patience(self._progress, min(self._timeout, _INTERRUPTED_SECONDS))
        waiting, closing = list(workers), set()
        for worker in workers:
            with suppress(WorkerError):  # a worker that is gone is noticed below
                self._send_packed(worker, request, self._timeout)
        while waiting:
            for worker in waiting.copy():
                try:
                    message = self._receive(worker, patience)
                except WorkerError as error:
                    self._not_closed.append(f"closing the environments failed: {error}")
                    self._processes[worker].kill()
                    waiting.remove(worker)
                    continue
                if message is None:
                    continue
                status, answer = message
                if status == "closing":
                    closing.add(worker)
                    patience.renew(worker, self._timeout)
                elif worker in closing:
                    self._not_closed += [str(self._raised(worker, answer))] if status == "error" else answer
                    waiting.remove(worker)
        deadline = time.monotonic() + _EXIT_SECONDS
        for worker in workers:
            self._processes[worker].wait(deadline - time.monotonic())

    def _end(self, reason: str) -> None:
        """Ends the workers and all processes that their environments started, and frees their resources."""
        self._ended = self._ended or reason
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.end()
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1
        self._sync = None
        self._stepping, self._owing = False, []
        self._progress = self._progress.copy()  # no longer in the shared memory

    # --- waiting

    def _step_answers(self, timeout: float) -> list[Any] | None:
        finished = self._sync.wait_finished(_SLICE_SECONDS) or self._wait_finished(timeout)
        self._stepping = False
        if self._infos:
            self._owing = list(range(len(self.slices)))
        elif finished == 2:  # only a worker that failed answers, and it left its place in `progress`
            self._owing = np.flatnonzero(self._progress >= 0).tolist()
        else:
            return None
        return self._answers(timeout)

    def _wait_finished(self, timeout: float) -> int:
        """Waits for all workers to report the end of a step; returns 1, or 2 if a worker failed."""
        patience = Patience(self._progress, timeout)
        while not (finished := self._sync.wait_finished(_SLICE_SECONDS)):
            for worker, process in enumerate(self._processes):
                if process.ended():
                    raise self._lost(self._died(worker), [worker])
            if hung := self._hung(patience.late()):
                raise self._lost(self._timed_out(hung, timeout), hung)
        return finished

    def _hung(self, late: NDArray[np.bool_]) -> list[int]:
        """Returns the workers that have not finished a step and are late."""
        if not late.any():
            return []
        # A worker that has failed keeps its place in `progress`; its answer is there already.
        silent = [worker for worker, process in enumerate(self._processes) if not process.channel.has_message()]
        at_work = [worker for worker in silent if self._progress[worker] >= 0]
        # If none is at work, one of them has not begun, and it is unknown which.
        return [worker for worker in at_work if late[worker]] if at_work else silent if late[silent].all() else []

    def _answers(self, timeout: float) -> list[Any]:
        """Receives an answer from each worker that must send one; raises the first error among them.

        Args:
            timeout: Seconds that a worker may take for one environment.
        """
        patience = Patience(self._progress, timeout)
        answers: dict[int, Any] = {}
        while self._owing:
            for worker in list(self._owing):
                try:
                    message = self._receive(worker, patience)
                except WorkerError as error:
                    raise self._lost(error, [worker]) from None
                if message is not None:
                    answers[worker] = message
                    self._owing.remove(worker)
        for worker, (status, answer) in sorted(answers.items()):
            if status == "error":
                raise self._raised(worker, answer)
        return [answer for _, (_, answer) in sorted(answers.items())]

    def _receive(self, worker: int, patience: "Patience") -> tuple[str, Any] | None:
        """Returns a worker's answer, or None if it has not come within a short time.

        Raises:
            WorkerDiedError: The worker has ended without an answer.
            WorkerTimeoutError: The worker has been busy with one environment for too long.
        """
        process = self._processes[worker]
        ended = process.ended()  # checked before the channel, because a worker may answer and then end
        try:
            while (message := process.channel.receive(_SLICE_SECONDS))[0] == "building":
                patience.renew(worker, patience.limits[worker])
            return message
        except pickle.UnpicklingError as error:
            return failure(-1, error)
        except TimeoutError:
            if not ended:
                if patience.late()[worker]:
                    raise self._timed_out([worker], patience.limits[worker]) from None
                return None
        except (EOFError, ConnectionError):
            pass
        raise self._died(worker)

    def _finish_interrupted(self, timeout: float) -> None:
        """Waits for what an interrupted call (by KeyboardInterrupt, say) left running, and drops its result."""
        if self._ended:
            raise WorkerError(f"the workers are gone: {self._ended}")
        if self._stepping or self._owing:
            try:
                if self._stepping:
                    self._step_answers(timeout)
                else:
                    self._answers(timeout)
            except (WorkerDiedError, WorkerTimeoutError):
                raise
            except WorkerError:
                pass

    def _send(self, worker: int, message: Any, timeout: float) -> None:
        self._send_packed(worker, Channel.pack(message), timeout)

    def _send_packed(self, worker: int, packed: bytes, timeout: float) -> None:
        try:
            self._processes[worker].channel.send_packed(packed, timeout)
        except TimeoutError:
            raise self._timed_out([worker], timeout) from None
        except ConnectionError:
            raise self._died(worker) from None

    # --- errors

    def _raised(self, worker: int, report: dict[str, Any]) -> WorkerError:
        index = self._env_index(worker, report["env"])
        building = "while it made its environments" if self._env_fns else "while it answered"
        where = building if index is None else f"in environment {index}"
        return WorkerError(
            f"worker {worker} raised {report['exception_type']} {where}; its traceback:\n\n{report['traceback']}",
            worker=worker,
            env_index=index,
            exception_type=report["exception_type"],
            exception_message=report["exception_message"],
        )

    def _died(self, worker: int) -> WorkerDiedError:
        process = self._processes[worker]
        status = process.end() if process.wait(1.0) else None
        how = "closed its connection" if status is None else f"exited with status {status}"
        if status is not None and status < 0:
            how = f"was killed by {_signal_name(-status)}"
            how += " (by the system for lack of memory?)" if -status == signal.SIGKILL else ""
        index = self._env_index(worker, int(self._progress[worker]))
        message = f"{self._name(worker)} {how}" + ("" if index is None else f" in environment {index}")
        return WorkerDiedError(message, worker=worker, env_index=index)

    def _timed_out(self, workers: Sequence[int], timeout: float) -> WorkerTimeoutError:
        """Describes workers that hang; their faulthandlers print where in Python they are."""
        index = self._env_index(workers[0], int(self._progress[workers[0]]))
        for worker in workers:
            self._processes[worker].show_stack()
        time.sleep(_SLICE_SECONDS)
        message = f"no answer within {timeout:g} s from {', '.join(map(self._name, workers))}"
        message += "" if index is None else f"; at work on environment {index}"
        message += "; the place where it hangs was printed to stderr; the key env_timeout sets how many seconds one "
        message += "environment may take for a step or a reset"
        return WorkerTimeoutError(message, worker=workers[0], env_index=index)

    def _name(self, worker: int) -> str:
        start, stop = self.slices[worker]
        return f"worker {worker} (process {self._processes[worker].pid}, environments {start} to {stop - 1})"

    def _env_index(self, worker: int, local_index: int) -> int | None:
        return None if local_index < 0 else self.slices[worker][0] + local_index


class Patience:
    """Tells which workers have been busy with one environment for longer than a limit.

    Args:
        progress: int32 [K], the index of the environment that each worker is at work on, which the workers write.
        limit: Seconds that a worker may take for one environment.

    Attributes:
        limits: float [K], the limit of each worker.
    """

    def __init__(self, progress: NDArray[np.int32], limit: float) -> None:
        self.limits = np.full(progress.size, limit)
        self._progress = progress
        self._seen = progress.copy()
        self._since = np.full(progress.size, time.monotonic())

    def renew(self, worker: int, limit: float) -> None:
        """Notes that a worker begins with another environment, for which it may take `limit` seconds."""
        self._since[worker] = time.monotonic()
        self.limits[worker] = limit

    def late(self) -> NDArray[np.bool_]:
        """Returns bool [K], True for workers that have been at one environment for longer than the limit."""
        moved = self._progress != self._seen
        self._seen[moved] = self._progress[moved]
        self._since[moved] = time.monotonic()
        return time.monotonic() - self._since > self.limits


def _load_core() -> Any:
    try:
        from xcfast import _core
    except ImportError as error:
        raise EnvError(
            f"SubprocVecEnv needs the compiled core of xcfast, which is missing ({error}): build it with "
            "`pip install -e .`, or take DummyVecEnv (vectorize=DummyVecEnv)"
        ) from None
    return _core


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
