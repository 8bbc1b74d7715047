"""A half cheetah that runs backwards: the smallest task of one's own.

python -m xcfast.train configs/half_cheetah.yaml --env-id run_backwards:RunBackwards-v0
"""

import numpy as np

from xcfast.tasks import MujocoTask, register


@register("RunBackwards-v0", max_episode_steps=1000)
class RunBackwards(MujocoTask):
    xml = "half_cheetah.xml"  # a model of Gymnasium's, or the path of a file
    frame_skip = 5
    memory = {"x": 0.0}
    terms = ("forward", "control")
    control_weight = 0.1

    def reset(self, rng, qpos, qvel, memory):
        qpos += rng.uniform(-0.1, 0.1, qpos.size)
        qvel += 0.1 * rng.standard_normal(qvel.size)
        memory.x = qpos[0]

    def step(self, data, action, memory, terms):
        terms.forward = (memory.x - data.qpos[0]) / self.dt
        terms.control = -self.control_weight * np.sum(np.square(action))
        memory.x = data.qpos[0]
        return terms.forward + terms.control, False

    def observe(self, data, memory):
        return np.concatenate((data.qpos[1:], data.qvel))
