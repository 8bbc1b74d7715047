"""The noise that actions are sampled with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from xcfast.kernels import noise
from xcfast.policy import CategoricalActor

if TYPE_CHECKING:
    from xcfast.policy import ActorCritic


class ActionNoise:
    """Counter-based noise: a function of (seed, global env index, that env's step count) and nothing else."""

    def __init__(self, policy: ActorCritic, seed: int, num_envs: int, env_offset: int = 0) -> None:
        self.counters = np.zeros(num_envs, np.int64)
        self.seed, self.env_offset = seed, env_offset
        self._draw: Callable[..., np.ndarray]
        if isinstance(policy.actor, CategoricalActor):
            self._draw, self._out = noise.uniform_noise, np.empty(num_envs, np.float64)
        else:
            self._draw = noise.gaussian_noise
            self._out = np.empty((num_envs, policy.actor.logstd.numel()), np.float32)

    def next(self) -> np.ndarray:
        """Noise of every env's next step: float32 [N, A], or float64 [N] in (0, 1). Overwritten by the next call."""
        self._draw(self.seed, self.env_offset, self.counters, self._out)
        self.counters += 1
        return self._out

    def zeros(self) -> np.ndarray:
        """An array like those of ``next``."""
        return np.zeros_like(self._out)
