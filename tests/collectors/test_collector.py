import inspect
from dataclasses import replace
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch

from xcfast.collectors.collector import Collector, warm_up
from xcfast.collectors.native import NativeCollector
from xcfast.collectors.torch import TorchCollector
from xcfast.envs import DummyVecEnv, MujocoVecEnv, make_env_fn, make_envs
from xcfast.errors import NonFiniteError
from xcfast.kernels.noise import gaussian_noise
from xcfast.moments import RunningMeanStd
from xcfast.normalize import ObservationNormalizer
from xcfast.policy import ActionMap, build_policy
from xcfast.rollout import Rollout
from xcfast.runs.evaluation import Evaluator
from xcfast.runs.player import Player


def make_collector(config, reset=True):
    envs = make_envs(config)
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    policy = build_policy(config, obs_space, action_space)
    normalizer = ObservationNormalizer(obs_space.shape, num_envs=config.parallels, clip=5.0, enabled=config.use_obsnorm)
    action_map = ActionMap(action_space, config.activation_action)
    collector = TorchCollector(envs, policy, normalizer, action_map, config.seed)
    if reset:
        collector.reset(7)
    rollout = Rollout(config.horizon_size, config.parallels, obs_space.shape, action_space.shape)
    return collector, rollout, normalizer


def test_rollout_replays_through_gymnasium(small):
    """The recorded raw actions, mapped and stepped through bare Gymnasium envs, give the recorded trajectory."""
    config = small(parallels=2, horizon_size=300, running_steps=600)
    collector, rollout, normalizer = make_collector(config)
    frozen = RunningMeanStd(normalizer.rms.mean.shape)
    collector.collect(rollout)
    action_map = ActionMap(collector.envs.single_action_space, "tanh")
    assert action_map.rescales  # the bounds are +-3
    ends = 0
    for env_index in range(2):
        env = make_env_fn(config.env_id)()
        obs, _ = env.reset(seed=7 + env_index)
        for t in range(300):
            expected = np.clip((obs - frozen.mean) / np.sqrt(frozen.var + 1e-8), -5, 5).astype(np.float32)
            np.testing.assert_array_equal(rollout.obs[t, env_index], expected)
            action = action_map(rollout.actions[t, env_index][None])[0]
            obs, reward, terminated, truncated, _ = env.step(action)
            assert rollout.rewards[t, env_index] == np.float32(reward)
            assert rollout.terminated[t, env_index] == terminated
            assert rollout.truncated[t, env_index] == truncated
            if terminated or truncated:
                ends += 1
                obs, _ = env.reset()
        env.close()
    assert ends > 4
    assert len(rollout.episodes) == ends


def test_actions_are_mean_plus_std_times_counter_based_noise(small):
    config = small(seed=3)
    collector, rollout, _ = make_collector(config)
    collector.collect(rollout, 5)
    noise = np.empty((config.parallels, 1), np.float32)
    for t in range(5):
        gaussian_noise(3, 0, np.full(config.parallels, t, np.int64), noise)
        with torch.no_grad():
            mean = collector.policy.act(torch.from_numpy(rollout.obs[t].copy())).numpy()
        np.testing.assert_allclose(
            rollout.actions[t], mean + np.float32(np.exp(np.float32(-1))) * noise, rtol=1e-5, atol=1e-6
        )


def test_collecting_in_pieces_is_the_same(small):
    config = small()
    whole_collector, whole, whole_normalizer = make_collector(config)
    pieces_collector, pieces, pieces_normalizer = make_collector(config)
    for _ in range(2):
        whole_collector.collect(whole)
        for count in (1, 10, 20, 1):
            pieces_collector.collect(pieces, count)
        for name in ("obs", "actions", "rewards", "terminated", "truncated", "last_obs", "episodes"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name), err_msg=name)
        np.testing.assert_array_equal(whole_normalizer.rms.mean, pieces_normalizer.rms.mean)
        whole.clear()
        pieces.clear()


def test_subprocess_envs_give_the_same_rollout(small):
    config = small(parallels=5)
    collector, rollout, normalizer = make_collector(config)
    other_collector, other, other_normalizer = make_collector(replace(config, vectorize="SubprocVecEnv", num_workers=2))
    try:
        for _ in range(3):
            collector.collect(rollout)
            other_collector.collect(other)
            for name in ("obs", "actions", "rewards", "terminated", "truncated", "last_obs"):
                np.testing.assert_array_equal(getattr(rollout, name), getattr(other, name), err_msg=name)
            rollout.clear()
            other.clear()
        np.testing.assert_array_equal(normalizer.rms.var, other_normalizer.rms.var)
    finally:
        other_collector.envs.close()


def test_statistics_are_frozen_within_a_rollout_and_merged_after_it(small):
    collector, rollout, normalizer = make_collector(small())
    collector.collect(rollout, 31)
    assert normalizer.rms.count == 0
    collector.collect(rollout)
    assert normalizer.rms.count == 32 * 4
    raw = rollout.obs.reshape(-1, 4).astype(np.float64)  # statistics were mean 0, var 1: obs are the raw ones
    np.testing.assert_allclose(normalizer.rms.mean, raw.mean(0), rtol=1e-5, atol=1e-7)


def test_final_observations_of_truncated_episodes(small):
    config = small(env_id="toys:toy/RewardOne-v0", parallels=3)
    collector, rollout, _ = make_collector(config)
    collector.collect(rollout)
    assert rollout.truncated[19].all() and rollout.truncated.sum() == 3
    np.testing.assert_array_equal(rollout.final_index, 19 * 3 + np.arange(3))
    assert rollout.final_obs.shape == (3, 1)


