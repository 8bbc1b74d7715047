"""Saves and restores the exact state of a MuJoCo simulation under one of Gymnasium's own tasks."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from xcfast.errors import NotNativeError
from xcfast.tasks.contacts import contact_dtype, field_address

if TYPE_CHECKING:
    from xcfast.tasks.env import TaskEnv

# The arrays that Gymnasium's tasks read before the physics recomputes them. mj_forward must not complete a state:
# after mj_step these arrays lag behind qpos, and the tasks' rewards depend on that.
DERIVED_ARRAYS = ("xpos", "xipos", "site_xpos")
# What the tasks of a user may read.
ALL_DERIVED_ARRAYS = (
    *DERIVED_ARRAYS,
    *("xquat", "xmat", "ximat", "geom_xpos", "geom_xmat", "site_xmat", "cam_xpos", "cam_xmat", "xanchor", "xaxis"),
    *("subtree_com", "subtree_linvel", "subtree_angmom", "cinert", "crb", "cvel", "cacc", "cfrc_int", "cfrc_ext"),
    *("qacc", "act_dot", "qfrc_actuator", "qfrc_passive", "qfrc_bias", "qfrc_constraint", "sensordata"),
    *("actuator_length", "actuator_velocity", "actuator_force", "ten_length", "ten_velocity"),
)


def get_own_physics(env: TaskEnv, data: Any) -> dict[str, Any]:
    """Returns what `get_physics` returns, for a task of one's own: with all that its functions may read before a step.

    Args:
        env: An environment of the task.
        data: The mjData.
    """
    contacts = np.zeros(0, np.uint8)
    if data.ncon:
        dist = data.contact.dist  # the first member of a contact
        size = data.ncon * dist.strides[0]
        contacts = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(_address_of(dist))).copy()
    return {**get_physics(env.model, data, _derived_arrays(env)), "contacts": contacts}


def set_own_physics(env: TaskEnv, data: Any, state: dict[str, Any]) -> None:
    """Restores what `get_own_physics` returned; see `set_physics`."""
    set_physics(env.model, data, state, env, _derived_arrays(env))
    contacts = np.ascontiguousarray(state["contacts"], np.uint8)
    try:
        ncon = ctypes.c_int32.from_address(field_address(data, "ncon"))
        pointer = ctypes.c_uint64.from_address(field_address(data, "contact")).value
        size = contact_dtype().itemsize
    except NotNativeError:  # a MuJoCo that keeps them elsewhere; the next physics step finds them again
        return
    if contacts.size % size or contacts.size > data.narena:
        raise ValueError(
            f"state['contacts'] must be whole contacts of {size} bytes for {env}; got {contacts.size} bytes"
        )
    ctypes.memmove(pointer, contacts.ctypes.data, contacts.size)
    ncon.value = contacts.size // size


def _derived_arrays(env: TaskEnv) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*ALL_DERIVED_ARRAYS, *env.fields_read)))


def _address_of(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def get_physics(model: Any, data: Any, derived: tuple[str, ...] = DERIVED_ARRAYS) -> dict[str, Any]:
    """Returns everything that decides how the simulation continues, as numpy arrays.

    Args:
        model: The simulation's mjModel.
        data: The simulation's mjData.
        derived: The derived arrays that the task reads.
    """
    import mujoco

    physics = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(model, data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
    return {"physics": physics, **{name: getattr(data, name).copy() for name in derived}}


def set_physics(
    model: Any, data: Any, state: dict[str, Any], name: Any, derived: tuple[str, ...] = DERIVED_ARRAYS
) -> None:
    """Restores what `get_physics` returned for a simulation of the same task and MuJoCo version.

    Args:
        model: The simulation's mjModel.
        data: The simulation's mjData.
        state: The state; entries that `get_physics` does not return are ignored.
        name: The environment, for the error.
        derived: As for `get_physics`.

    Raises:
        ValueError: The state belongs to another model or MuJoCo version.
    """
    import mujoco

    physics = np.asarray(state["physics"], dtype=np.float64)
    size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION)
    if physics.shape != (size,):
        raise ValueError(
            f"state['physics'] must have shape ({size},) for {name}; got {physics.shape}: "
            "it comes from another environment or another MuJoCo version"
        )
    mujoco.mj_setState(model, data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
    for array in derived:
        getattr(data, array)[...] = state[array]
