"""The vector environments' contract with Gymnasium and with users who err."""

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers.vector import ClipReward
from toy_envs import DictObservation, Toy, TupleAction, Wider

from xcfast.envs import DummyVecEnv, EnvError, SubprocVecEnv, WorkerError

KINDS = pytest.mark.parametrize("make", [DummyVecEnv, partial(SubprocVecEnv, num_workers=2)], ids=["Dummy", "Subproc"])


@KINDS
def test_order_of_calls_and_shapes(make: Any) -> None:
    envs = make([Toy] * 3)
    actions = envs.action_space.sample()
    with pytest.raises(RuntimeError, match=r"reset\(\) must be called before step"):
        envs.step(actions)
    with pytest.raises(ValueError, match=r"seed must be .* a list of 3; got a list of 2"):
        envs.reset(seed=[1, 2])
    with pytest.raises(ValueError, match=r"options\['reset_mask'\] must be bool \[3\]"):
        envs.reset(options={"reset_mask": [1, 0, 1]})
    with pytest.raises(RuntimeError, match="needs a full reset"):
        envs.reset(options={"reset_mask": np.array([True, False, False])})
    obs, infos = envs.reset(seed=np.int64(3))
    assert obs in envs.observation_space and infos == {}
    with pytest.raises(ValueError, match=r"actions must have shape \(3, 1\); got \(3,\)"):
        envs.step(actions[:, 0])
    with pytest.raises(TypeError, match="complex64"):
        envs.step(actions.astype(np.complex64))
    obs, rewards, terminated, truncated, infos = envs.step(actions.tolist())
    assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
    np.testing.assert_array_equal(rewards, actions[:, 0])  # the step after wrong actions is the first one
    assert obs[:, 0].tolist() == [1.0] * 3
    with pytest.raises(ValueError, match="values must have 3 entries"):
        envs.set_attr("count", [1, 2])

    assert isinstance(envs, gymnasium.vector.VectorEnv) and not envs.closed
    assert ClipReward(envs, 0.0, 0.25).step(np.ones((3, 1)))[1].tolist() == [0.25] * 3

    envs.close()
    envs.close()
    assert envs.closed
    for call in (envs.reset, envs.get_state, envs.render, partial(envs.step, actions), partial(envs.call, "pid")):
        with pytest.raises(RuntimeError, match="VecEnv is closed"):
            call()


@KINDS
@pytest.mark.parametrize(
    "env_fns, message",
    [
        ([DictObservation] * 2, "observation_space must be Box"),
        ([TupleAction] * 2, "action_space must be Box or Discrete"),
        ([Toy, Wider], "observation_space of all envs must be equal"),
        ([Toy, Toy, Toy, Wider], "observation_space of all envs must be equal"),
        ([Toy, lambda: 3], "env_fns must make a gymnasium.Env; got int"),
    ],
    ids=["dict", "tuple", "different", "different-late", "no-env"],
)
def test_envs_that_do_not_fit(make: Any, env_fns: Any, message: str) -> None:
    with pytest.raises((EnvError, TypeError, WorkerError), match=message):
        make(env_fns)


def test_arguments() -> None:
    with pytest.raises(ValueError, match="env_fns must name at least one"):
        DummyVecEnv([])
    with pytest.raises(ValueError, match="env_fns must name at least one"):
        SubprocVecEnv([])
    with pytest.raises(ValueError, match="num_workers must be None or at least 1; got 0"):
        SubprocVecEnv([Toy], num_workers=0)
    with pytest.raises(ValueError, match="timeout must be a positive number"):
        SubprocVecEnv([Toy], timeout=0)


def test_dummy_raises_what_the_env_raises() -> None:
    envs = DummyVecEnv([Toy, partial(Toy, trouble="raise", at=1)])
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="toy trouble in step"):
        envs.step(np.zeros((2, 1)))
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        envs.step(np.zeros((2, 1)))
    envs.reset(seed=0)
    assert envs.step(np.zeros((2, 1)))[0][:, 0].tolist() == [1.0, 1.0]
    envs.close()


def test_render_shows_all_envs() -> None:
    env_fns = [partial(Toy, render_mode="rgb_array", length=length) for length in (9, 9, 1)]
    for envs in (DummyVecEnv(env_fns), SubprocVecEnv(env_fns, 2)):
        assert envs.render_mode == "rgb_array"
        envs.reset(seed=0)
        envs.step(np.zeros((3, 1)))
        frames = envs.render()
        assert isinstance(frames, tuple)
        assert [frame.ravel().tolist() for frame in frames] == [[1] * 12, [1] * 12, [0] * 12]
        envs.close()
