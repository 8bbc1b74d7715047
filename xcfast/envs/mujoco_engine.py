"""Builds the native engine from the addresses of MuJoCo's functions and arrays, and from how this numpy computes."""

import ctypes
import functools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xcfast.errors import NotNativeError

if TYPE_CHECKING:
    from xcfast.envs.built_in_task import BuiltInTask
    from xcfast.envs.own_task import OwnTask

_FIELDS = (
    *("qpos", "qvel", "ctrl", "xpos", "xipos", "site_xpos"),
    *("cinert", "cvel", "qfrc_actuator", "qfrc_constraint", "cfrc_ext"),
)
_FUNCTIONS = ("mj_step", "mj_forward", "mj_resetData", "mj_resetDataKeyframe", "mj_rnePostConstraint", "mju_error")
# Handlers of one thread, which MuJoCo's own bindings use. Newer versions have the first one instead of the others.
_HANDLERS = {
    "set_log_handler": "_mjPRIVATE_setTlsLogHandler",
    "set_error_handler": "_mjPRIVATE__set_tls_error_fn",
    "set_warning_handler": "_mjPRIVATE__set_tls_warning_fn",
    # The public handlers of the process, which catch the error of the check if it misses the thread's.
    "set_process_log_handler": "mju_setLogHandler",
    "process_error_handler": "mju_user_error",
}


def build_engine(
    kind: "BuiltInTask | OwnTask",
    base: Any,
    datas: Sequence[Any],
    arrays: dict[str, Any],
    config: dict[str, int],
    pool: Any,
) -> Any:
    """Builds the engine (`_core.EnvEngine`) of several simulations on one model.

    Args:
        kind: The task.
        base: The environment that determines the model and the keyword arguments.
        datas: The mjData of each environment.
        arrays: The engine's memory by name, see `NativeVecEnv` and `MujocoVecEnv`.
        config: The engine's sizes, see `NativeVecEnv`.
        pool: The thread pool, `_core.ThreadPool`.

    Raises:
        NotNativeError: The engine cannot step this model, or not with this MuJoCo.
    """
    from xcfast import _core

    task, model = kind.task, base.model
    description, owned = kind.functions(datas)
    if description is None and (
        model.nu != int(np.prod(base.action_space.shape)) or base.action_space.dtype != np.float32
    ):
        raise NotNativeError(f"its actions are {base.action_space}")
    if task is not None and task.name == "InvertedDoublePendulum" and model.nsite < 1:
        raise NotNativeError("its model has no site")
    fused_dot, fused_einsum = numpy_fuses()
    setup = {
        **{name: int(getattr(model, name)) for name in ("nq", "nv", "nu", "nbody")},
        "body_mass": _address(model.body_mass),
        "body_mass_sum": float(model.body_mass.sum()),
        "dt": float(base.dt),
        "v5": task is not None and task.v5,
        "fused_dot": fused_dot,
        "fused_einsum": fused_einsum,
        "values": {} if task is None else task.values(kind.base),
    }
    warnings = datas[0].warning.number
    config = {
        **config,
        "model": _object_address(model),
        "frame_skip": int(base.frame_skip),
        # If a version returns copies of its counters, they are not watched.
        "num_warnings": 0 if warnings.flags.owndata else warnings.size,
        "warning_stride": warnings.strides[0],
        "keyframe": kind.keyframe,
    }
    simulations = [
        {
            "data": _object_address(data),
            "warnings": _address(data.warning.number),
            **{name: _address(getattr(data, name)) for name in _FIELDS},
        }
        for data in datas
    ]
    arrays = {**arrays, **kind.arrays}
    name = "" if task is None else task.name
    try:
        keep_alive = (model, list(datas), owned)
        return _core.mujoco_engine(name, setup, functions(), config, simulations, arrays, pool, keep_alive, description)
    except ValueError as error:
        raise NotNativeError(str(error)) from None


@functools.cache
def functions() -> dict[str, int]:
    """Returns the addresses of MuJoCo's functions, and of the variables and functions that hold its handlers.

    An address is 0 where this version lacks a handler. MuJoCo is made to raise an error once, since the handlers of one
    thread are private symbols: an error that they did not catch would end the process in the middle of a run.

    Raises:
        NotNativeError: There is no libmujoco, it lacks a function, or its errors cannot be caught.
    """
    import mujoco

    from xcfast import _core

    folder, names = Path(mujoco.__file__).parent, ("libmujoco*.so*", "libmujoco*.dylib", "mujoco.dll")
    found = sorted(path for name in names for path in folder.glob(name))
    if not found:
        raise NotNativeError(f"there is no libmujoco in {folder}")
    library = ctypes.CDLL(str(found[0]))
    addresses = {}
    for name in _FUNCTIONS:
        if not hasattr(library, name):
            raise NotNativeError(f"{found[0].name} has no {name}")
        addresses[name] = ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    for name, symbol in _HANDLERS.items():
        handler = getattr(library, symbol, None)
        addresses[name] = 0 if handler is None else ctypes.cast(handler, ctypes.c_void_p).value or 0
    if not _core.mujoco_errors_arrive(addresses):
        raise NotNativeError(f"the engine cannot catch the errors of {found[0].name}, which would end the process")
    return addresses


@functools.cache
def numpy_fuses() -> tuple[bool, bool]:
    """Returns whether np.linalg.norm of three numbers, and np.einsum, use fused multiply-add on this CPU."""
    rng = np.random.default_rng(0)

    def agree(ours: Any, numpys: Any) -> int:
        return sum(ours(x, y) == numpys(x, y) for x, y in rng.uniform(-1, 1, (64, 2, 3)))

    def norm(fused: bool) -> Any:
        return lambda x, _: float(np.sqrt(_dot(x, x, fused)))

    def numpy_norm(x: Any, _: Any) -> float:
        return float(np.linalg.norm(x))

    def numpy_einsum(x: Any, y: Any) -> float:
        return float(np.einsum("b,bj->j", x, np.stack((y, y), axis=1))[0])

    fused_dot = agree(norm(True), numpy_norm) > agree(norm(False), numpy_norm)
    plain, fused = (agree(lambda x, y, f=f: _dot(x, y, f), numpy_einsum) for f in (False, True))
    return fused_dot, fused > plain


def _dot(x: Any, y: Any, fused: bool) -> float:
    total = float(x[0] * y[0])
    for a, b in zip(x[1:], y[1:], strict=True):
        total = float(Fraction(a) * Fraction(b) + Fraction(total)) if fused else float(a * b + total)
    return total


def _address(array: Any) -> int:
    if array.dtype == np.float64 or array.dtype == np.int32:
        return array.__array_interface__["data"][0]
    raise NotNativeError(f"this MuJoCo computes in {array.dtype}")


def _object_address(thing: Any) -> int:
    address = getattr(thing, "_address", None)
    if not address:
        raise NotNativeError(f"this MuJoCo's {type(thing).__name__} has no address")
    return int(address)
