"""Builds the infos of Gymnasium's MuJoCo classes, for `infos=True`."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xcfast.envs.mujoco_tasks import Task

Rows = NDArray[np.float64]


class Terms(NamedTuple):
    """The parts of one step's reward, as the engine computes them."""

    x_velocity: float
    y_velocity: float
    forward: float
    healthy: float
    control: float
    contact: float


def step_info(task: Task, base: Any, data: Any, row: Rows) -> dict[str, Any]:
    """Returns the info that the class's `step` returns.

    Args:
        task: The task of `base`.
        base: The environment that determines the arguments.
        data: The simulation's mjData.
        row: The simulation's row of the engine's terms, see `Terms`.
    """
    terms = Terms(*row)
    control = terms.control if task.name in ("Humanoid", "HumanoidStandup") else np.float32(terms.control)
    return _STEP_INFOS[task.name](task, base, data, terms, control)


def reset_info(task: Task, base: Any, data: Any) -> dict[str, Any]:
    """Returns the info that the class's `reset` returns; arguments as for `step_info`."""
    if not task.v5:
        return {}
    if task.name == "HalfCheetah":
        return {"x_position": data.qpos[0]}
    if task.name in ("Hopper", "Walker2d"):
        return {"x_position": data.qpos[0], "z_distance_from_origin": data.qpos[1] - base.init_qpos[1]}
    if task.name in ("Ant", "Swimmer"):
        return _from_origin(data.qpos[0:2])
    if task.name == "Humanoid":
        return {**_from_origin(data.qpos[0:2]), **_tendons(data)}
    if task.name == "HumanoidStandup":
        return {
            "x_position": data.qpos[0],
            "y_position": data.qpos[1],
            "z_distance_from_origin": data.qpos[2] - base.init_qpos[2],
            **_tendons(data),
        }
    return {}


def _from_origin(xy: Rows) -> dict[str, Any]:
    return {"x_position": xy[0], "y_position": xy[1], "distance_from_origin": np.linalg.norm(xy, ord=2)}


def _tendons(data: Any) -> dict[str, Any]:
    return {"tendon_length": data.ten_length.copy(), "tendon_velocity": data.ten_velocity.copy()}


def _ant_info(task: Task, base: Any, data: Any, t: Terms, control: Any) -> dict[str, Any]:
    velocity = {"x_velocity": t.x_velocity, "y_velocity": t.y_velocity}
    info = {"reward_forward": t.forward, "reward_ctrl": -control, "reward_survive": t.healthy}
    if task.v5:
        return {**_from_origin(data.qpos[0:2]), **velocity, **info, "reward_contact": -t.contact}
    if base._use_contact_forces:
        info["reward_ctrl"] = -t.contact
    return {**info, **_from_origin(data.body("torso").xpos[:2].copy()), **velocity, "forward_reward": t.forward}


def _half_cheetah_info(task: Task, base: Any, data: Any, t: Terms, control: Any) -> dict[str, Any]:
    forward = "reward_forward" if task.v5 else "reward_run"
    return {"x_position": data.qpos[0], "x_velocity": t.x_velocity, forward: t.forward, "reward_ctrl": -control}


def _hopper_info(task: Task, base: Any, data: Any, t: Terms, control: Any) -> dict[str, Any]:
    info = {"x_position": data.qpos[0], "x_velocity": t.x_velocity}
    if not task.v5:
        return info
    rewards = {"reward_forward": t.forward, "reward_ctrl": -control, "reward_survive": t.healthy}
    return {**info, "z_distance_from_origin": data.qpos[1] - base.init_qpos[1], **rewards}


def _humanoid_info(task: Task, base: Any, data: Any, t: Terms, control: Any) -> dict[str, Any]:
    velocity = {"x_velocity": t.x_velocity, "y_velocity": t.y_velocity}
    if task.v5:
        return {
            **_from_origin(data.qpos[0:2]),
            **_tendons(data),
            **velocity,
            "reward_survive": t.healthy,
            "reward_forward": t.forward,
            "reward_ctrl": -control,
            "reward_contact": -t.contact,
        }
    return {
        "reward_linvel": t.forward,
        "reward_quadctrl": -control,
        "reward_alive": t.healthy,
        **_from_origin(sys.modules[type(base).__module__].mass_center(base.model, data)),
        **velocity,
        "forward_reward": t.forward,
    }


def _humanoid_standup_info(task: Task, base: Any, data: Any, t: Terms, control: Any) -> dict[str, Any]:
    rewards = {"reward_linup": t.forward, "reward_quadctrl": -control, "reward_impact": -t.contact}
    return {**reset_info(task, base, data), **rewards}


def _swimmer_info(task: Task, base: Any, data: Any, t: Terms, control: Any) -> dict[str, Any]:
    names = ("reward_forward",) if task.v5 else ("reward_fwd", "forward_reward")
    return {
        **dict.fromkeys(names, t.forward),
        "reward_ctrl": -control,
        **_from_origin(data.qpos[0:2]),
        "x_velocity": t.x_velocity,
        "y_velocity": t.y_velocity,
    }


def _arm_info(task: Task, base: Any, data: Any, t: Terms, control: Any) -> dict[str, Any]:
    info = {"reward_dist": t.forward, "reward_ctrl": control}
    return {**info, "reward_near": t.contact} if task.name == "Pusher" and task.v5 else info


def _pendulum_info(task: Task, base: Any, data: Any, t: Terms, control: Any) -> dict[str, Any]:
    return {"reward_survive": int(t.healthy)} if task.v5 else {}


def _double_pendulum_info(task: Task, base: Any, data: Any, t: Terms, control: Any) -> dict[str, Any]:
    if not task.v5:
        return {}
    return {"reward_survive": t.healthy, "distance_penalty": t.forward, "velocity_penalty": t.control}


_STEP_INFOS: dict[str, Callable[[Task, Any, Any, Terms, Any], dict[str, Any]]] = {
    "Ant": _ant_info,
    "HalfCheetah": _half_cheetah_info,
    "Hopper": _hopper_info,
    "Humanoid": _humanoid_info,
    "HumanoidStandup": _humanoid_standup_info,
    "InvertedDoublePendulum": _double_pendulum_info,
    "InvertedPendulum": _pendulum_info,
    "Pusher": _arm_info,
    "Reacher": _arm_info,
    "Swimmer": _swimmer_info,
    "Walker2d": _hopper_info,
}
