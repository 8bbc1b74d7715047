"""Workers that raise, die, hang or lose their parent: a typed error in time, and nothing stays behind."""

import gc
import mmap
import os
import pickle
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_envs import LambdaInInfo, Toy, wait_until_gone
from user_scripts import read_pids, start_script

from xcfast.envs import SubprocVecEnv, WorkerDiedError, WorkerError, WorkerTimeoutError, worker_pool

ACTIONS = np.zeros((4, 1), np.float32)
DEADLINE = 5.0  # for processes to be gone


def toys(**trouble: Any) -> list[Any]:
    """Four environments, the last of which makes trouble."""
    return [Toy, Toy, Toy, partial(Toy, **trouble)]


def open_fds() -> int:
    return len(os.listdir("/dev/fd"))


def segments() -> set[str]:
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def in_use() -> str:
    """Returns the memory maps of all processes, as far as they may be read."""
    maps = []
    for path in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            maps.append(path.read_text(errors="replace"))
    return "".join(maps)


def abandoned(before: set[str]) -> set[str]:
    """Returns segments that are new and that no process uses. The folder is the machine's: others add to it as well."""
    deadline = time.monotonic() + DEADLINE
    while True:
        new = segments() - before
        maps = in_use() if new else ""
        left = {name for name in new if f"/dev/shm/{name}" not in maps}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)  # between its making and its mapping, another process's segment looks like this too


@pytest.fixture(autouse=True)
def nothing_stays_behind() -> Any:
    gc.collect()  # what earlier tests left for the collector would close its descriptors in the middle of this one
    fds, before = open_fds(), segments()
    yield
    gc.collect()
    assert open_fds() == fds
    assert not abandoned(before)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="the folder is Linux's")
def test_the_check_sees_a_segment_once_nobody_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "DEADLINE", 0.2)
    before, path = segments(), Path(f"/dev/shm/xcfast_test_{os.getpid()}")
    try:
        with open(path, "w+b") as file:
            file.write(b"x")
            file.flush()
            with mmap.mmap(file.fileno(), 1):
                assert path.name not in abandoned(before), "it is in use"
        assert path.name in abandoned(before)
    finally:
        path.unlink()


def test_constructor_raises() -> None:
    with pytest.raises(WorkerError, match="toy trouble in init") as caught:
        SubprocVecEnv(toys(trouble="raise", where="init"), 2)
    assert caught.value.env_index == 3
    assert caught.value.exception_type == "ValueError"
    assert "in _visit" in str(caught.value), "the worker's traceback is part of the message"


def test_step_and_reset_raise_and_the_workers_live_on() -> None:
    envs = SubprocVecEnv(toys(trouble="raise", at=2), 2)
    pids = envs.get_attr("pid")
    envs.reset(seed=0)
    envs.step(ACTIONS)
    with pytest.raises(WorkerError, match=r"in environment 3.*(?s:.*)in _visit(?s:.*)toy trouble in step") as caught:
        envs.step(ACTIONS)
    assert caught.value.env_index == 3 and type(caught.value) is WorkerError
    with pytest.raises(RuntimeError, match=r"call reset\(\) before step"):
        envs.step(ACTIONS)
    envs.reset(seed=0)
    assert envs.step(ACTIONS)[0][:, 0].tolist() == [1.0] * 4
    envs.set_attr("where", "reset")
    envs.set_attr("trouble", ["", "raise", "", "raise"])
    envs.set_attr("at", 3)
    with pytest.raises(WorkerError, match="toy trouble in reset") as caught:
        envs.reset()
    assert caught.value.env_index == 1
    with pytest.raises(WorkerError, match=r"raised AttributeError in environment 0; (?s:.*)no_such_attribute"):
        envs.get_attr("no_such_attribute")
    envs.reset()
    envs.close()
    assert wait_until_gone(pids, 0.0) == []


def test_answers_that_cannot_be_sent() -> None:
    envs = SubprocVecEnv([Toy] * 4, 2)
    pids = envs.get_attr("pid")
    for method, words in (
        ("unpicklable", "raised TypeError while it answered.*(?s:.*)the answer cannot be sent between processes"),
        ("unpicklable_in_the_parent", "raised UnpicklingError while it answered.*(?s:.*)broken by unpickling"),
    ):
        with pytest.raises(WorkerError, match=words) as caught:
            envs.call(method)
        assert type(caught.value) is WorkerError
    with pytest.raises((AttributeError, pickle.PicklingError), match=r"lambda"):
        envs.set_attr("where", lambda: None)
    assert envs.get_attr("pid") == pids, "the workers live on"
    envs.close()

    envs = SubprocVecEnv([Toy, LambdaInInfo], 2, infos=True)
    envs.reset(seed=0)
    with pytest.raises(WorkerError, match="worker 1 raised TypeError while it answered"):
        envs.step(ACTIONS[:2])
    envs.reset(seed=0)
    envs.close()


def test_construction_that_advances_does_not_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 4.0
    monkeypatch.setattr(worker_pool, "_START_SECONDS", limit)
    start = time.monotonic()
    envs = SubprocVecEnv([partial(Toy, trouble="slow", where="init")] * 9, 1, timeout=1.0)
    assert time.monotonic() - start > limit, "this took no longer than the limit: the test shows nothing"
    envs.reset(seed=0)
    envs.close()
    with pytest.raises(WorkerTimeoutError, match="no answer within 4 s from worker 1"):
        SubprocVecEnv(toys(trouble="sleep", where="init"), 2, timeout=1.0)


