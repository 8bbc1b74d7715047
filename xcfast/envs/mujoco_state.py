"""Exact state of Gymnasium's own MuJoCo environments: save, restore, go on bit for bit."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

# What Gymnasium's tasks read before the physics recomputes it. A restored state must not be completed by mj_forward:
# after mj_step these arrays lag behind qpos, and the tasks' rewards depend on that.
DERIVED_ARRAYS = ("xpos", "xipos", "site_xpos")


def state_supported(env: gymnasium.Env) -> bool:
    """Whether all that decides the future of `env` is known: a task of Gymnasium itself under its standard wrappers."""
    while isinstance(env, gymnasium.Wrapper):
        if type(env) not in (TimeLimit, OrderEnforcing, PassiveEnvChecker):
            return False
        env = env.env
    if not type(env).__module__.startswith("gymnasium.envs.mujoco."):
        return False
    return hasattr(env, "model") and hasattr(env, "data") and isinstance(env.np_random.bit_generator, np.random.PCG64)


def get_state(env: gymnasium.Env) -> dict[str, Any]:
    """The state of one supported env, as numpy arrays, numbers and strings."""
    import mujoco

    base: Any = env.unwrapped
    physics = np.empty(mujoco.mj_stateSize(base.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(base.model, base.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
    time_limit, order = _wrapper(env, TimeLimit), _wrapper(env, OrderEnforcing)
    return {
        "physics": physics,
        **{name: getattr(base.data, name).copy() for name in DERIVED_ARRAYS},
        "np_random": base.np_random.bit_generator.state,
        "np_random_seed": base.np_random_seed,
        "elapsed_steps": None if time_limit is None else time_limit._elapsed_steps,
        "has_reset": None if order is None else order._has_reset,
    }


def set_state(env: gymnasium.Env, state: dict[str, Any]) -> None:
    """Restores what `get_state` returned for an env of the same id and MuJoCo version."""
    import mujoco

    base: Any = env.unwrapped
    physics = np.asarray(state["physics"], dtype=np.float64)
    size = mujoco.mj_stateSize(base.model, mujoco.mjtState.mjSTATE_INTEGRATION)
    if physics.shape != (size,):
        raise ValueError(
            f"state['physics'] must have shape ({size},) for {base}; got {physics.shape}: "
            "it comes from another environment or another MuJoCo version"
        )
    mujoco.mj_setState(base.model, base.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
    for name in DERIVED_ARRAYS:
        getattr(base.data, name)[...] = state[name]
    seed = state["np_random_seed"]
    base.np_random.bit_generator.state = state["np_random"]
    base._np_random_seed = seed
    time_limit, order = _wrapper(env, TimeLimit), _wrapper(env, OrderEnforcing)
    if time_limit is not None:
        time_limit._elapsed_steps = state["elapsed_steps"]
    if order is not None:
        order._has_reset = state["has_reset"]


def _wrapper(env: gymnasium.Env, kind: type) -> Any:
    while isinstance(env, gymnasium.Wrapper):
        if type(env) is kind:
            return env
        env = env.env
    return None
