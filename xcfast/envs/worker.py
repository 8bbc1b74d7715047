"""A worker process of SubprocVecEnv: ``python -m xcfast.envs.worker SOCKET_FD MEMORY_FD PARENT_PID``.

It is started afresh, not forked, gets its environments' constructors through the socket, and ends with its parent.
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

STEP, MESSAGE = 1, 2  # commands; 0 means that none has come

_IDLE_SECONDS = 1.0  # how long a wait lasts before Python looks around
_REPORT_SECONDS = 0.5  # the least time between two reports that the construction goes on


def ignore_signals() -> None:
    """Leaves Ctrl-C and SIGTERM, which may go to the whole process group, to the parent. The worker ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # the parent starts workers with SIGINT blocked
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if hasattr(faulthandler, "register") and sys.stderr is not None:
        faulthandler.register(signal.SIGUSR1)  # sent by the parent to a worker that hangs


def failure(env: int, error: BaseException) -> tuple[str, dict[str, Any]]:
    """Returns the answer that reports an exception: local index of the environment at work (or -1), and traceback."""
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
    """Yields the constructors, and tells the parent now and then that they advance."""
    reported = time.monotonic()
    for env_fn in env_fns:
        yield env_fn
        if time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            channel.send(("building", None))


def build(channel: Channel) -> EnvSlice | None:
    """Makes the environments and describes them to the parent; None if that failed."""
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
            if method is None:  # this one is for another worker
                message: tuple[str, Any] = ("ok", None)
            else:
                try:
                    message = "ok", getattr(env_slice, method)(*args)
                except BaseException as error:
                    message = failure(int(env_slice.progress[0]), error)
                    env_slice.progress[0] = -1  # the answer tells it; the parent reads it here after steps only
            sync.finish(False)
            answer(channel, message)
            if method == "close":
                return


def main(socket_fd: int, memory_fd: int, parent_pid: int) -> None:
    """Builds the environments, attaches them to the shared memory and serves."""
    from xcfast import _core  # here, because the parent imports this module also where there is no core

    ignore_signals()
    for fd in (socket_fd, memory_fd):
        os.set_inheritable(fd, False)
    _core.watch_parent(socket_fd, parent_pid)
    channel = Channel(socket.socket(fileno=socket_fd))
    env_slice = build(channel)
    if env_slice is None:
        channel.receive()  # ends with the parent's hang-up
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
