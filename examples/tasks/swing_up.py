"""A pole that hangs down and is to be swung up, on Gymnasium's model of the inverted pendulum.

python -m xcfast.train configs/inverted_pendulum.yaml --env-id swing_up:SwingUp-v0
"""

import math

import mujoco
import numpy as np

from xcfast.tasks import MujocoTask, register


@register("SwingUp-v0", max_episode_steps=500)
class SwingUp(MujocoTask):
    frame_skip = 2
    terms = ("upright", "centered", "effort")
    effort_weight = 0.01

    def make_model(self):
        spec = mujoco.MjSpec.from_file(self.find_xml("inverted_pendulum.xml"))
        spec.joint("hinge").range = (-1e3, 1e3)  # the pole may turn round
        return spec

    def build(self):
        self.half_length = 0.5 * self.model.joint("slider").range[1]

    def reset(self, rng, qpos, qvel, memory):
        qpos[1] = math.pi  # down
        qpos += rng.uniform(-0.01, 0.01, 2)

    def step(self, data, action, memory, terms):
        terms.upright = 0.5 * (1.0 + math.cos(data.joint("hinge").qpos[0]))
        terms.centered = -0.1 * abs(data.joint("slider").qpos[0]) / self.half_length
        terms.effort = -self.effort_weight * action[0] * action[0]
        return terms.upright + terms.centered + terms.effort, False

    def observe(self, data, memory):
        angle = data.qpos[1]
        return np.array([data.qpos[0], math.sin(angle), math.cos(angle), data.qvel[0], data.qvel[1]])
