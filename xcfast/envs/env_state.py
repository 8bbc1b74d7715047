"""Saves and restores the exact state of Gymnasium's MuJoCo and classic control environments."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from xcfast.envs import classic_state, mujoco_state
from xcfast.tasks import is_task_env

# The wrappers that `gymnasium.make` puts around an environment.
STANDARD_WRAPPERS = (TimeLimit, OrderEnforcing, PassiveEnvChecker)


def state_supported(env: gymnasium.Env) -> bool:
    """Returns whether `env` is one of Gymnasium's own tasks under its standard wrappers, whose whole state is known."""
    while isinstance(env, gymnasium.Wrapper):
        if type(env) not in STANDARD_WRAPPERS:
            return False
        env = env.env
    if not (classic_state.is_known(env) or _in_mujoco(env) or is_task_env(type(env))):
        return False
    return isinstance(env.np_random.bit_generator, np.random.PCG64)


def get_state(env: gymnasium.Env) -> dict[str, Any]:
    """Returns the state of one supported environment, as numpy arrays, numbers and strings."""
    base: Any = env.unwrapped
    if classic_state.is_known(base):
        physics = classic_state.get_physics(base)
    elif is_task_env(type(base)):
        physics = mujoco_state.get_own_physics(base, base.data)
        physics["memory"] = np.frombuffer(base.memory.tobytes(), np.float64)
    else:
        physics = mujoco_state.get_physics(base.model, base.data)
    time_limit, order = _wrapper(env, TimeLimit), _wrapper(env, OrderEnforcing)
    return {
        **physics,
        "np_random": base.np_random.bit_generator.state,
        "np_random_seed": base.np_random_seed,
        "elapsed_steps": None if time_limit is None else time_limit._elapsed_steps,
        "has_reset": None if order is None else order._has_reset,
    }


def set_state(env: gymnasium.Env, state: dict[str, Any]) -> None:
    """Restores what `get_state` returned for an environment of the same id and MuJoCo version."""
    base: Any = env.unwrapped
    if classic_state.is_known(base):
        classic_state.set_physics(base, state)
    elif is_task_env(type(base)):
        mujoco_state.set_own_physics(base, base.data, state)
        base.set_memory(state["memory"])
    else:
        mujoco_state.set_physics(base.model, base.data, state, base)
    seed = state["np_random_seed"]
    base.np_random.bit_generator.state = state["np_random"]
    base._np_random_seed = seed
    time_limit, order = _wrapper(env, TimeLimit), _wrapper(env, OrderEnforcing)
    if time_limit is not None:
        time_limit._elapsed_steps = state["elapsed_steps"]
    if order is not None:
        order._has_reset = state["has_reset"]


def _in_mujoco(base: gymnasium.Env) -> bool:
    in_mujoco = type(base).__module__.startswith("gymnasium.envs.mujoco.")
    return in_mujoco and hasattr(base, "model") and hasattr(base, "data")


def _wrapper(env: gymnasium.Env, kind: type) -> Any:
    while isinstance(env, gymnasium.Wrapper):
        if type(env) is kind:
            return env
        env = env.env
    return None
