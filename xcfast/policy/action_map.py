"""The map from the policy's raw samples to the actions that an environment sees."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np

from xcfast.errors import EnvError

# The range of the mean for each activation that bounds it.
_MEANS = {
    "relu": (0.0, np.inf),
    "tanh": (-1.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "elu": (-1.0, np.inf),
    "softmax": (0.0, 1.0),
}


class ActionMap:
    """The map from the policy's raw samples to the actions that an env sees.

    With a tanh mean and finite bounds, it maps [-1, 1] to [low, high]. It clips the result, and all other samples, to
    those bounds that are finite. With ``identity`` it does neither, as a policy that XuanCe trained expects.
    Discrete actions pass through, shifted by ``start``.

    Args:
        action_space: Box or Discrete of one env.
        activation_action: Activation on the policy's mean, as in the configuration. A Python warning says so
            if it bounds the mean although the actions have no bounds.
        identity: Whether samples reach the env unchanged.

    Raises:
        EnvError: In a dimension of the Box, ``low`` is not below ``high``, so there is nothing to choose.
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
        for index in np.argwhere(~(self.low < self.high)):
            place = tuple(index)
            raise EnvError(
                f"the action space of one env has low {self.low[place]} and high {self.high[place]} in dimension "
                f"{', '.join(map(str, place))}; low must be below high, else there is nothing to choose"
            )
        if identity:
            self.low, self.high = np.full_like(self.low, -np.inf), np.full_like(self.high, np.inf)
            return
        if activation_action == "tanh" and action_space.is_bounded():
            low, high = self.low.astype(np.float64), self.high.astype(np.float64)
            self.scale = ((high - low) / 2).astype(np.float32)
            self.offset = ((high + low) / 2).astype(np.float32)
            self.rescales = bool((self.scale != 1).any() or (self.offset != 0).any())
            return
        least, most = _MEANS.get(activation_action or "", (-np.inf, np.inf))
        if (np.isinf(self.low) & np.isfinite(least)).any() or (np.isinf(self.high) & np.isfinite(most)).any():
            warnings.warn(
                f"activation_action: {activation_action} keeps the mean action in [{least:g}, {most:g}], while the "
                "env's actions have no bounds; activation_action: null frees the mean",
                stacklevel=1,  # one place for all callers, so that Python shows it once
            )

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """Returns env actions [N, *action_shape] of raw samples float32 [N, A] (or int64 [N])."""
        if self.discrete:
            return actions + self._start if self._start else actions
        actions = actions.reshape(len(actions), *self._shape)
        if self.rescales:
            actions = actions * self.scale + self.offset
        return np.minimum(np.maximum(actions, self.low), self.high).astype(self._dtype, copy=False)

    def describe(self) -> str:
        """Returns a phrase for the start table."""
        if self.discrete:
            return "discrete"
        if self.identity:
            return "the policy's samples, neither mapped nor clipped"
        if self.rescales:
            return "tanh range mapped to the bounds, then clipped"
        finite = np.isfinite([self.low, self.high])
        if finite.all():
            return "clipped to the bounds"
        return "clipped to the finite bounds" if finite.any() else "unbounded, not clipped"
