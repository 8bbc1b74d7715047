"""The map from the policy's raw samples to the actions that an environment sees."""

from __future__ import annotations

import gymnasium as gym
import numpy as np


class ActionMap:
    """From the policy's raw sample to the action that the env sees.

    With a tanh mean and finite bounds, [-1, 1] is mapped to [low, high]; then, or otherwise, the result is clipped to
    the bounds. With ``identity`` neither is done: so a policy that XuanCe trained knows its actions. Discrete actions
    pass through (shifted by ``start``).
    """

    def __init__(self, action_space: gym.Space, activation_action: str | None, identity: bool = False) -> None:
        self.discrete = isinstance(action_space, gym.spaces.Discrete)
        self.rescales = False
        self.identity = identity
        if isinstance(action_space, gym.spaces.Discrete):
            self._start = int(action_space.start)
            return
        assert isinstance(action_space, gym.spaces.Box)
        self._shape = action_space.shape
        self._dtype = action_space.dtype
        self.low, self.high = action_space.low, action_space.high
        if identity:
            self.low, self.high = np.full_like(self.low, -np.inf), np.full_like(self.high, np.inf)
        elif activation_action == "tanh" and action_space.is_bounded():
            low, high = self.low.astype(np.float64), self.high.astype(np.float64)
            self.scale = ((high - low) / 2).astype(np.float32)
            self.offset = ((high + low) / 2).astype(np.float32)
            self.rescales = bool((self.scale != 1).any() or (self.offset != 0).any())

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """Env actions [N, *action_shape] of raw samples float32 [N, A] (or int64 [N])."""
        if self.discrete:
            return actions + self._start if self._start else actions
        actions = actions.reshape(len(actions), *self._shape)
        if self.rescales:
            actions = actions * self.scale + self.offset
        return np.minimum(np.maximum(actions, self.low), self.high).astype(self._dtype, copy=False)

    def describe(self) -> str:
        """A phrase for the start table."""
        if self.discrete:
            return "discrete"
        if self.identity:
            return "as the policy makes them, neither mapped nor clipped"
        if self.rescales:
            return "tanh range mapped to the bounds, then clipped"
        return "clipped to the bounds"
