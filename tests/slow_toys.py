"""Gymnasium's pendulum, which takes TOY_SLEEP seconds a step where that is set: ``slow_toys:toy/SlowPendulum-v0``."""

import os
import time

import gymnasium as gym
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv

if seconds := float(os.environ.get("TOY_SLEEP", "0")):
    step = InvertedPendulumEnv.step

    def slow_step(self, action):
        time.sleep(seconds)
        return step(self, action)

    InvertedPendulumEnv.step = slow_step  # not a subclass, whose state no checkpoint would hold

gym.register(
    "toy/SlowPendulum-v0", "gymnasium.envs.mujoco.inverted_pendulum_v5:InvertedPendulumEnv", max_episode_steps=100
)
