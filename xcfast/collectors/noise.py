"""The noise that actions are sampled with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from xcfast.collectors.colored_noise import ColoredNoise
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
        beta: The exponent of the power spectrum 1 / f**beta of Gaussian noise, see `ColoredNoise`; 0: white noise.

    Attributes:
        counters: int64 [N], the steps of each environment so far.
        seed: The seed.
        env_offset: The global index of the first environment.

    Raises:
        ValueError: The policy is Categorical, and beta is not 0.
    """

    def __init__(self, policy: ActorCritic, seed: int, num_envs: int, env_offset: int = 0, beta: float = 0.0) -> None:
        self.counters = np.zeros(num_envs, np.int64)
        self.seed, self.env_offset = seed, env_offset
        self._draw: Callable[..., np.ndarray]
        self._colored: ColoredNoise | None = None
        if isinstance(policy.actor, CategoricalActor):
            if beta != 0:
                raise ValueError(f"beta must be 0 with a Categorical policy, whose noise is uniform; got {beta}")
            self._draw, self._out = noise.uniform_noise, np.empty(num_envs, np.float64)
        else:
            width = policy.actor.logstd.numel()
            self._draw, self._out = noise.gaussian_noise, np.empty((num_envs, width), np.float32)
            if beta != 0:
                self._colored = ColoredNoise(beta, seed, env_offset, num_envs, width)

    def steps(self, num_steps: int) -> Iterator[np.ndarray]:
        """Yields the noise of every environment's next steps, one step at a time, and counts each of them.

        Args:
            num_steps: The number of steps.

        Yields:
            Standard normal float32 [N, A] for a Gaussian actor, uniform float64 [N] in (0, 1) for a Categorical one.
            The next step overwrites it.
        """
        rows = self.ahead(num_steps)
        for step in range(num_steps):
            row = self._draw(self.seed, self.env_offset, self.counters, self._out) if rows is None else rows[step]
            self.counters += 1
            yield row

    def ahead(self, num_steps: int) -> np.ndarray | None:
        """Returns the colored noise of every environment's next steps, without counting them.

        Args:
            num_steps: The number of steps.

        Returns:
            float32 [num_steps, N, A]. None if the noise is white: it is then drawn step by step.
        """
        return None if self._colored is None else self._colored.rows(self.counters, num_steps)
