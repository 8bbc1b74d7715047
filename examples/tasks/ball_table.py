"""A ball to be kept on a table that two motors tilt; it rolls towards a goal that moves after some steps."""

import math

import numpy as np

from xcfast.tasks import MujocoTask, register

_XML = """
<mujoco model="ball on a table">
  <option timestep="0.005"/>
  <worldbody>
    <body name="table" pos="0 0 .5">
      <joint name="tilt_x" type="hinge" axis="1 0 0" range="-20 20" damping="1"/>
      <joint name="tilt_y" type="hinge" axis="0 1 0" range="-20 20" damping="1"/>
      <geom name="top" type="box" size=".4 .4 .01" mass="2"/>
    </body>
    <body name="ball" pos="0 0 .55">
      <joint name="ball_x" type="slide" axis="1 0 0"/>
      <joint name="ball_y" type="slide" axis="0 1 0"/>
      <joint name="ball_z" type="slide" axis="0 0 1"/>
      <joint name="ball_turn" type="ball"/>
      <geom name="ball" type="sphere" size=".04" mass=".1" condim="4"/>
    </body>
  </worldbody>
  <actuator>
    <motor name="motor_x" joint="tilt_x" gear="4" ctrlrange="-1 1"/>
    <motor name="motor_y" joint="tilt_y" gear="4" ctrlrange="-1 1"/>
  </actuator>
</mujoco>
"""


@register("BallTable-v0", max_episode_steps=400)
class BallTable(MujocoTask):
    xml = _XML
    frame_skip = 4
    memory = {"steps": 0, "goal": np.zeros(2)}
    terms = ("near", "effort", "alive")
    goal_steps = 100

    def reset(self, rng, qpos, qvel, memory):
        qpos[2:4] = rng.uniform(-0.2, 0.2, 2)
        memory.goal = rng.uniform(-0.2, 0.2, 2)

    def step(self, data, action, memory, terms):
        memory.steps += 1
        if memory.steps % self.goal_steps == 0:
            memory.goal = -memory.goal
        ball = np.array([data.joint("ball_x").qpos[0], data.joint("ball_y").qpos[0]])
        gap = ball - memory.goal
        distance = math.sqrt(gap[0] * gap[0] + gap[1] * gap[1])
        terms.near = 1.0 - distance / 0.4
        terms.effort = -0.01 * np.sum(np.square(action))
        fell = data.body("ball").xpos[2] < 0.4
        terms.alive = 0.0 if fell else 0.1
        return terms.near + terms.effort + terms.alive, fell

    def observe(self, data, memory):
        return np.concatenate((data.qpos[:5], data.qvel[:5], memory.goal))
