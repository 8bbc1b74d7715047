"""One worker process of SubprocVecEnv, with the process group that it leads."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

from xcfast.envs.channel import Channel
from xcfast.resources import module_path

_REAP_SECONDS = 5.0  # how long a process may take to end after it was killed
_LOOK_SECONDS = 0.002  # time between two checks of a process that is about to end

_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
# A running worker ignores these signals. Until it runs, they are blocked, which it inherits.
_BLOCKED = {signal.SIGINT, signal.SIGTERM}


class WorkerProcess:
    """A fresh interpreter that runs `xcfast.envs.worker` in a session of its own.

    Processes that its environments start belong to its process group, unless they choose another one, and end with it.

    Args:
        memory_fd: The descriptor of the shared memory, which the worker inherits.

    Attributes:
        channel: The parent's end of the connection.
        pid: The number of the process and of its group.
    """

    def __init__(self, memory_fd: int) -> None:
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        inherited = (theirs.fileno(), memory_fd)
        command = [sys.executable, "-m", "xcfast.envs.worker", *map(str, (*inherited, os.getpid()))]
        environ = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1"), **module_path()}
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=inherited, env=environ, start_new_session=True
            )
        except BaseException:
            self.channel.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            theirs.close()
        self.pid = self._process.pid

    def ended(self) -> bool:
        """Returns whether the process has ended.

        It is not reaped: the system keeps its number, so that `end` cannot reach the group of another process.
        """
        if self._process.returncode is None and hasattr(os, "waitid"):
            with suppress(ChildProcessError):  # other code has reaped it
                return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        return self._process.poll() is not None

    def wait(self, seconds: float) -> bool:
        """Waits at most `seconds` for the process to end by itself; returns whether it has ended."""
        deadline = time.monotonic() + seconds
        while not (ended := self.ended()) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
        return ended

    def show_stack(self) -> None:
        """Makes the worker print its Python stack to stderr."""
        if hasattr(signal, "SIGUSR1") and not self.ended():
            self._process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """Kills the process and its group, without waiting for it to end."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> int | None:
        """Kills the process and its group, closes the connection and reaps the process.

        Returns:
            The exit status, minus the signal's number if a signal ended the process; None if the system has not ended
            it within seconds, as it may be with a process that waits for a device.
        """
        self.kill()
        self.channel.close()
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(_REAP_SECONDS)
        return None
