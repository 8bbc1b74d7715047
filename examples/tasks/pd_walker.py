"""Gymnasium's walker with a PD law in every physics step; the gains differ from episode to episode."""

import numpy as np
from gymnasium.spaces import Box

from xcfast.tasks import MujocoTask, register


@register("PDWalker-v0", max_episode_steps=1000)
class PDWalker(MujocoTask):
    xml = "walker2d_v5.xml"
    frame_skip = 4
    memory = {"x": 0.0, "gains": np.zeros(2), "last_target": np.zeros(6), "target": np.zeros(6)}
    terms = ("forward", "alive", "rate")
    smoothing = 0.5

    def build(self):
        self.action_space = Box(-1.0, 1.0, (6,), np.float32)

    def reset(self, rng, qpos, qvel, memory):
        qpos += rng.uniform(-5e-3, 5e-3, qpos.size)
        qvel += rng.uniform(-5e-3, 5e-3, qvel.size)
        memory.x = qpos[0]
        memory.gains = rng.uniform((1.0, 0.05), (2.0, 0.1))

    def before_step(self, data, action, memory):
        memory.last_target = memory.target
        memory.target += self.smoothing * (action - memory.target)

    def control(self, data, action, memory):
        stiffness, damping = memory.gains
        torque = stiffness * (memory.target - data.qpos[3:]) - damping * data.qvel[3:]
        data.ctrl[:] = np.clip(torque, -1.0, 1.0)

    def step(self, data, action, memory, terms):
        terms.forward = (data.qpos[0] - memory.x) / self.dt
        memory.x = data.qpos[0]
        terms.rate = -0.1 * np.sum(np.square(memory.target - memory.last_target))
        healthy = 0.8 < data.qpos[1] < 2.0 and abs(data.qpos[2]) < 1.0
        terms.alive = 1.0 if healthy else 0.0
        return terms.forward + terms.alive + terms.rate, not healthy

    def observe(self, data, memory):
        return np.concatenate((data.qpos[1:], np.clip(data.qvel, -10.0, 10.0), memory.target, memory.gains))
