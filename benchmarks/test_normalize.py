"""Moments update + normalize + clip against Gymnasium's vector NormalizeObservation."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import VectorEnv
from gymnasium.wrappers.vector import NormalizeObservation

from xcfast import ObservationNormalizer, RunningMeanStd


class _Spaces(VectorEnv):
    """What the wrapper asks of an env, and nothing that costs time."""

    def __init__(self, num_envs: int, dim: int) -> None:
        self.num_envs = num_envs
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (dim,), np.float64)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (num_envs, dim), np.float64)
        self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}


@pytest.mark.parametrize(("num_envs", "dim"), [(16, 27), (64, 27), (1024, 348)], ids=str)
def test_normalize(compare: Any, num_envs: int, dim: int) -> None:
    obs = np.random.default_rng(0).normal(size=(num_envs, dim)) * 3 + 1
    wrapper = NormalizeObservation(_Spaces(num_envs, dim))
    rms, out = RunningMeanStd((dim,)), np.empty((num_envs, dim), np.float32)
    normalizer = ObservationNormalizer((dim,), num_envs=num_envs)

    def gymnasium() -> None:
        wrapper.observations(obs)  # it does not clip; ours does

    def fused() -> None:
        rms.update_and_normalize(obs, 5.0, out)

    def track() -> None:
        normalizer.normalize_and_track(obs, out)

    fused()
    wanted = np.clip((obs - obs.mean(0)) / np.sqrt(obs.var(0) + 1e-8), -5, 5)
    np.testing.assert_allclose(out, wanted, rtol=1e-6, atol=1e-6)
    # Gymnasium starts its count at 1e-4, so the two agree up to that share of a batch.
    np.testing.assert_allclose(np.clip(wrapper.observations(obs), -5, 5), wanted, atol=1e-2)
    compare(
        "observation normalization",
        {"gymnasium": gymnasium, "update_and_normalize": fused, "normalize_and_track": track},
        baseline="gymnasium", shape=f"{num_envs}x{dim}", target=5.0,
    )  # fmt: skip
