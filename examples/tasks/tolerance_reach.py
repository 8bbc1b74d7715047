"""An upright torso on two legs in the manner of humanoid benchmarks: sensors by name, tolerances, rescaled actions."""

import math

import numpy as np
from gymnasium.spaces import Box

from xcfast.tasks import MujocoTask, register

_LEG = """
      <body name="{side}_thigh" pos="0 {y} -.1">
        <joint name="{side}_hip" axis="0 1 0" range="-60 60"/>
        <geom type="capsule" fromto="0 0 0 0 0 -.35" size=".05"/>
        <body name="{side}_shin" pos="0 0 -.35">
          <joint name="{side}_knee" axis="0 1 0" range="0 120"/>
          <geom type="capsule" fromto="0 0 0 0 0 -.35" size=".04"/>
          <geom name="{side}_foot" type="box" pos=".05 0 -.38" size=".1 .05 .02"/>
        </body>
      </body>"""
_XML = f"""
<mujoco model="two legs">
  <option timestep="0.005"/>
  <default><joint damping="1" armature=".01"/><motor ctrlrange="-40 80"/></default>
  <worldbody>
    <geom name="floor" type="plane" size="20 20 1"/>
    <body name="torso" pos="0 0 .92">
      <freejoint name="root"/>
      <geom type="box" size=".1 .15 .15" mass="8"/>
      <site name="head" pos="0 0 .2"/>{_LEG.format(side="left", y=0.1)}{_LEG.format(side="right", y=-0.1)}
    </body>
  </worldbody>
  <sensor>
    <framepos name="head_pos" objtype="site" objname="head"/>
    <framezaxis name="torso_up" objtype="xbody" objname="torso"/>
    <subtreelinvel name="center_velocity" body="torso"/>
  </sensor>
  <actuator>
    <motor joint="left_hip"/><motor joint="left_knee"/><motor joint="right_hip"/><motor joint="right_knee"/>
  </actuator>
</mujoco>
"""


def tolerance(x, low, high, margin):
    """Returns 1 between low and high, and less the farther x is outside; 0.1 at the margin."""
    if low <= x <= high:
        return 1.0
    distance = (low - x if x < low else x - high) / margin
    return math.exp(-0.5 * (distance * 2.145966026289347) ** 2)


@register("StandAndWalk-v0", max_episode_steps=500)
class StandAndWalk(MujocoTask):
    xml = _XML
    frame_skip = 5
    terms = ("stand", "upright", "speed", "small_control")
    wanted_speed = 1.0

    def build(self):
        self.action_space = Box(-1.0, 1.0, (4,), np.float32)
        low, high = self.model.actuator_ctrlrange.T
        self.center, self.half_range = (high + low) / 2, (high - low) / 2

    def reset(self, rng, qpos, qvel, memory):
        qpos[7:] += rng.uniform(-0.05, 0.05, qpos.size - 7)

    def control(self, data, action, memory):
        data.ctrl[:] = self.center + self.half_range * action

    def step(self, data, action, memory, terms):
        head, up = data.sensor("head_pos").data, data.sensor("torso_up").data
        terms.stand = tolerance(head[2], 1.0, math.inf, 0.25)
        terms.upright = tolerance(up[2], 0.9, math.inf, 1.9)
        terms.speed = tolerance(data.sensor("center_velocity").data[0], self.wanted_speed, math.inf, self.wanted_speed)
        terms.small_control = np.mean(np.abs(action))
        calm = (4.0 + tolerance(terms.small_control, 0.0, 0.0, 1.0)) / 5.0
        return terms.stand * terms.upright * calm * terms.speed, head[2] < 0.5

    def observe(self, data, memory):
        return np.concatenate((data.qpos[2:], data.qvel, data.sensordata[3:6]))
