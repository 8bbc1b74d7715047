"""Saves and restores the exact state of Gymnasium's classic control environments."""

from typing import Any

import numpy as np

CLASSES = {
    ("gymnasium.envs.classic_control.acrobot", "AcrobotEnv"): "Acrobot",
    ("gymnasium.envs.classic_control.cartpole", "CartPoleEnv"): "CartPole",
    ("gymnasium.envs.classic_control.continuous_mountain_car", "Continuous_MountainCarEnv"): "MountainCarContinuous",
    ("gymnasium.envs.classic_control.mountain_car", "MountainCarEnv"): "MountainCar",
    ("gymnasium.envs.classic_control.pendulum", "PendulumEnv"): "Pendulum",
}  # Gymnasium's classes by module and name: the name of the id without the version
SIZES = {"Acrobot": 4, "CartPole": 4, "MountainCar": 2, "MountainCarContinuous": 2, "Pendulum": 2}


def task_name(base: Any) -> str | None:
    """Returns the name of the task of `base`, an environment without wrappers, or None if its class is another one."""
    return CLASSES.get((type(base).__module__, type(base).__qualname__))


def is_known(base: Any) -> bool:
    """Returns whether `base`, an environment without wrappers, is exactly of one of these classes."""
    return task_name(base) is not None


def get_physics(base: Any) -> dict[str, Any]:
    """Returns everything that decides, between two steps, how `base` continues: its state, in its precision.

    The precision matters: Continuous_MountainCarEnv computes its next step in float64 after a reset, and in float32
    after a step.
    """
    return {"physics": np.array(base.state)}


def set_physics(base: Any, state: dict[str, Any]) -> None:
    """Restores what `get_physics` returned for an environment of the same class."""
    name = task_name(base)
    assert name is not None
    base.state = check_physics(name, state).copy()
    if name == "CartPole":
        base.steps_beyond_terminated = None
    if name == "Pendulum":
        base.last_u = None  # for its picture


def check_physics(name: str, state: dict[str, Any]) -> Any:
    """Returns state["physics"] as an array.

    Raises:
        ValueError: It does not have the shape and a precision of the task `name`.
    """
    physics = np.asarray(state["physics"])
    if physics.shape != (SIZES[name],) or physics.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"state['physics'] must be float32 or float64 [{SIZES[name]}] for {name}; got {physics.dtype} "
            f"{list(physics.shape)}: it comes from another environment"
        )
    return physics
