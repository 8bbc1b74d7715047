"""The processes that environments start in workers end as they are told to, and never outlive the worker."""

import os
import signal
import time
from functools import partial
from typing import Any

import numpy as np
import pytest
from toy_envs import Simulator, Toy, wait_until_gone
from user_scripts import start_script

from xcfast.envs import SubprocVecEnv, WorkerDiedError, WorkerError, WorkerTimeoutError

ACTIONS = np.zeros((2, 1), np.float32)
DEADLINE = 5.0  # for processes to be gone


def simulators(**trouble: Any) -> SubprocVecEnv:
    """Two environments in two workers, the second of which makes trouble."""
    return SubprocVecEnv([partial(Simulator, False), partial(Simulator, False, **trouble)], 2, timeout=0.5)


@pytest.mark.parametrize("forks", [False, True], ids=["exec", "fork"])
def test_an_environment_can_terminate_what_it_started(forks: bool) -> None:
    envs = SubprocVecEnv([partial(Simulator, True, forks)] * 2, 2)
    children = envs.get_attr("child_pid")
    start = time.monotonic()
    envs.close()  # waits for the children that it terminates
    assert time.monotonic() - start < 2.0
    assert wait_until_gone(children, 0.0) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_have_no_effect_on_a_worker_and_their_usual_one_on_its_children(number: int) -> None:
    envs = simulators()
    envs.reset(seed=0)
    children = envs.get_attr("child_pid")
    for pid in envs.get_attr("pid"):
        os.kill(pid, number)
    assert envs.step(ACTIONS)[0][:, 0].tolist() == [1.0, 1.0]
    for pid in children:
        os.kill(pid, number)
    assert wait_until_gone(children, DEADLINE) == []
    envs.close()


def test_close_ends_what_an_environment_left_running() -> None:
    envs = simulators()
    children = envs.get_attr("child_pid")
    envs.close()
    assert wait_until_gone(children, DEADLINE) == []


@pytest.mark.parametrize(
    "trouble, error", [("kill", WorkerDiedError), ("exit", WorkerDiedError), ("hold_gil", WorkerTimeoutError)]
)
def test_children_end_with_a_worker_that_is_lost(trouble: str, error: type[WorkerError]) -> None:
    envs = simulators(trouble=trouble)
    envs.reset(seed=0)
    children = envs.get_attr("child_pid")
    with pytest.raises(error):
        envs.step(ACTIONS)
    assert wait_until_gone(children, DEADLINE) == []
    envs.close()


def test_children_end_when_another_constructor_raises(tmp_path: Any) -> None:
    folder = str(tmp_path)
    with pytest.raises(WorkerError, match="toy trouble in init"):
        SubprocVecEnv([partial(Simulator, False, folder=folder), partial(Toy, trouble="raise", where="init")], 2)
    children = [int(path.name) for path in tmp_path.iterdir()]
    assert wait_until_gone(children, DEADLINE) == []


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "in-a-step"])
@pytest.mark.parametrize("forks", [False, True], ids=["exec", "fork"])
def test_children_end_with_the_parent_and_leave_no_pipe_open(forks: bool, busy: bool) -> None:
    body = f"""
    trouble = "hold_gil" if {busy} else ""
    envs = SubprocVecEnv([partial(Simulator, False, {forks}), partial(Simulator, False, {forks}, trouble=trouble)], 2)
    envs.reset(seed=0)
    show(*envs.get_attr("child_pid"))
    if {busy}:
        envs.step(actions[:2])
    time.sleep(100)
    """
    with start_script(body) as process:
        assert process.stdout is not None
        children = [int(word) for word in process.stdout.readline().split()]
        assert len(children) == 2
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        # Its standard output, which the children inherit, reaches its end.
        process.communicate(timeout=DEADLINE)
    assert wait_until_gone(children, DEADLINE) == []
