"""Generalised advantage estimation and bootstrapped returns, for numpy arrays and torch tensors."""

import sys
from typing import Any, TypeVar

import numpy as np

from xcfast import kernels
from xcfast.kernels.gae_arguments import check_cuts, check_shapes, describe

Array = TypeVar("Array")  # numpy.ndarray or torch.Tensor; torch is not imported for it
_ON_TENSORS = ("torch", "triton")  # implementations that compute on tensors, whatever they are given


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

    `terminated` cuts the bootstrap, `terminated | truncated` cuts the recursion; a step that is truncated and not
    terminated bootstraps from its own final value, the last step from `last_values`. Entries that a flag masks may hold
    anything, NaN included.

    Args:
        rewards: float [T, N] (or [T]; [N, T] with ``time_major=False``, here and below), reward of step t.
        values: float [T, N], V of the observation that step t acted on.
        terminated: bool [T, N], the episode ended at this step by the task.
        truncated: bool [T, N], the episode ended at this step by a time limit. Default: never.
        last_values: float [N], V of the observation after the last step.
        final_values: float [T, N], V of the last observation of the episode; read only where truncated.
        next_values: float [T, N], V of each step's true successor, instead of `last_values` and `final_values`.
        episode_starts: bool [T, N], instead of `terminated`: observation t starts an episode (CleanRL's dones).
        last_done: bool [N], with `episode_starts`: the same of the observation after the last step.
        gamma: Discount, in [0, 1].
        gae_lambda: Mixing weight, in [0, 1].
        time_major: Whether time is the first axis.
        out: Arrays for (advantages, returns), of the shape and dtype of the result.

    Returns:
        (advantages, returns), `out` where given; numpy or torch, device and dtype like the arguments (the widest).

    Raises:
        ValueError: A shape, a device, a combination of arguments, gamma or gae_lambda is wrong; the message says which.
        TypeError: `rewards` or `values` is not floating point.

    Note:
        Fastest with C-contiguous numpy arrays, bool flags and `out`; everything else is converted first. Tensors are
        detached.

    Source: Schulman et al. 2016, equation 16; time limits as in Pardo et al. 2018.
    """
    if (
        out is not None
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
    """Returns the discounted sum of rewards to the end of each episode, bootstrapped where it is cut.

    Arguments and errors as in `compute_gae` (it is lambda = 1 without a baseline); `out` is one array.
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
    """Checks everything, converts what must be, and calls the kernel of that name in the implementation that serves."""
    for name, factor in factors.items():
        if not 0 <= factor <= 1:
            raise ValueError(f"{name} must be in [0, 1]; got {factor}")
    _check_combination(arrays, flags, ends)
    if out is not None and len(out) != (2 if kernel == "gae" else 1):
        raise ValueError(f"out must be (advantages, returns); got {len(out)} arrays")
    if _is_tensor(arrays["rewards"]) or kernels.name in _ON_TENSORS:
        from xcfast.kernels import torch_gae

        torch_gae.check_devices({**arrays, **flags, **ends}, out)
        if kernels.name in _ON_TENSORS or not torch_gae.numpy_serves(arrays["rewards"]):
            return torch_gae.advantages(kernel, arrays, flags, ends, factors, time_major, out)
        return torch_gae.through_numpy(_general, kernel, arrays, flags, ends, factors, time_major, out)
    inputs = {name: _floating(name, x) for name, x in arrays.items() if x is not None}
    shape = check_shapes(inputs, flags, ends, time_major)
    dtype = np.dtype(np.float64 if any(x.dtype.itemsize == 8 for x in inputs.values()) else np.float32)

    def time_first(x: Any) -> Any:
        return None if x is None else np.ascontiguousarray(x if time_major else np.asarray(x).T)

    inputs = {name: time_first(x.astype(dtype, copy=False)) for name, x in inputs.items()}
    last = ends["last_values"]
    last = None if last is None else np.ascontiguousarray(last, dtype)
    starts = time_first(flags["episode_starts"])
    if starts is not None:
        terminated = np.concatenate([starts[1:], np.reshape(ends["last_done"], (1, *starts.shape[1:]))]).astype(bool)
    else:
        terminated = time_first(flags["terminated"]).astype(bool, copy=False)
    truncated = (
        flags["truncated"] if flags["truncated"] is None else time_first(flags["truncated"]).astype(bool, copy=False)
    )
    nexts, final = inputs.get("next_values"), inputs.get("final_values")
    if truncated is not None and nexts is None and final is None:
        check_cuts(bool(np.any(truncated & ~terminated)))
    results = tuple(np.empty(inputs["rewards"].shape, dtype) for _ in range(2 if kernel == "gae" else 1))
    baseline = [inputs["values"]] if kernel == "gae" else []
    call = getattr(kernels.impl, kernel)
    if not call(inputs["rewards"], *baseline, terminated, truncated, last, final, nexts, *factors.values(), *results):
        raise RuntimeError(f"{kernel}: arguments that were checked were refused; please report this")
    if not time_major:
        results = tuple(x.T for x in results)
    if out is None:
        return tuple(np.ascontiguousarray(x) for x in results)
    for name, target, result in zip(
        ("advantages", "returns") if len(out) == 2 else ("returns",), out, results, strict=True
    ):
        if not isinstance(target, np.ndarray) or target.shape != shape or target.dtype != dtype:
            raise ValueError(f"out ({name}) must be {dtype} {list(shape)}; got {describe(target)}")
        np.copyto(target, result)
    return out


def _check_combination(arrays: dict[str, Any], flags: dict[str, Any], ends: dict[str, Any]) -> None:
    """Raises where arguments are missing or exclude each other."""
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
