"""A worker process of SubprocVecEnv: ``python -m xcfast.envs.worker SOCKET_FD MEMORY_FD PARENT_PID``.

It is a fresh interpreter, not a fork. It receives the constructors of its environments through the socket, and ends
when its parent ends.
"""

import faulthandler
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xcfast.envs.channel import Channel
from xcfast.envs.serial import EnvFn, EnvSlice
from xcfast.envs.shared_memory import array_in, buffers_in, map_memory

STEP, MESSAGE = 1, 2  # commands; 0 means that there is none

_IDLE_SECONDS = 1.0  # how long a wait for a command lasts before Python can run signal handlers
_REPORT_SECONDS = 0.5  # the least time between two reports of progress in making environments


def leave_signals_to_parent() -> None:
    """Sets handlers for SIGINT and SIGTERM that do nothing, since the parent decides when this process ends.

    Such a signal may reach all processes of a run. The signals are not ignored, because the programs that an
    environment starts would inherit that and could not be terminated. Handlers do not outlive exec, and a fork gets
    the usual ones back.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _do_nothing)
        signal.siginterrupt(number, False)
    os.register_at_fork(after_in_child=_restore_signals)
    if hasattr(signal, "pthread_sigmask"):  # the parent starts workers with both signals blocked
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    if hasattr(faulthandler, "register") and sys.stderr is not None:
        faulthandler.register(signal.SIGUSR1)  # the parent sends it to a worker that hangs


def _do_nothing(number: int, frame: Any) -> None:
    pass


def _restore_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def failure(env: int, error: BaseException) -> tuple[str, dict[str, Any]]:
    """Returns the answer that reports an exception.

    Args:
        env: The index, within the worker, of the environment that raised; -1 if none did.
        error: The exception; the answer holds its traceback as text.
    """
    return "error", {
        "env": env,
        "traceback": "".join(traceback.format_exception(error)),
        "exception_type": type(error).__name__,
        "exception_message": str(error),
    }


def answer(channel: Channel, message: tuple[str, Any]) -> None:
    """Sends an answer, or the failure that says why it cannot be pickled (a lambda, an open file)."""
    try:
        packed = channel.pack(message)
    except Exception as error:
        unsendable = TypeError(f"the answer cannot be sent between processes: {error}")
        unsendable.__cause__ = error
        packed = channel.pack(failure(-1, unsendable))
    channel.send_packed(packed)


def reporting(channel: Channel, env_fns: Sequence[EnvFn]) -> Iterator[EnvFn]:
    """Yields the constructors, and tells the parent from time to time that they make progress."""
    reported = time.monotonic()
    for env_fn in env_fns:
        yield env_fn
        if time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            channel.send(("building", None))


def build(channel: Channel) -> EnvSlice | None:
    """Makes the environments and describes them to the parent; returns None if a constructor raised."""
    setup = channel.receive()
    sys.path[:] = setup["sys_path"]
    for name, value in setup["environ"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    env_slice = EnvSlice(infos=setup["infos"], action_masks=setup["action_masks"], next_step=setup["next_step"])
    try:
        env_slice.build(reporting(channel, pickle.loads(setup["env_fns"])))
        description = env_slice.describe()
    except BaseException as error:
        channel.send(failure(int(env_slice.progress[0]), error))
        return None
    try:
        channel.pack(description["spec"])
    except Exception:
        # Its arguments, or a class that the user's script defines, cannot be sent back.
        description["spec"] = replace(description["spec"], entry_point=None, kwargs={}, additional_wrappers=())
    answer(channel, ("ok", description))
    return env_slice


def serve(channel: Channel, env_slice: EnvSlice, sync: Any) -> None:
    """Runs commands until the parent sends `close`."""
    while True:
        command = sync.wait_command(_IDLE_SECONDS)
        if command == STEP:
            try:
                infos = env_slice.step()
            except BaseException as error:
                sync.finish(True)
                channel.send(failure(int(env_slice.progress[0]), error))
                continue
            sync.finish(False)
            if infos is not None:
                answer(channel, ("ok", infos))
        elif command == MESSAGE:
            method, args = channel.receive()
            if method == "close":
                channel.send(("closing", None))
            message: tuple[str, Any]
            try:
                message = "ok", getattr(env_slice, method)(*args)
            except BaseException as error:
                message = failure(int(env_slice.progress[0]), error)
                env_slice.progress[0] = -1  # the answer holds the index; the parent reads it here only after steps
            sync.finish(False)
            answer(channel, message)
            if method == "close":
                return


def main(socket_fd: int, memory_fd: int, parent_pid: int) -> None:
    """Builds the environments, attaches them to the shared memory and serves the parent.

    Args:
        socket_fd: The descriptor of this worker's end of the connection.
        memory_fd: The descriptor of the shared memory.
        parent_pid: The process number of the parent.
    """
    from xcfast import _core  # here, because the parent imports this module even without the core

    leave_signals_to_parent()
    for fd in (socket_fd, memory_fd):
        os.set_inheritable(fd, False)
    _core.watch_parent(socket_fd, parent_pid)
    channel = Channel(socket.socket(fileno=socket_fd))
    env_slice = build(channel)
    if env_slice is None:
        channel.receive()  # waits until the parent ends this process
        return
    plan = channel.receive()
    memory = map_memory(memory_fd)
    os.close(memory_fd)
    buffers, end = buffers_in(memory, _core.Sync.nbytes, *plan["layout"])
    progress, _ = array_in(memory, end, (plan["num_workers"],), np.int32)
    worker = plan["worker"]
    env_slice.attach(buffers.rows(*plan["rows"]), progress[worker : worker + 1], plan["rows"][0])
    sync = _core.Sync(memory, plan["spin_seconds"], plan["spin_yields"])
    channel.send(("ok", None))
    serve(channel, env_slice, sync)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
