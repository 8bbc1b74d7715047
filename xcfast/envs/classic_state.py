"""Exact state of Gymnasium's classic control environments."""

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
    """The name of the task of `base`, an environment without wrappers; None: it is not exactly one of these classes."""
    return CLASSES.get((type(base).__module__, type(base).__qualname__))


def is_known(base: Any) -> bool:
    """Whether `base`, an environment without wrappers, is exactly of one of these classes."""
    return task_name(base) is not None


def get_physics(base: Any) -> dict[str, Any]:
    """All that decides how `base` goes on, between two steps: the numbers of its state, in their precision.

    The precision matters: Continuous_MountainCarEnv has float64 after a reset, float32 after a step, and goes on in it.
    """
    return {"physics": np.array(base.state)}


def set_physics(base: Any, state: dict[str, Any]) -> None:
    """Restores what `get_physics` returned for an environment of the same class."""
    name = task_name(base)
    assert name is not None  # the caller asked
    base.state = check_physics(name, state).copy()
    if name == "CartPole":
        base.steps_beyond_terminated = None
    if name == "Pendulum":
        base.last_u = None  # for its picture


def check_physics(name: str, state: dict[str, Any]) -> Any:
    """state["physics"] as an array, of the right shape and precision for the task `name`."""
    physics = np.asarray(state["physics"])
    if physics.shape != (SIZES[name],) or physics.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"state['physics'] must be float32 or float64 [{SIZES[name]}] for {name}; got {physics.dtype} "
            f"{list(physics.shape)}: it comes from another environment"
        )
    return physics
