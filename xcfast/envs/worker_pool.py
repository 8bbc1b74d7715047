"""The parent's side of the worker processes: start, commands, answers, errors, end."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import cloudpickle
import numpy as np
from gymnasium import Space

from xcfast.envs.channel import Channel
from xcfast.envs.serial import EnvFn
from xcfast.envs.shared_memory import Buffers, array_in, buffers_in, create_memory, map_memory
from xcfast.envs.worker import MESSAGE, STEP, failure
from xcfast.errors import EnvError, WorkerDiedError, WorkerError, WorkerTimeoutError
from xcfast.resources import available_cpus

PARENT_SPIN_SECONDS = 50e-6  # about the price of a sleep and a wake-up
# The next step is close while a rollout is collected, and waking a sleeping CPU can cost more than a cheap step.
WORKER_SPIN_SECONDS = 1e-3
_SLICE_SECONDS = 0.1  # a wait is interrupted this often, to run signal handlers and see whether the workers live
_START_SECONDS = 60.0  # the least time for imports, and for constructors without one finished
_CLOSE_SECONDS = 5.0  # for the envs' close methods

_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

Request = tuple[str | None, tuple[Any, ...]]  # a method of EnvSlice (None: do nothing) and its arguments


class WorkerPool:
    """K worker processes, each with a contiguous slice of the environments.

    Args:
        env_fns: Constructors of all environments.
        slices: (start, stop) of each worker's environments.
        timeout: Seconds that a request may take.
        infos: Whether steps answer with the environments' infos.
        action_masks: Whether steps write action masks.
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
        self._processes: list[subprocess.Popen[bytes]] = []
        self._channels: list[Channel] = []
        self._memory_fd = -1
        self._sync: Any = None
        self._progress = np.full(len(slices), -1, np.int32)
        self._stepping = False  # a step was published and its end not yet seen
        self._owing: list[int] = []  # workers whose answer is still to come
        self._ended = ""  # why there are no workers any more

    def build(self) -> dict[str, Any]:
        """Starts the workers, which make the environments; returns the description of the first worker's."""
        timeout = max(self._timeout, _START_SECONDS)
        self._memory_fd = create_memory()
        for _ in self.slices:
            self._spawn()
        pythonpath = {name: os.environ.get(name) for name in ("PYTHONPATH", "PYTHONSAFEPATH")}
        for worker, (start, stop) in enumerate(self.slices):
            setup = {
                "sys_path": [os.path.abspath(path) for path in sys.path],
                "environ": pythonpath,
                "env_fns": cloudpickle.dumps(list(self._env_fns[start:stop])),
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
        """Lays out the shared memory, hands it to the workers and returns the parent's view of it."""
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
        # Where the workers take all CPUs, a parent that spins while they work only slows them.
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
        """Steps all environments; returns the workers' infos if these are wanted."""
        self._finish_interrupted()
        self._stepping = True
        self._sync.publish(STEP, len(self.slices))
        return self._step_answers()

    def request(self, requests: Sequence[Request]) -> list[Any]:
        """Lets every worker run its request; returns the answers."""
        self._finish_interrupted()
        packed = [Channel.pack(request) for request in requests]  # what cannot be pickled raises before anybody waits
        self._sync.publish(MESSAGE, len(self.slices))
        try:
            for worker, request in enumerate(packed):
                self._send_packed(worker, request, self._timeout)
        except BaseException:  # some workers know of the request, some do not
            self._kill("a request was interrupted")
            raise
        self._owing = list(range(len(self.slices)))
        return self._answers(self._timeout)

    def close(self) -> None:
        """Closes the environments if they answer, and ends the workers in any case."""
        idle = self._sync is not None and not self._stepping and not self._owing
        try:
            if idle and all(process.poll() is None for process in self._processes):
                self._timeout = min(self._timeout, _CLOSE_SECONDS)
                self.request([("close", ())] * len(self.slices))
                self._wait_until_ended(_CLOSE_SECONDS)
        except WorkerError:
            pass  # an env that cannot close does not keep its worker
        finally:
            self._kill("closed")

    # --- processes

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        self._channels.append(Channel(ours))
        command = [
            sys.executable,
            "-m",
            "xcfast.envs.worker",
            *map(str, (theirs.fileno(), self._memory_fd, os.getpid())),
        ]
        environ = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
        # Our modules, and not those of the folder that this happens to run in.
        environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        environ["PYTHONSAFEPATH"] = "1"
        # Workers ignore SIGINT once they run; until then they inherit that it is blocked.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), self._memory_fd), env=environ
            )
            self._processes.append(process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            theirs.close()

    def _wait_until_ended(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(process.poll() is None for process in self._processes):
            time.sleep(0.002)

    def _kill(self, reason: str) -> None:
        """Ends the workers at once and releases everything that belongs to them."""
        self._ended = self._ended or reason
        for process in self._processes:
            if process.poll() is None:
                process.kill()
        self._wait_until_ended(_CLOSE_SECONDS)
        for channel in self._channels:
            channel.close()
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1
        self._sync = None
        self._stepping, self._owing = False, []
        self._progress = self._progress.copy()  # no longer in the shared memory

    # --- waiting

    def _step_answers(self) -> list[Any] | None:
        finished = self._sync.wait_finished(_SLICE_SECONDS) or self._wait_finished()
        self._stepping = False
        if self._infos:
            self._owing = list(range(len(self.slices)))
        elif finished == 2:  # only a worker that failed answers, and it left its place in `progress`
            self._owing = np.flatnonzero(self._progress >= 0).tolist()
        else:
            return None
        return self._answers(self._timeout)

    def _wait_finished(self) -> int:
        """Waits for all workers to report: 1 done, 2 done with failures."""
        deadline = time.monotonic() + self._timeout
        while not (finished := self._sync.wait_finished(_SLICE_SECONDS)):
            self._check_alive(range(len(self.slices)))
            if time.monotonic() > deadline:
                raise self._timed_out(np.flatnonzero(self._progress >= 0).tolist(), self._timeout)
        return finished

    def _answers(self, timeout: float) -> list[Any]:
        """Receives an answer from each worker that owes one; raises the first error among them.

        Args:
            timeout: Seconds that each worker has, counted anew from each report that its construction advances.
        """
        deadlines = dict.fromkeys(self._owing, time.monotonic() + timeout)
        answers: dict[int, Any] = {}
        while self._owing:
            for worker in list(self._owing):
                try:
                    while (message := self._channels[worker].receive(_SLICE_SECONDS))[0] == "building":
                        deadlines[worker] = time.monotonic() + timeout
                    answers[worker] = message
                except TimeoutError:
                    continue
                except pickle.UnpicklingError as error:
                    answers[worker] = failure(-1, error)
                except (EOFError, ConnectionError):
                    raise self._died(worker) from None
                self._owing.remove(worker)
            self._check_alive(self._owing)
            if late := [worker for worker in self._owing if time.monotonic() > deadlines[worker]]:
                raise self._timed_out(late, timeout)
        for worker, (status, answer) in sorted(answers.items()):
            if status == "error":
                raise self._raised(worker, answer)
        return [answer for _, (_, answer) in sorted(answers.items())]

    def _finish_interrupted(self) -> None:
        """Waits for what an interrupted call (by KeyboardInterrupt, say) has left running, and drops its result."""
        if self._ended:
            raise WorkerError(f"the workers are gone: {self._ended}")
        if self._stepping or self._owing:
            try:
                if self._stepping:
                    self._step_answers()
                else:
                    self._answers(self._timeout)
            except (WorkerDiedError, WorkerTimeoutError):
                raise
            except WorkerError:
                pass

    def _send(self, worker: int, message: Any, timeout: float) -> None:
        self._send_packed(worker, Channel.pack(message), timeout)

    def _send_packed(self, worker: int, packed: bytes, timeout: float) -> None:
        try:
            self._channels[worker].send_packed(packed, timeout)
        except TimeoutError:
            raise self._timed_out([worker], timeout) from None
        except ConnectionError:
            raise self._died(worker) from None

    # --- errors

    def _check_alive(self, workers: Sequence[int]) -> None:
        for worker in workers:
            if self._processes[worker].poll() is not None:
                raise self._died(worker)

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
        try:
            status: int | None = process.wait(1.0)
        except subprocess.TimeoutExpired:
            status = None
        how = "closed its connection" if status is None else f"exited with status {status}"
        if status is not None and status < 0:
            how = f"was killed by {_signal_name(-status)}"
            how += " (by the system for lack of memory?)" if -status == signal.SIGKILL else ""
        index = self._env_index(worker, int(self._progress[worker]))
        message = f"{self._name(worker)} {how}" + ("" if index is None else f" in environment {index}")
        self._kill(message)
        return WorkerDiedError(message, worker=worker, env_index=index)

    def _timed_out(self, workers: Sequence[int], timeout: float) -> WorkerTimeoutError:
        workers = workers or range(len(self.slices))
        worker = workers[0]
        index = self._env_index(worker, int(self._progress[worker]))
        for hung in workers:  # the worker's faulthandler prints where it hangs
            if hasattr(signal, "SIGUSR1") and self._processes[hung].poll() is None:
                self._processes[hung].send_signal(signal.SIGUSR1)
        time.sleep(_SLICE_SECONDS)
        names = ", ".join(self._name(hung) for hung in workers)
        message = f"no answer within {timeout:g} s from {names}"
        message += "" if index is None else f"; at work on environment {index}"
        message += "; where it hangs was printed to stderr"
        self._kill(message)
        return WorkerTimeoutError(message, worker=worker, env_index=index)

    def _name(self, worker: int) -> str:
        start, stop = self.slices[worker]
        return f"worker {worker} (process {self._processes[worker].pid}, environments {start} to {stop - 1})"

    def _env_index(self, worker: int, local_index: int) -> int | None:
        return None if local_index < 0 else self.slices[worker][0] + local_index


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
