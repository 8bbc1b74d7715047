"""Generalized advantage estimation and bootstrapped returns, for numpy arrays and torch tensors."""

import sys
from typing import Any, TypeVar

import numpy as np

from xcfast import kernels
from xcfast.kernels.arguments import (
    check_cuts,
    check_memory,
    check_output,
    check_rollout_shapes,
    check_unmasked,
    describe,
    flag_array,
)

Array = TypeVar("Array")  # numpy.ndarray or torch.Tensor; torch is not imported for it
_ON_TENSORS = ("torch", "triton")  # implementations that compute on tensors, whatever they are given
_OUTPUTS = {"gae": ("advantages", "returns"), "discounted_returns": ("returns",)}


def compute_gae(
    rewards: Array,
    values: Array,
    terminated: Any = None,
    truncated: Any = None,
    *,
    last_values: Any = None,
    final_values: Any = None,
    next_values: Any = None,
    episode_starts: Any = None,
    last_done: Any = None,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    time_major: bool = True,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Returns advantages and returns (advantages + values) of a rollout.

    A terminated step does not bootstrap. A step that is truncated, and not terminated, bootstraps from its own final
    value. The last step bootstraps from `last_values`. Nothing passes from a step to the one before it if an episode
    ended in between. Values that a flag masks may be anything, NaN included.

    Args:
        rewards: float [T, N] (or [T]; [N, T] with ``time_major=False``, here and below), reward of step t.
        values: float [T, N], V of the observation that step t acted on.
        terminated: bool [T, N], the episode ended at this step by the task.
        truncated: bool [T, N], the episode ended at this step by a time limit. Default: never.
        last_values: float [N] or [1, N] ([N, 1] with ``time_major=False``), V of the observation after the last step.
        final_values: float [T, N], V of an episode's last observation; read only where truncated.
        next_values: float [T, N], V of each step's true successor, instead of `last_values` and `final_values`.
        episode_starts: bool [T, N], instead of `terminated`: observation t starts an episode (CleanRL's dones).
        last_done: bool [N] or [1, N], with `episode_starts`: the observation after the last step starts an episode.
        gamma: Discount, in [0, 1].
        gae_lambda: Mixing weight, in [0, 1].
        time_major: Whether time is the first axis.
        out: Arrays or tensors for (advantages, returns), of the shape, dtype and device of the result. They must not
            share memory with each other or with another argument.

    Returns:
        (advantages, returns), which is `out` if given. They are numpy arrays or tensors on the device of the
        arguments, in their dtype (the widest).

    Raises:
        ValueError: A shape, a device, a flag, a combination of arguments, gamma or gae_lambda is wrong, or an output
            shares memory with another argument. The message says which.
        TypeError: `rewards` or `values` is None, a number is not floating point, a flag is neither bool nor a number,
            an argument is a masked array, or `out` is neither a tuple nor a list.

    Note:
        The function is fastest with aligned C-contiguous numpy arrays, bool flags and `out`; everything else is
        converted first. Flags may also be numbers that are 0 or 1. Tensors are detached.

    Source: Schulman et al. 2016, equation 16; time limits as in Pardo et al. 2018.
    """
    if (
        type(out) is tuple
        and len(out) == 2
        and time_major
        and episode_starts is None
        and last_done is None
        and kernels.name not in _ON_TENSORS
        and kernels.impl.gae(
            rewards,
            values,
            terminated,
            truncated,
            last_values,
            final_values,
            next_values,
            gamma,
            gae_lambda,
            out[0],
            out[1],
        )
    ):
        return out
    arrays = {"rewards": rewards, "values": values, "final_values": final_values, "next_values": next_values}
    flags = {"terminated": terminated, "truncated": truncated, "episode_starts": episode_starts}
    ends = {"last_values": last_values, "last_done": last_done}
    return _general("gae", arrays, flags, ends, {"gamma": gamma, "gae_lambda": gae_lambda}, time_major, out)


def compute_returns(
    rewards: Array,
    terminated: Any = None,
    truncated: Any = None,
    *,
    last_values: Any = None,
    final_values: Any = None,
    next_values: Any = None,
    episode_starts: Any = None,
    last_done: Any = None,
    gamma: float = 0.99,
    time_major: bool = True,
    out: Array | None = None,
) -> Array:
    """Returns the discounted sum of rewards from each step to its episode's end, bootstrapped if it is cut off.

    Arguments and errors are those of `compute_gae`; `out` is one array. The result is that of lambda = 1.
    """
    arrays = {"rewards": rewards, "final_values": final_values, "next_values": next_values}
    flags = {"terminated": terminated, "truncated": truncated, "episode_starts": episode_starts}
    ends = {"last_values": last_values, "last_done": last_done}
    outputs = None if out is None else (out,)
    return _general("discounted_returns", arrays, flags, ends, {"gamma": gamma}, time_major, outputs)[0]


def _is_tensor(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _general(
    kernel: str,
    arrays: dict[str, Any],
    flags: dict[str, Any],
    ends: dict[str, Any],
    factors: dict[str, float],
    time_major: bool,
    out: tuple[Any, ...] | None,
) -> tuple[Any, ...]:
    """Checks and converts the arguments, and calls the kernel of that name in the implementation in use.

    Args:
        kernel: "gae" or "discounted_returns".
        arrays: Floating-point arguments of the shape of `rewards`, by name; None if not given.
        flags: Flags of that shape, by name.
        ends: Arguments with one entry for each env, by name.
        factors: gamma and, for "gae", gae_lambda.
        time_major: Whether time is the first axis.
        out: Arrays for the results.

    Returns:
        (advantages, returns) for "gae", (returns,) for "discounted_returns".
    """
    for name, factor in factors.items():
        if not 0 <= factor <= 1:
            raise ValueError(f"{name} must be in [0, 1]; got {factor}")
    _check_combination(arrays, flags, ends)
    names = _OUTPUTS[kernel]
    if out is not None and not isinstance(out, tuple | list):
        raise TypeError(f"out must be ({', '.join(names)}); got {describe(out)}")
    if out is not None and len(out) != len(names):
        raise ValueError(f"out must be ({', '.join(names)}); got {len(out)} arrays")
    outputs = {} if out is None else {f"out ({name})": x for name, x in zip(names, out, strict=True)}
    inputs = {**arrays, **flags, **ends}
    check_unmasked(outputs | inputs)
    if kernels.name in _ON_TENSORS or _is_tensor(arrays["rewards"]):
        from xcfast.kernels import torch_gae

        torch_gae.check_tensors(inputs, outputs)
        if kernels.name in _ON_TENSORS or not torch_gae.numpy_serves(arrays["rewards"]):
            return torch_gae.advantages(kernel, arrays, flags, ends, factors, time_major, out)
        return torch_gae.through_numpy(_through_kernel, kernel, arrays, flags, ends, factors, time_major, out)
    check_memory(outputs, inputs)
    return _through_kernel(kernel, arrays, flags, ends, factors, time_major, out)


def _through_kernel(
    kernel: str,
    arrays: dict[str, Any],
    flags: dict[str, Any],
    ends: dict[str, Any],
    factors: dict[str, float],
    time_major: bool,
    out: tuple[Any, ...] | None,
) -> tuple[Any, ...]:
    """Converts numpy arrays to plain ones and calls a kernel with them; arguments as in `_general`."""
    floats = {name: _floating(name, x) for name, x in arrays.items() if x is not None}
    shape = check_rollout_shapes(floats, flags, ends, time_major)
    dtype = np.dtype(np.float64 if any(x.dtype.itemsize == 8 for x in floats.values()) else np.float32)

    def time_first(x: Any) -> Any:
        return np.require(x if time_major else x.T, None, ["C", "A", "E"])

    floats = {name: time_first(x.astype(dtype, copy=False)) for name, x in floats.items()}
    bools = {name: time_first(flag_array(name, x)) for name, x in flags.items() if x is not None}
    step_shape = floats["rewards"].shape[1:]
    last_values = ends["last_values"]
    if last_values is not None:
        if np.asarray(last_values).dtype.kind not in "fiub":
            raise TypeError(f"last_values must be real numbers; got {describe(np.asarray(last_values))}")
        last_values = np.require(last_values, dtype, ["C", "A", "E"]).reshape(step_shape)
    if "episode_starts" in bools:
        last_done = flag_array("last_done", ends["last_done"]).reshape(1, *step_shape)
        terminated = np.concatenate([bools["episode_starts"][1:], last_done])
    else:
        terminated = bools["terminated"]
    truncated = bools.get("truncated")
    nexts, final = floats.get("next_values"), floats.get("final_values")
    if truncated is not None and nexts is None and final is None:
        check_cuts(bool(np.any(truncated & ~terminated)))
    names = _OUTPUTS[kernel]
    for name, target in zip(names, out or (), strict=False):
        check_output(f"out ({name})", target, dtype, shape)
    results = tuple(np.empty(floats["rewards"].shape, dtype) for _ in names)
    baseline = [floats["values"]] if kernel == "gae" else []
    call = getattr(kernels.impl, kernel)
    if not call(
        floats["rewards"], *baseline, terminated, truncated, last_values, final, nexts, *factors.values(), *results
    ):
        raise RuntimeError(f"{kernel}: the kernel refused arguments that had been checked; please report this")
    if not time_major:
        results = tuple(x.T for x in results)
    if out is None:
        return tuple(np.ascontiguousarray(x) for x in results)
    for target, result in zip(out, results, strict=True):
        np.copyto(target, result)
    return out


def _check_combination(arrays: dict[str, Any], flags: dict[str, Any], ends: dict[str, Any]) -> None:
    """Raises an error if an argument is missing or excludes another one."""
    for name in ("rewards", "values"):
        if name in arrays and arrays[name] is None:
            raise TypeError(f"{name} must be float [T, N]; got None")
    if (ends["last_values"] is None) == (arrays["next_values"] is None):
        raise ValueError("give exactly one of last_values and next_values")
    if arrays["next_values"] is not None and arrays["final_values"] is not None:
        raise ValueError("final_values and next_values exclude each other: next_values holds the final ones too")
    if (flags["terminated"] is None) == (flags["episode_starts"] is None):
        raise ValueError("give exactly one of terminated and episode_starts")
    if (flags["episode_starts"] is None) != (ends["last_done"] is None):
        raise ValueError("episode_starts and last_done go together")
    if flags["episode_starts"] is not None and flags["truncated"] is not None:
        raise ValueError(
            "episode_starts cannot tell truncation from termination: give terminated and truncated instead"
        )


def _floating(name: str, x: Any) -> Any:
    x = np.asarray(x)
    if x.dtype.newbyteorder("=") not in (np.float32, np.float64):
        raise TypeError(f"{name} must be float32 or float64; got {describe(x)}")
    return x