@pytest.mark.parametrize("trouble, how", [("kill", "killed by SIGKILL"), ("exit", "exited with status 3")])
def test_worker_dies_in_a_step(trouble: str, how: str) -> None:
    envs = SubprocVecEnv(toys(trouble=trouble, at=2), 2)
    pids = envs.get_attr("pid")
    envs.reset(seed=0)
    envs.step(ACTIONS)
    start = time.monotonic()
    with pytest.raises(WorkerDiedError, match=f"worker 1 .*{how}.* in environment 3") as caught:
        envs.step(ACTIONS)
    assert time.monotonic() - start < DEADLINE
    assert caught.value.worker == 1 and caught.value.env_index == 3
    assert wait_until_gone(pids, DEADLINE) == []
    with pytest.raises(RuntimeError, match="workers are gone"):
        envs.reset()
    envs.close()
    envs.close()


def test_worker_is_killed_between_steps() -> None:
    envs = SubprocVecEnv([Toy] * 4, 2)
    envs.reset(seed=0)
    os.kill(envs.get_attr("pid")[0], signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match=r"worker 0 .*environments 0 to 1.* killed by SIGKILL"):
        envs.step(ACTIONS)
    envs.close()


@pytest.mark.parametrize("trouble, where", [("sleep", "step"), ("hold_gil", "reset")])
def test_worker_hangs(trouble: str, where: str, capfd: pytest.CaptureFixture[str]) -> None:
    envs = SubprocVecEnv(toys(trouble=trouble, where=where), 2, timeout=0.5)
    pids = envs.get_attr("pid")
    start = time.monotonic()
    with pytest.raises(WorkerTimeoutError, match=r"within 0\.5 s from worker 1 .*at work on environment 3") as caught:
        envs.reset(seed=0)
        envs.step(ACTIONS)
    assert time.monotonic() - start < DEADLINE
    assert caught.value.env_index == 3
    assert wait_until_gone(pids, DEADLINE) == []
    assert "in _visit" in capfd.readouterr().err, "the hung worker's Python stack is shown"
    envs.close()


def test_garbage_collection_closes() -> None:
    envs = SubprocVecEnv([Toy] * 4, 2)
    pids = envs.get_attr("pid")
    del envs
    gc.collect()
    assert wait_until_gone(pids, 0.0) == []


def test_what_a_worker_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    envs = SubprocVecEnv([Toy], 1)
    modules, environ = envs.call("loaded_modules")[0], envs.call("environ")[0]
    envs.close()
    assert "torch" not in modules and "numba" not in modules
    assert "toy_envs" in modules
    assert environ["OMP_NUM_THREADS"] == environ["OPENBLAS_NUM_THREADS"] == environ["MKL_NUM_THREADS"] == "1"
    assert environ["PYTHONPATH"] == "/somewhere" and "PYTHONSAFEPATH" not in environ


def test_two_at_once() -> None:
    one, two = SubprocVecEnv([Toy] * 4, 2), SubprocVecEnv([Toy] * 4, 2)
    one.reset(), two.reset()
    for count in range(1, 4):
        assert one.step(ACTIONS)[0][0, 0] == count
        assert two.step(ACTIONS + 1)[1].tolist() == [1.0] * 4
    one.close()
    assert two.step(ACTIONS)[0][0, 0] == 4
    two.close()


def test_without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    envs = SubprocVecEnv([Toy] * 4, 2)
    envs.reset(seed=0)
    assert envs.step(ACTIONS)[0][:, 0].tolist() == [1.0] * 4
    envs.close()


# What follows runs a user's script, without a main guard, in a process of its own.


IDLE = """
envs = SubprocVecEnv([Toy] * 4, 2)
envs.reset(seed=0)
show(*envs.get_attr("pid"))
time.sleep(100)
"""
IN_A_STEP = """
envs = SubprocVecEnv([Toy, Toy, Toy, partial(Toy, trouble="hold_gil")], 2)
envs.reset(seed=0)
show(*envs.get_attr("pid"))
envs.step(actions)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("body", [IDLE, IN_A_STEP], ids=["idle", "in-a-step"])
def test_workers_end_with_their_parent(body: str, number: int) -> None:
    with start_script(body) as process:
        pids = read_pids(process)
        time.sleep(0.2)
        process.send_signal(number)
        assert process.wait(10) == -number
        assert wait_until_gone(pids, DEADLINE) == []


def test_control_c_reaches_only_the_parent() -> None:
    body = """
    envs = SubprocVecEnv([Toy, Toy, Toy, partial(Toy, length=10**9)], 2)
    envs.reset(seed=0)
    show(*envs.get_attr("pid"))
    # A shell ignores SIGINT for what it starts in the background, tests among it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        while True:
            envs.step(actions)
    except KeyboardInterrupt:
        pass
    envs.reset(seed=0)
    show(envs.step(actions)[0][:, 0].tolist())
    """
    with start_script(body) as process:
        pids = read_pids(process)
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out.strip(), err) == (0, "[1.0, 1.0, 1.0, 1.0]", "")
    assert wait_until_gone(pids, DEADLINE) == []


def test_script_that_forgets_to_close_and_one_that_forks() -> None:
    body = """
    envs = SubprocVecEnv([Toy] * 4, 2)
    envs.reset(seed=0)
    show(*envs.get_attr("pid"))
    child = os.fork()
    if child == 0:
        sys.exit()  # must leave its parent's workers alone
    os.waitpid(child, 0)
    show(envs.step(actions)[0][:, 0].tolist())
    """
    with start_script(body) as process:
        pids = read_pids(process)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out.strip(), err) == (0, "[1.0, 1.0, 1.0, 1.0]", "")
    assert wait_until_gone(pids, DEADLINE) == []
