"""Environments that return what they are told to, and ones that draw from global generators."""

import random
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Returning(gymnasium.Env):
    """Returns given values in place of its own, from call `at` on; its episodes end after `length` steps."""

    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, space: Any = None, length: int = 1000, at: int = 1, **replaced: Any) -> None:
        self.observation_space = space or spaces.Box(-9.0, 9.0, (2,), np.float32)
        self.length, self.at, self.replaced = length, at, replaced
        self.steps = self.resets = self.count = 0

    def _observation(self) -> Any:
        return np.ones(self.observation_space.shape, self.observation_space.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.resets += 1
        self.count = 0
        if self.resets >= self.at and "reset" in self.replaced:
            return self.replaced["reset"]
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.count += 1
        if self.steps >= self.at and "step" in self.replaced:
            return self.replaced["step"]
        returned = {
            "ob": self._observation(),
            "reward": 1.0,
            "terminated": False,
            "truncated": self.count >= self.length,
            "info": {},
        }
        if self.steps >= self.at:
            returned |= self.replaced
        returned.pop("reset", None)
        return tuple(returned.values())


class GlobalDraws(gymnasium.Env):
    """Draws from the global generators of its process."""

    observation_space = spaces.Box(0.0, 1.0, (2,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.array([np.random.rand(), random.random()]), {}  # noqa: NPY002

    def step(self, action: Any) -> Any:
        return np.array([np.random.rand(), random.random()]), 0.0, False, False, {}  # noqa: NPY002


class NeedsArgument(Returning):
    def __init__(self, track: str, render_mode: str | None = None) -> None:
        super().__init__()
        if track == "broken":
            raise ValueError("track\nis broken")
        self.track = track


class DoubledReward(gymnasium.Wrapper):
    def __init__(self, env: gymnasium.Env, factor: float = 2.0) -> None:
        super().__init__(env)
        self.factor = factor

    def step(self, action: Any) -> Any:
        ob, reward, terminated, truncated, info = self.env.step(action)
        return ob, reward * self.factor, terminated, truncated, info


def no_wrapper(env: gymnasium.Env) -> int:
    return 3


class FlatSpace(Returning):
    def __init__(self, shape: tuple[int, ...] = (), render_mode: str | None = None) -> None:
        super().__init__(spaces.Box(-1.0, 1.0, shape, np.float32))
