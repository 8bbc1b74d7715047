"""SubprocVecEnv gives every environment its time, to step, to reset and to close, and says which one took too long."""

import os
import signal
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from signals_in_time import Interrupted, interrupted_after
from toy_envs import Slow, Toy, wait_until_gone

from xcfast.envs import SubprocVecEnv, WorkerDiedError, WorkerError, WorkerTimeoutError

ACTIONS = np.zeros((4, 1), np.float32)


def toys(**trouble: Any) -> list[Any]:
    """Four environments, the last of which makes trouble."""
    return [Toy, Toy, Toy, partial(Toy, **trouble)]


@pytest.mark.parametrize(
    "trouble, warning",
    [
        ("sleep", r"closing the environments failed: no answer within 0\.5 s from worker 1 .*environment 3"),
        ("raise", "environment 3 raised in close: ValueError: toy trouble in close"),
        ("exit", "closing the environments failed: worker 1 .* exited with status 3 in environment 3"),
    ],
)
def test_close_warns_of_an_environment_that_cannot_be_closed(trouble: str, warning: str) -> None:
    envs = SubprocVecEnv(toys(trouble=trouble, where="close"), 2, timeout=0.5)
    pids = envs.get_attr("pid")
    with pytest.warns(RuntimeWarning, match=warning):
        envs.close()
    assert wait_until_gone(pids, 0.0) == []


def test_every_worker_gets_its_time_to_close(tmp_path: Path) -> None:
    env_fns = [partial(Slow, "close", 0.4 * worker, str(tmp_path)) for worker in range(4)]
    envs = SubprocVecEnv(env_fns, 4)
    envs.close()
    assert len(list(tmp_path.iterdir())) == 4


def test_close_after_a_worker_was_killed_closes_the_others(tmp_path: Path) -> None:
    envs = SubprocVecEnv([partial(Slow, "close", 0.3, str(tmp_path))] * 3, 3)
    os.kill(envs.get_attr("pid")[1], signal.SIGKILL)
    with pytest.warns(RuntimeWarning, match=r"worker 1 .* was killed by SIGKILL"):
        envs.close()
    assert len(list(tmp_path.iterdir())) == 2


def test_close_after_an_interrupted_step_closes_the_environments(tmp_path: Path) -> None:
    envs = SubprocVecEnv([partial(Slow, "step", 0.6, str(tmp_path))] * 2, 2)
    envs.reset(seed=0)
    with pytest.raises(Interrupted), interrupted_after(0.3):
        envs.step(ACTIONS[:2])
    envs.close()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("where", ["step", "reset", "close"])
def test_the_time_limit_counts_for_each_environment(where: str) -> None:
    limit, start = 1.0, time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = SubprocVecEnv([partial(Slow, where, 0.5)] * 4, 1, timeout=limit)
        envs.reset(seed=0)
        envs.step(ACTIONS)
        envs.close()
    assert time.monotonic() - start > limit, "this took no longer than the limit: the test shows nothing"


def test_one_environment_that_is_too_slow_is_named_with_the_key() -> None:
    envs = SubprocVecEnv([Toy, Toy, Toy, partial(Slow, "step", 100.0)], 2, timeout=0.5)
    envs.reset(seed=0)
    with pytest.raises(WorkerTimeoutError, match=r"environment 3.*; the key env_timeout sets") as caught:
        envs.step(ACTIONS)
    assert caught.value.env_index == 3


def test_an_environment_that_raised_is_not_late_while_others_advance() -> None:
    slow = partial(Slow, "step", 0.5)
    envs = SubprocVecEnv([partial(Toy, trouble="raise"), Toy, slow, slow, slow], 2, timeout=1.0)
    envs.reset(seed=0)
    with pytest.raises(WorkerError, match="toy trouble in step") as caught:
        envs.step(np.zeros((5, 1), np.float32))
    assert type(caught.value) is WorkerError
    envs.close()


def test_a_worker_that_stands_still_is_found_although_another_one_raised() -> None:
    """The first worker is stopped before it takes the command of the step; the second one raises in its step."""
    envs = SubprocVecEnv([Toy, partial(Toy, trouble="raise")], 2, timeout=0.5)
    envs.reset(seed=0)
    pids = envs.get_attr("pid")
    os.kill(pids[0], signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(WorkerTimeoutError, match="no answer within 0.5 s from worker 0"):
        envs.step(ACTIONS[:2])
    assert time.monotonic() - start < 5.0
    assert wait_until_gone(pids, 0.0) == []


@pytest.mark.parametrize(
    "trouble, method, error",
    [("exit", "step", WorkerDiedError), ("sleep", "step", WorkerTimeoutError), ("exit", "reset", WorkerDiedError)],
)
def test_a_worker_that_is_lost_does_not_keep_the_others_from_closing(
    tmp_path: Path, trouble: str, method: str, error: type[WorkerError]
) -> None:
    slow = partial(Slow, "close", 0.3, str(tmp_path))
    bad = partial(Toy, trouble=trouble, where=method, at=2)
    envs = SubprocVecEnv([slow, bad, slow], 3, timeout=1.0)
    envs.reset(seed=0)
    envs.step(ACTIONS[:3])
    with pytest.raises(error, match="worker 1"):
        envs.step(ACTIONS[:3]) if method == "step" else envs.reset(seed=0)
    assert len(list(tmp_path.iterdir())) == 2
    envs.close()
