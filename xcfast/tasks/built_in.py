"""The terms that a task on top of Gymnasium's gets: what Gymnasium's reward was made of."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of csrc/mujoco/task.hpp, then reward and terminated.
TERMS = ("x_velocity", "y_velocity", "forward", "healthy", "control", "contact", "reward", "terminated")

# Gymnasium's keys of the info, by version, and the sign with which they are costs.
_KEYS = {
    "x_velocity": (("x_velocity", 1),),
    "y_velocity": (("y_velocity", 1),),
    "forward": (("reward_forward", 1), ("reward_run", 1), ("reward_fwd", 1), ("reward_linvel", 1), ("reward_linup", 1)),
    "healthy": (("reward_survive", 1), ("reward_alive", 1)),
    "control": (("reward_ctrl", -1), ("reward_quadctrl", -1)),
    "contact": (("reward_contact", -1), ("reward_impact", -1)),
}


def terms_of(
    base: Any, action: NDArray[np.float32], reward: float, terminated: bool, info: dict[str, Any]
) -> dict[str, float]:
    """Returns the terms of one step of Gymnasium's task, as `TERMS` names them; those that it lacks are 0.

    Args:
        base: Gymnasium's environment, after the step.
        action: float32 [action_size], the action.
        reward: What the step returned.
        terminated: Likewise.
        info: Likewise.
    """
    terms = dict.fromkeys(TERMS, 0.0)
    for name, keys in _KEYS.items():
        for key, sign in keys:
            if key in info:
                terms[name] = sign * float(info[key])
                break
    kind, version = type(base).__name__, type(base).__module__.rpartition("_")[2]
    if kind in ("HopperEnv", "Walker2dEnv") and version == "v4":
        terms["forward"] = float(base._forward_reward_weight * info["x_velocity"])
        terms["healthy"] = float(base.healthy_reward)
        terms["control"] = float(base.control_cost(action))
    elif kind == "AntEnv" and version == "v4" and base._use_contact_forces:
        terms["contact"], terms["control"] = terms["control"], float(base.control_cost(action))
    elif kind in ("ReacherEnv", "PusherEnv"):
        terms["forward"], terms["control"] = float(info["reward_dist"]), float(info["reward_ctrl"])
        terms["contact"] = float(info.get("reward_near", 0.0))
    elif kind == "InvertedPendulumEnv":
        terms["healthy"] = float(reward)
    elif kind == "InvertedDoublePendulumEnv" and version == "v4":
        x, _, y = base.data.site_xpos[0]
        v1, v2 = base.data.qvel[1:3]
        terms["healthy"], terms["forward"] = 10.0, -(0.01 * x**2 + (y - 2) ** 2)
        terms["control"] = -(1e-3 * v1**2 + 5e-3 * v2**2)
    elif kind == "InvertedDoublePendulumEnv":
        terms["forward"], terms["control"] = float(info["distance_penalty"]), float(info["velocity_penalty"])
    terms["reward"], terms["terminated"] = float(reward), float(terminated)
    return terms
