"""A saved state goes on bit for bit in a new vector environment of either kind."""

import numpy as np
import pytest
from equality import assert_equal
from gymnasium.wrappers import ClipReward

from xcfast.envs import DummyVecEnv, EnvError, SubprocVecEnv, VecEnv, make_env_fn

NUM_ENVS = 3
ENV_IDS = ["Ant-v4", "Ant-v5", "HalfCheetah-v4", "Humanoid-v5", "Reacher-v4", "InvertedPendulum-v4"]


def roll(envs: VecEnv, actions: np.ndarray) -> tuple[list[np.ndarray], int]:
    arrays, episodes = [], 0
    for action in actions:
        *step, infos = envs.step(action)
        arrays += step
        if infos:
            episodes += int(infos["_episode"].sum())
            arrays += [infos["episode"]["r"], infos["episode"]["l"], *infos["final_obs"][infos["_final_obs"]]]
    return arrays, episodes


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_goes_on_bit_for_bit(env_id: str) -> None:
    env_fns = [make_env_fn(env_id, max_episode_steps=23)] * NUM_ENVS
    first, second, third = DummyVecEnv(env_fns), SubprocVecEnv(env_fns, 2), DummyVecEnv(env_fns)
    rng = np.random.default_rng(3)
    actions = rng.uniform(-1, 1, (90, *first.action_space.shape)).astype(np.float32)

    first.reset(seed=7)
    roll(first, actions[:30])
    state = first.get_state()
    second.set_state(state)  # never reset, and of the other kind
    assert_equal(second.get_state(), state)

    wanted, episodes = roll(first, actions[30:60])
    got, _ = roll(second, actions[30:60])
    assert episodes >= NUM_ENVS, "the part must see episodes end"
    assert_equal(got, wanted)

    third.set_state(second.get_state())
    wanted, _ = roll(first, actions[60:])
    assert_equal(roll(second, actions[60:])[0], wanted)
    assert_equal(roll(third, actions[60:])[0], wanted)
    for envs in (first, second, third):
        envs.close()


def test_state_errors() -> None:
    cartpole = DummyVecEnv([lambda: ClipReward(make_env_fn("CartPole-v1")(), -1.0, 1.0)])
    cartpole.reset(seed=0)
    assert not cartpole.state_supported
    with pytest.raises(EnvError, match="CartPole-v1 cannot be saved"):
        cartpole.get_state()
    with pytest.raises(EnvError, match="CartPole-v1 cannot be saved"):
        cartpole.set_state({})

    pendulum = make_env_fn("InvertedPendulum-v4")
    one, two = DummyVecEnv([pendulum]), DummyVecEnv([pendulum] * 2)
    assert one.state_supported
    with pytest.raises(RuntimeError, match=r"reset\(\) must be called before get_state"):
        one.get_state()
    one.reset(seed=0)
    with pytest.raises(ValueError, match="number of envs 1; this vector environment needs 2"):
        two.set_state(one.get_state())
    reacher = DummyVecEnv([make_env_fn("Reacher-v4")])
    with pytest.raises(ValueError, match=r"env_id 'InvertedPendulum-v4'.*needs 'Reacher-v4'"):
        reacher.set_state(one.get_state())
