"""The noise that actions are sampled with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from xcfast.kernels import noise
from xcfast.policy.networks import CategoricalActor

if TYPE_CHECKING:
    from xcfast.policy.networks import ActorCritic


class ActionNoise:
    """Draws noise that depends on nothing but the seed, an environment's global index and its count of steps.

    Args:
        policy: The policy, whose actor decides the kind of noise.
        seed: The seed.
        num_envs: The number of environments, N.
        env_offset: The global index of the first environment.

    Attributes:
        counters: int64 [N], the steps of each environment so far.
        seed: The seed.
        env_offset: The global index of the first environment.
    """

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
        """Returns the noise of every environment's next step.

        Returns:
            Standard normal float32 [N, A] for a Gaussian actor, uniform float64 [N] in (0, 1) for a Categorical one.
            The next call overwrites it.
        """
        self._draw(self.seed, self.env_offset, self.counters, self._out)
        self.counters += 1
        return self._out
