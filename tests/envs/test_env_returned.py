"""What environments return is checked at every reset and step: nothing is cast, broadcast or guessed."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from returning_envs import Returning

from xcfast.envs import DummyVecEnv, EnvError, SubprocVecEnv, WorkerError

UINT8 = Box(0, 255, (3,), np.uint8)
FIVE = Box(-9, 9, (5,), np.float64)
F32 = np.float32


def made(kind: str, **replaced: Any) -> Any:
    env_fns = [Returning, partial(Returning, **replaced)]
    if kind == "Dummy":
        return DummyVecEnv([partial(Returning, **{k: replaced[k] for k in ("space",) if k in replaced}), env_fns[1]])
    return SubprocVecEnv(env_fns, 2)


@pytest.mark.parametrize(
    "replaced, message",
    [
        ({"ob": np.array([7.0]), "space": FIVE}, r"wanted float64 \[5\]; got ndarray float64 \[1\] with \[7.0\]"),
        ({"ob": np.zeros((1, 5)), "space": FIVE}, r"wanted float64 \[5\]; got ndarray float64 \[1, 5\]"),
        ({"ob": 7.0, "space": FIVE}, r"wanted float64 \[5\]; got float 7.0"),
        ({"ob": np.array([0.2, 0.5, 0.9]), "space": UINT8}, r"wanted uint8 \[3\]; got ndarray float64 \[3\]"),
        ({"ob": np.array([0, 1, 256]), "space": UINT8}, r"wanted uint8 \[3\]; got ndarray int64 \[3\]"),
        ({"ob": np.array([0, 1, -1]), "space": UINT8}, r"wanted uint8 \[3\]; got ndarray int64 \[3\]"),
        ({"ob": np.array([1j, 0], np.complex64)}, r"wanted float32 \[2\]; got ndarray complex64"),
        ({"ob": np.array(["1", "2"])}, r"wanted float32 \[2\]; got ndarray <U1"),
        ({"ob": [[1.0], [1.0, 2.0]]}, r"wanted float32 \[2\]; got a list of 2"),
        ({"ob": np.array([1e300, 0.0])}, r"wanted float32 \[2\]; got ndarray float64 \[2\] with \[1e\+300, 0.0\]"),
        ({"ob": np.ma.masked_array([1.0, 2.0], [0, 1], F32)}, r"got MaskedArray"),
        ({"ob": None}, r"wanted float32 \[2\]; got NoneType None"),
        ({"ob": {"x": 1}}, r"got dict"),
        ({"reward": np.array([1.0, 2.0])}, r"one real number as reward; got ndarray float64 \[2\] with \[1.0, 2.0\]"),
        ({"reward": np.array([])}, r"one real number as reward; got ndarray float64 \[0\]"),
        ({"reward": "1.5"}, r"one real number as reward; got str '1.5'"),
        ({"reward": b"1"}, r"one real number as reward; got bytes"),
        ({"reward": 1 + 0j}, r"one real number as reward; got complex"),
        ({"reward": None}, r"one real number as reward; got NoneType None"),
        ({"reward": 10**400}, "a reward that is too large for a float64"),
        ({"reward": 2 * 10**5000}, "a reward that is too large for a float64"),
        ({"terminated": 10**5000}, r"True or False as terminated; got int \(which cannot be printed\)"),
        ({"terminated": "no"}, "True or False as terminated; got str 'no'"),
        ({"truncated": float("nan")}, "True or False as truncated; got float nan"),
        ({"terminated": None}, "True or False as terminated; got NoneType None"),
        ({"terminated": 2}, "True or False as terminated; got int 2"),
        ({"truncated": np.array([True, False])}, "True or False as truncated; got ndarray bool"),
        ({"info": None}, "with a dict as info; its info is NoneType None"),
        ({"info": [1]}, "with a dict as info; its info is a list of 1"),
        ({"step": (np.ones(2, F32), 1.0, False, {})}, r"\(observation, reward, .*\); got a tuple of 4"),
        ({"step": None}, r"\(observation, reward, .*\); got NoneType None"),
        ({"step": np.ones(5)}, r"\(observation, reward, .*\); got ndarray float64 \[5\]"),
    ],
)
def test_steps_that_are_refused(replaced: Any, message: str) -> None:
    envs = made("Dummy", **replaced)
    envs.reset(seed=1)
    with pytest.raises(EnvError, match="^environment 1: step .*" + message):
        envs.step(np.zeros((2, 1)))
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        envs.step(np.zeros((2, 1)))


@pytest.mark.parametrize(
    "returned, message",
    [
        (np.array([1.0, 2.0], F32), r"reset must return \(observation, info\).*; got ndarray float32 \[2\]"),
        ([1.0, 2.0], r"reset must return \(observation, info\).*; got a list of 2"),
        ((np.ones(2, F32), None), r"reset must return \(observation, info\).*; got a tuple of 2"),
        ((np.ones(1, F32), {}), r"reset returned an observation .*wanted float32 \[2\]; got ndarray float32 \[1\]"),
        (None, r"reset must return \(observation, info\).*; got NoneType"),
    ],
    ids=["array", "list", "info", "shape", "nothing"],
)
@pytest.mark.parametrize("autoreset", [False, True])
def test_resets_that_are_refused(returned: Any, message: str, autoreset: bool) -> None:
    envs = made("Dummy", reset=returned, at=1 + autoreset, length=1)
    if not autoreset:
        with pytest.raises(EnvError, match="^environment 1: " + message):
            envs.reset(seed=1)
        return
    envs.reset(seed=1)
    with pytest.raises(EnvError, match="^environment 1: " + message):
        envs.step(np.zeros((2, 1)))


def test_final_observations_are_checked() -> None:
    envs = made("Dummy", ob=np.ones(1, F32), truncated=True)
    envs.reset(seed=1)
    with pytest.raises(EnvError, match=r"^environment 1: step returned an observation .* got ndarray float32 \[1\]"):
        envs.step(np.zeros((2, 1)))


def test_a_worker_says_it_in_the_same_sentence() -> None:
    envs = made("Subproc", reward="1.5")
    envs.reset(seed=1)
    message = r"^environment 1: step must return one real number as reward; got str '1.5'$"
    with pytest.raises(WorkerError, match=message) as caught:
        envs.step(np.zeros((2, 1)))
    assert (caught.value.worker, caught.value.env_index, caught.value.exception_type) == (1, 1, "EnvError")
    envs.close()
    envs = made("Subproc", reset=np.ones(2, F32))
    with pytest.raises(WorkerError, match=r"^environment 1: reset must return \(observation, info\)"):
        envs.reset(seed=1)
    envs.close()


@pytest.mark.parametrize(
    "replaced, ob, reward, flags",
    [
        ({"ob": [1, 2]}, [1, 2], 1, (False, False)),
        ({"ob": np.array([0.5, 0.25])}, [0.5, 0.25], 1, (False, False)),  # float64 where the space is float32
        ({"ob": [0, 1, 255], "space": UINT8}, [0, 1, 255], 1, (False, False)),
        ({"ob": np.array([3, 4, 5], np.int16), "space": UINT8}, [3, 4, 5], 1, (False, False)),
        ({"ob": 3, "space": Discrete(5)}, 3, 1, (False, False)),
        ({"ob": np.int32(3), "space": Discrete(5)}, 3, 1, (False, False)),
        ({"ob": np.array([np.inf, np.nan])}, [np.inf, np.nan], 1, (False, False)),  # collectors refuse these
        ({"reward": np.array([2.5])}, [1, 1], 2.5, (False, False)),
        ({"reward": np.array(2.5, F32)}, [1, 1], 2.5, (False, False)),
        ({"reward": np.float64(2.5)}, [1, 1], 2.5, (False, False)),
        ({"reward": 2}, [1, 1], 2, (False, False)),
        ({"reward": True}, [1, 1], 1, (False, False)),
        ({"terminated": np.bool_(True)}, [1, 1], 1, (True, False)),
        ({"terminated": 1, "truncated": 0}, [1, 1], 1, (True, False)),
        ({"terminated": np.array([False]), "truncated": np.array(1.0)}, [1, 1], 1, (False, True)),
    ],
    ids=str,
)
def test_steps_that_are_taken(replaced: Any, ob: Any, reward: float, flags: tuple[bool, bool]) -> None:
    envs = made("Dummy", **replaced)
    envs.reset(seed=1)
    observations, rewards, terminated, truncated, infos = envs.step(np.zeros((2, 1)))
    if any(flags):
        observations = infos["final_obs"]
    np.testing.assert_array_equal(observations[1], ob)
    assert (rewards[1], terminated[1], truncated[1]) == (reward, *flags)
