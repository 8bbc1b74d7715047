"""Action noise with the power spectrum 1 / f**beta, alone and in both collectors."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from collecting import Collecting

from xcfast.collectors.colored_noise import BLOCK, ColoredNoise
from xcfast.collectors.noise import ActionNoise
from xcfast.config import ConfigError
from xcfast.envs import ClassicControlVecEnv, MujocoVecEnv
from xcfast.kernels import reference
from xcfast.kernels.noise import gaussian_noise
from xcfast.policy import build_policy

SIGMAS = 5  # of the deviation that a tested statistic has if the noise is right
NORMAL_CDF = {-2.0: 0.02275013, -1.0: 0.15865525, 0.0: 0.5, 0.5: 0.69146246, 1.5: 0.93319280}


def noise(beta, num_envs, num_steps, width=1, first_step=0, seed=1, env_offset=0):
    """Returns [num_steps, num_envs, width]."""
    colored = ColoredNoise(beta, seed, env_offset, num_envs, width)
    return colored.rows(np.full(num_envs, first_step, np.int64), num_steps)


# --- the distribution


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_definition(beta):
    """Both compute in float64, so the results differ by no more than the rounding to float32."""
    for env, block in ((0, 0), (5, 3)):
        expected = reference.colored_noise(9, beta, env, block, BLOCK, 2)
        given = noise(beta, 1, BLOCK, 2, block * BLOCK, 9, env)[:, 0]
        np.testing.assert_allclose(given, expected, rtol=2**-24, atol=BLOCK * np.finfo(np.float64).eps)


@pytest.mark.parametrize("beta", [0.25, 0.5, 1.0, 2.0])
def test_the_slope_of_the_spectrum(beta):
    """The power at each frequency is exponentially distributed, so its logarithm has the variance pi^2 / 6."""
    num_envs, width, blocks = 8, 3, 30
    series = noise(beta, num_envs, blocks * BLOCK, width).reshape(blocks, BLOCK, -1).astype(np.float64)
    power = np.abs(np.fft.rfft(series, axis=1)[:, 1 : BLOCK // 2]) ** 2
    logs = np.log(power).transpose(1, 0, 2).reshape(BLOCK // 2 - 1, -1)
    x = np.log(np.arange(1, BLOCK // 2))
    x -= x.mean()
    slope = x @ logs.mean(1) / (x @ x)
    deviation = math.sqrt(math.pi**2 / 6 / (logs.shape[1] * (x @ x)))
    assert deviation < 0.003
    assert abs(slope + beta) < SIGMAS * deviation
    spread = logs.var(axis=1).mean()  # of independent values; the fourth central moment over the variance is 5.4
    assert abs(spread - math.pi**2 / 6) < SIGMAS * math.pi**2 / 6 * math.sqrt(4.4 / logs.size) + 2 / logs.shape[1]


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_every_step_is_standard_normal(beta):
    n = 2048
    series = noise(beta, n, BLOCK)[..., 0].astype(np.float64)
    for step in (0, 1, 333, BLOCK // 2, BLOCK - 1):
        x = series[step]
        assert abs(x.mean()) < SIGMAS / math.sqrt(n)
        assert abs(x.var() - 1) < SIGMAS * math.sqrt(2 / n)
        for bound, share in NORMAL_CDF.items():
            assert abs((x < bound).mean() - share) < SIGMAS * math.sqrt(share * (1 - share) / n)
    # The mean square of a block has the variance 2 * (sum of the squares of the shares of power), per environment.
    powers = np.maximum(np.minimum(np.arange(BLOCK), BLOCK - np.arange(BLOCK)), 1.0) ** -beta
    deviation = math.sqrt(2 * ((powers / powers.sum()) ** 2).sum() / n)
    assert abs((series**2).mean() - 1) < SIGMAS * deviation


def test_dimensions_environments_and_blocks_are_independent():
    n = 1024
    noises = noise(1.0, 2 * n, 2, width=2, first_step=BLOCK - 1).astype(np.float64)
    last, first = noises[0], noises[1]  # of two blocks
    pairs = {
        "dimensions": (last[:, 0], last[:, 1]),
        "environments": (last[::2], last[1::2]),
        "blocks": (last, first),
        "seeds": (last, noise(1.0, 2 * n, 1, 2, BLOCK - 1, seed=2)[0]),
    }
    for name, (one, other) in pairs.items():
        assert abs((one * other).mean()) < SIGMAS / math.sqrt(one.size), name
    within = noise(1.0, n, 2)[..., 0]
    assert (within[0] * within[1]).mean() > 0.5  # what the test sees where there is a correlation


# --- what it depends on


def test_neither_grouping_nor_pieces_nor_the_start_matter():
    whole = noise(0.5, 6, 2 * BLOCK + 100, width=3)
    for first in range(6):
        np.testing.assert_array_equal(whole[:, first:], noise(0.5, 6 - first, len(whole), 3, env_offset=first))
    np.testing.assert_array_equal(whole[..., :2], noise(0.5, 6, len(whole), 2))
    np.testing.assert_array_equal(whole[1500:], noise(0.5, 6, len(whole) - 1500, 3, first_step=1500))
    colored, at = ColoredNoise(0.5, 1, 0, 6, 3), 0
    for count in (1, 700, 0, 323, 1, 1123):
        np.testing.assert_array_equal(colored.rows(np.full(6, at), count), whole[at : at + count])
        at += count
    apart = np.array([0, 1000, 5, 1023, 1024, 1500])
    for env, row in enumerate(colored.rows(apart, 600).transpose(1, 0, 2)):
        np.testing.assert_array_equal(row, whole[apart[env] : apart[env] + 600, env])


def test_without_beta_the_noise_is_white(small):
    action_noise = ActionNoise(policy_for(small(), MujocoVecEnv), 3, 4, env_offset=2)
    assert action_noise.ahead(5) is None
    for t, row in enumerate(action_noise.steps(5)):
        expected = gaussian_noise(3, 2, np.full(4, t, np.int64), np.empty((4, 1), np.float32))
        np.testing.assert_array_equal(row, expected)
    np.testing.assert_array_equal(action_noise.counters, 5)


def test_a_categorical_policy_has_no_color(small):
    policy = policy_for(small(env_id="CartPole-v1"), ClassicControlVecEnv)
    with pytest.raises(ValueError, match=r"beta must be 0 with a Categorical policy.* got 0\.5"):
        ActionNoise(policy, 1, 2, beta=0.5)
    config = small(env_id="CartPole-v1", noise_beta=0.5)  # `policy: auto`
    with pytest.raises(ConfigError, match="noise_beta.*0 with policy Categorical_AC"):
        policy_for(config, ClassicControlVecEnv)


def policy_for(config, kind):
    envs = kind(config.env_id, 1)
    envs.close()
    return build_policy(config, envs.single_observation_space, envs.single_action_space)


# --- in the collectors


def collecting(config, backend, threads=1):
    """With a policy whose mean is always 0 and whose deviation is 1, so that its actions are the noise."""
    setup = Collecting(config, MujocoVecEnv(config.env_id, config.parallels, threads, copy=False), backend)
    with torch.no_grad():
        for parameter in setup.policy.parameters():
            parameter.zero_()
    setup.collector.reset(3)
    return setup


@pytest.fixture
def config(small):
    """Two rollouts are more than a block; episodes are short."""
    return small(env_id="Hopper-v4", parallels=3, horizon_size=520, running_steps=1560, noise_beta=0.5, seed=4)


def test_both_collectors_take_the_same_noise(config):
    expected = noise(0.5, 3, 1040, width=3, seed=4)
    rollouts = {}
    for backend in ("torch", "native"):
        setup = collecting(config, backend)
        assert setup.collector.name == backend
        for start in (0, 520):  # the first block ends within the second rollout
            setup.rollout.clear()
            setup.collector.collect(setup.rollout)
            np.testing.assert_array_equal(setup.rollout.actions, expected[start : start + 520])
        assert len(setup.rollout.episodes) > 5  # a block goes on over their ends
        np.testing.assert_array_equal(setup.collector.noise.counters, 1040)
        rollouts[backend] = setup.rollout
    for name in ("obs", "rewards", "terminated", "last_obs"):
        np.testing.assert_array_equal(getattr(rollouts["torch"], name), getattr(rollouts["native"], name))


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_threads_pieces_and_resuming_do_not_matter(config, backend):
    """The state is taken in the middle of a rollout and of a block, and loaded by the other collector, too."""
    whole = collecting(config, backend)
    whole.collector.collect(whole.rollout)
    pieces = collecting(config, backend, threads=2)
    for count in (1, 300, 0):
        pieces.collector.collect(pieces.rollout, count)
    state = pieces.collector.state_dict()
    pieces.collector.collect(pieces.rollout)
    for name in ("obs", "actions", "rewards", "last_obs"):
        np.testing.assert_array_equal(getattr(pieces.rollout, name), getattr(whole.rollout, name), err_msg=name)
    for other in ("torch", "native"):
        resumed = collecting(replace(config, horizon_size=219), other)
        assert resumed.collector.load_state_dict(state)
        resumed.collector.collect(resumed.rollout)
        for name in ("actions", "rewards", "terminated"):
            np.testing.assert_array_equal(getattr(resumed.rollout, name), getattr(whole.rollout, name)[301:])


def test_native_code_checks_the_noise(config):
    setup = collecting(config, "native")
    setup.collector.noise.ahead = lambda num_steps: np.zeros((num_steps, 3, 2), np.float32)
    with pytest.raises(ValueError, match="ahead must be a C-contiguous array of 90 float32; got float32 .10, 3, 2."):
        setup.collector.collect(setup.rollout, 10)