def test_warm_up_is_not_trained_on_but_moves_statistics_and_noise(small):
    collector, rollout, normalizer = make_collector(small())
    warm_up(collector, rollout)
    assert rollout.step == 0 and len(rollout.episodes) == 0
    assert normalizer.rms.count == 32 * 4
    assert (collector.noise.counters == 32).all()


@pytest.mark.parametrize("use_obsnorm", [True, False])
def test_nan_observation_is_named(small, use_obsnorm):
    collector, rollout, _ = make_collector(small(env_id="toys:toy/Poisoned-v0", use_obsnorm=use_obsnorm))
    collector.collect(rollout)
    rollout.clear()
    with pytest.raises(NonFiniteError, match="env 0"):
        collector.collect(rollout)


def test_collect_before_reset_says_so(small):
    collector, rollout, _ = make_collector(small(), reset=False)
    with pytest.raises(RuntimeError, match="before reset"):
        collector.collect(rollout)


class Bursting(gymnasium.Env):
    """Returns infinity as the observation after `at` steps; its episodes end there by a time limit, if `ends`."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, at: int, ends: str, value: float = np.inf) -> None:
        self.at, self.ends, self.value, self.count = at, ends, value, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(2), {}

    def step(self, action):
        self.count += 1
        bursts = self.count == self.at
        obs = np.array([0.5, self.value if bursts else 0.0])
        return obs, 1.0, bursts and self.ends == "terminated", bursts and self.ends == "truncated", {}


def bursting_collector(config, ends, value, at=20):
    envs = DummyVecEnv([partial(Bursting, 10**9, ends), partial(Bursting, at, ends, value)], copy=False)
    space, action_space = envs.single_observation_space, envs.single_action_space
    policy = build_policy(config, space, action_space)
    normalizer = ObservationNormalizer(space.shape, num_envs=2, clip=5.0, enabled=config.use_obsnorm)
    collector = TorchCollector(envs, policy, normalizer, ActionMap(action_space, "tanh"), 1, env_offset=10)
    collector.reset(1)
    return collector, Rollout(32, 2, space.shape, (1,))


@pytest.mark.parametrize("use_obsnorm", [True, False])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_final_observations_that_are_not_finite(small, use_obsnorm, value):
    collector, rollout = bursting_collector(small(use_obsnorm=use_obsnorm), "truncated", value)
    message = "^final observation of env 11 at step 19 of the rollout is not finite$"
    with pytest.raises(NonFiniteError, match=message):
        collector.collect(rollout)


@pytest.mark.parametrize("use_obsnorm", [True, False])
def test_last_observations_that_are_not_finite(small, use_obsnorm):
    collector, rollout = bursting_collector(small(use_obsnorm=use_obsnorm), "", np.inf, at=32)
    message = "^observation of env 11 after the last step of the rollout is not finite$"
    with pytest.raises(NonFiniteError, match=message):
        collector.collect(rollout)


def test_final_observations_that_nobody_reads(small):
    """An episode that terminates is worth 0 afterwards, whatever its last observation."""
    collector, rollout = bursting_collector(small(), "terminated", np.inf)
    collector.collect(rollout)
    assert rollout.terminated[19].tolist() == [False, True]


def test_both_collectors_are_collectors():
    """Each has all that the protocol names, with the same arguments."""
    for kind in (TorchCollector, NativeCollector):
        for name in ("reset", "collect", "state_dict", "load_state_dict"):
            wanted = list(inspect.signature(getattr(Collector, name)).parameters.values())
            given = list(inspect.signature(getattr(kind, name)).parameters.values())
            assert [(one.name, one.default) for one in given] == [(one.name, one.default) for one in wanted]
        assert not hasattr(kind, "warm_up")


@pytest.mark.parametrize("kind", [DummyVecEnv, MujocoVecEnv])
def test_envs_that_reset_a_step_later(small, kind):
    config = small()
    make = {"autoreset_mode": "next_step"}
    envs = kind([make_env_fn(config.env_id)], **make) if kind is DummyVecEnv else kind(config.env_id, 1, **make)
    policy = build_policy(config, envs.single_observation_space, envs.single_action_space)
    normalizer = ObservationNormalizer(envs.single_observation_space.shape, num_envs=1)
    action_map = ActionMap(envs.single_action_space, "tanh")
    collector = TorchCollector if kind is DummyVecEnv else NativeCollector
    with pytest.raises(ValueError, match="envs must have autoreset_mode='same_step'; got 'next_step'"):
        collector(envs, policy, normalizer, action_map, 1)
    with pytest.raises(ValueError, match="envs must have autoreset_mode='same_step'; got 'next_step'"):
        Evaluator(config, Player(policy, normalizer, action_map), envs=envs)
    envs.close()
    silent = DummyVecEnv([make_env_fn(config.env_id)], episode_statistics=False)
    with pytest.raises(ValueError, match="episode_statistics=False"):
        Evaluator(config, Player(policy, normalizer, action_map), envs=silent)


def test_only_calls_of_reset_and_step_are_uses(small):
    """A user of the environments is told apart from the native collector, which steps them without these calls."""
    config = small(native_envs="auto")
    envs = make_envs(config)
    policy = build_policy(config, envs.single_observation_space, envs.single_action_space)
    normalizer = ObservationNormalizer((4,), num_envs=config.parallels)
    collector = NativeCollector(envs, policy, normalizer, ActionMap(envs.single_action_space, "tanh"), 1)
    collector.reset(1)
    collector.collect(Rollout(config.horizon_size, config.parallels, (4,), (1,)))
    assert envs.uses == 1
    envs.step(np.zeros((config.parallels, 1), np.float32))
    assert envs.uses == 2
    envs.close()
