"""A quadruped that follows a drawn command, in the manner of walkers on the Unitree Go1: twelve terms of the reward."""

import math

import numpy as np
from gymnasium.spaces import Box

from xcfast.tasks import MujocoTask, register

_LEG = """
      <body name="{name}_hip" pos="{x} {y} 0">
        <joint name="{name}_abduction" axis="1 0 0" range="-50 50"/>
        <geom type="sphere" size=".04" mass=".5"/>
        <body name="{name}_thigh" pos="0 {out} 0">
          <joint name="{name}_hip" axis="0 1 0" range="-60 200"/>
          <geom type="capsule" fromto="0 0 0 0 0 -.2" size=".022" mass=".8"/>
          <body name="{name}_calf" pos="0 0 -.2">
            <joint name="{name}_knee" axis="0 1 0" range="-155 -50"/>
            <geom type="capsule" fromto="0 0 0 0 0 -.2" size=".016" mass=".15"/>
            <geom name="{name}_foot" type="sphere" pos="0 0 -.2" size=".022" mass=".05" friction=".8"/>
            <site name="{name}_foot" pos="0 0 -.2"/>
          </body>
        </body>
      </body>"""
_LEGS = (
    ("front_right", 0.19, -0.05),
    ("front_left", 0.19, 0.05),
    ("rear_right", -0.19, -0.05),
    ("rear_left", -0.19, 0.05),
)
_MOTORS = "".join(f'<position joint="{n}_{j}"/>' for n, _, _ in _LEGS for j in ("abduction", "hip", "knee"))
_STAND = "0 .9 -1.8 " * 4
_XML = f"""
<mujoco model="quadruped">
  <option timestep="0.004" iterations="4" ls_iterations="6"/>
  <default>
    <joint damping=".6" armature=".01"/>
    <position kp="35" ctrlrange="-3 3" forcerange="-24 24"/>
  </default>
  <worldbody>
    <geom name="floor" type="plane" size="50 50 1"/>
    <body name="trunk" pos="0 0 .3">
      <freejoint name="root"/>
      <geom type="box" size=".19 .06 .05" mass="5"/>
      <site name="imu"/>{"".join(_LEG.format(name=n, x=x, y=y, out=0.08 * (1 if y > 0 else -1)) for n, x, y in _LEGS)}
    </body>
  </worldbody>
  <sensor>
    <gyro name="gyro" site="imu"/><velocimeter name="velocity" site="imu"/>
    <framezaxis name="up" objtype="site" objname="imu"/>
  </sensor>
  <actuator>{_MOTORS}</actuator>
  <keyframe><key name="stand" qpos="0 0 .29 1 0 0 0 {_STAND}" ctrl="{_STAND}"/></keyframe>
</mujoco>
"""


def roll_and_pitch(quaternion):
    """Returns the two angles of a unit quaternion (w, x, y, z), in radians."""
    w, x, y, z = quaternion
    roll = math.atan2(2.0 * (w * x + y * z), 1.0 - 2.0 * (x * x + y * y))
    pitch = math.asin(max(-1.0, min(1.0, 2.0 * (w * y - z * x))))
    return roll, pitch


@register("Quadruped-v0", max_episode_steps=1000)
class Quadruped(MujocoTask):
    xml = _XML
    frame_skip = 5
    keyframe = "stand"
    memory = {"command": np.zeros(3), "last_action": np.zeros(12), "air_time": np.zeros(4), "last_qvel": np.zeros(12)}
    terms = (
        *("linear_velocity", "turning", "alive", "air_time", "vertical", "tumbling", "torque", "acceleration"),
        *("action_rate", "contact", "joint_limits", "posture"),
    )
    action_scale = 0.3
    limit = math.radians(45)

    def build(self):
        model = self.model
        self.action_space = Box(-1.0, 1.0, (12,), np.float32)
        self.stand = model.key("stand").ctrl.copy()
        self.low, self.high = model.jnt_range[1:].T.copy()
        self.calves = np.array([model.body(f"{name}_calf").id for name, _, _ in _LEGS])
        self.trunk = model.body("trunk").id

    def reset(self, rng, qpos, qvel, memory):
        qpos[7:] += rng.uniform(-0.1, 0.1, 12)
        qvel += 0.05 * rng.standard_normal(qvel.size)
        memory.command = rng.uniform((-0.5, -0.3, -0.5), (1.0, 0.3, 0.5))

    def control(self, data, action, memory):
        data.ctrl[:] = self.stand + self.action_scale * action

    def step(self, data, action, memory, terms):
        velocity, gyro = data.sensor("velocity").data, data.sensor("gyro").data
        command = memory.command
        error_x, error_y = velocity[0] - command[0], velocity[1] - command[1]
        terms.linear_velocity = 1.5 * math.exp(-4.0 * (error_x * error_x + error_y * error_y))
        error = gyro[2] - command[2]
        terms.turning = 0.8 * math.exp(-4.0 * error * error)
        terms.air_time = 0.0
        for foot in range(4):
            on_ground = np.sum(np.square(data.cfrc_ext[self.calves[foot], 3:])) > 1.0
            if on_ground and memory.air_time[foot] > 0.0:
                terms.air_time += memory.air_time[foot] - 0.2
            memory.air_time[foot] = 0.0 if on_ground else memory.air_time[foot] + self.dt
        terms.vertical = -2.0 * velocity[2] * velocity[2]
        terms.tumbling = -0.05 * (gyro[0] * gyro[0] + gyro[1] * gyro[1])
        terms.torque = -2e-4 * np.sum(np.square(data.qfrc_actuator[6:]))
        terms.acceleration = -2.5e-7 * np.sum(np.square((data.qvel[6:] - memory.last_qvel) / self.dt))
        terms.action_rate = -0.01 * np.sum(np.square(action - memory.last_action))
        terms.contact = -1e-4 * min(100.0, np.sum(np.square(data.cfrc_ext[self.trunk])))
        joints = data.qpos[7:]
        beyond = np.maximum(self.low - joints, 0.0) + np.maximum(joints - self.high, 0.0)
        terms.joint_limits = -10.0 * np.sum(beyond)
        terms.posture = -0.1 * np.sum(np.square(joints - self.stand))
        roll, pitch = roll_and_pitch(data.qpos[3:7])
        fell = abs(roll) > self.limit or abs(pitch) > self.limit or data.qpos[2] < 0.12
        terms.alive = 0.0 if fell else 0.2
        memory.last_action = action
        memory.last_qvel = data.qvel[6:]
        reward = 0.0
        reward += terms.linear_velocity + terms.turning + terms.alive + terms.air_time + terms.vertical + terms.tumbling
        reward += terms.torque + terms.acceleration + terms.action_rate + terms.contact + terms.joint_limits
        return reward + terms.posture, fell

    def observe(self, data, memory):
        return np.concatenate(
            (
                data.sensor("velocity").data,
                data.sensor("gyro").data,
                data.sensor("up").data,
                memory.command,
                data.qpos[7:] - self.stand,
                data.qvel[6:],
                memory.last_action,
            )
        )
