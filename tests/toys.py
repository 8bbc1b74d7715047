"""Small environments for tests, made by id: ``toys:toy/NAME-v0``."""

import os

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

BOX1 = Box(-np.inf, np.inf, (1,), np.float64)


class RewardOne(gym.Env):
    """Reward 1 for ever; the observation never changes. With a time limit, V must go to 1 / (1 - gamma)."""

    observation_space = BOX1
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1), {}

    def step(self, action):
        return np.zeros(1), 1.0, False, False, {}


class Target(gym.Env):
    """One-step episodes: the reward is highest where the action equals the observation."""

    observation_space = BOX1
    action_space = Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._obs = self.np_random.uniform(-1.0, 1.0, 1)
        return self._obs, {}

    def step(self, action):
        reward = 1.0 - float(np.square(action - self._obs).sum())
        return self._obs, reward, True, False, {}


class Choice(gym.Env):
    """One-step episodes: the right choice is the sign of the observation."""

    observation_space = BOX1
    action_space = Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._obs = self.np_random.uniform(-1.0, 1.0, 1)
        return self._obs, {}

    def step(self, action):
        right = 2 if self._obs[0] > 0 else 0
        return self._obs, float(action == right), True, False, {}


class Masked(gym.Env):
    """Allows some of five actions at each step, says so in the info, and raises on any other.

    Everything follows from (seed, episode, step). Reward 1 for the allowed action with the highest number.
    """

    observation_space = Box(-np.inf, np.inf, (3,), np.float64)
    action_space = Discrete(5)

    def __init__(self, key="action_mask", dead_end=None):
        self._key, self._dead_end = key, dead_end
        self.place = [0, 0, 0]  # seed, episode, step

    @staticmethod
    def at(seed, episode, step):
        """Observation, mask, and whether the episode ends by the next step."""
        rng = np.random.default_rng((seed, episode, step))
        mask = rng.random(5) < 0.3
        mask[rng.integers(5)] = True
        return rng.normal(size=3) + mask[:3], mask, rng.random() < 0.15

    def reset(self, *, seed=None, options=None):
        self.place = [self.place[0], self.place[1] + 1, 0] if seed is None else [seed, 0, 0]
        return self._now()

    def _now(self):
        obs, self.mask, self._ends = self.at(*self.place)
        if self.place[2] == self._dead_end:
            self.mask = np.zeros(5, bool)
        return obs, {self._key: self.mask.astype(np.int8)} if self._key else {}

    def step(self, action):
        if not self.mask[action]:
            raise ValueError(f"action {action} is forbidden")
        reward, terminated = float(action == np.flatnonzero(self.mask)[-1]), bool(self._ends)
        self.place[2] += 1
        obs, info = self._now()
        return obs, reward, terminated, self.place[2] == 12, info


class MaskedByMethod(Masked):
    """As ``Masked``, with a method instead of an entry in the info."""

    def __init__(self):
        super().__init__(key=None)

    def action_masks(self):
        return self.mask


class Poisoned(RewardOne):
    """Delivers NaN as an observation after ``healthy`` steps."""

    def __init__(self, healthy=40, poison="obs"):
        self._healthy, self._poison, self._steps = healthy, poison, 0

    def step(self, action):
        self._steps += 1
        bad = self._steps > self._healthy
        obs = np.full(1, np.nan) if bad and self._poison == "obs" else np.zeros(1)
        return obs, float("nan") if bad and self._poison == "reward" else 1.0, False, False, {}


class Raises(RewardOne):
    """Raises after ``healthy`` steps."""

    def __init__(self, healthy=40):
        self._healthy, self._steps = healthy, 0

    def step(self, action):
        self._steps += 1
        if self._steps > self._healthy:
            raise ValueError("the simulator broke")
        return super().step(action)


class Shown(RewardOne):
    """Returns 5, 15 and 10 in turn, in pictures that are red, green and blue; "human" writes a line for each frame."""

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.render_mode, self._episode = render_mode, -1

    def reset(self, *, seed=None, options=None):
        self._episode += 1
        return super().reset(seed=seed)

    def step(self, action):
        obs, _, *rest = super().step(action)
        if self.render_mode == "human":
            self.render()
        return obs, (0.5, 1.5, 1.0)[self._episode % 3], *rest

    def render(self):
        if self.render_mode == "human":
            with open(os.environ["TOY_WINDOW"], "a") as window:
                window.write(f"{self._episode}\n")
            return None
        picture = np.zeros((33, 48, 3), np.uint8)  # an odd height, which the codec does not take
        picture[..., self._episode % 3] = 200
        return picture


class Colored(Shown):
    """As ``Shown``, with an episode that follows from the seed of its reset."""

    def reset(self, *, seed=None, options=None):
        self._episode = -1 if seed is None else seed % 3 - 1
        return super().reset(seed=seed)


class BreaksWhenRendered(Shown):
    """Renders its first picture only."""

    def render(self):
        self.shown = getattr(self, "shown", 0) + 1
        if self.shown > 1:
            raise ValueError("the sprites are missing")
        return super().render()


gym.register("toy/BreaksWhenRendered-v0", BreaksWhenRendered, max_episode_steps=10)
gym.register("toy/Colored-v0", Colored, max_episode_steps=10)
gym.register("toy/Shown-v0", Shown, max_episode_steps=10)
gym.register("toy/RewardOne-v0", RewardOne, max_episode_steps=20)
gym.register("toy/Endless-v0", RewardOne)
gym.register("toy/Target-v0", Target)
gym.register("toy/Choice-v0", Choice)
gym.register("toy/Masked-v0", Masked)
gym.register("toy/MaskedAvail-v0", Masked, kwargs={"key": "avail_actions"})
gym.register("toy/MaskedByMethod-v0", MaskedByMethod)
gym.register("toy/DeadEnd-v0", Masked, kwargs={"dead_end": 2})
gym.register("toy/Poisoned-v0", Poisoned, max_episode_steps=10_000)
gym.register("toy/PoisonedReward-v0", Poisoned, max_episode_steps=10_000, kwargs={"poison": "reward"})
gym.register("toy/Raises-v0", Raises, max_episode_steps=10_000)
gym.register("toy/NanAtOnce-v0", Poisoned, max_episode_steps=10_000, kwargs={"healthy": 3})
gym.register("toy/RaisesAtOnce-v0", Raises, max_episode_steps=10_000, kwargs={"healthy": 3})
gym.register(
    "toy/ShortPendulum-v0", "gymnasium.envs.mujoco.inverted_pendulum_v5:InvertedPendulumEnv", max_episode_steps=6
)
