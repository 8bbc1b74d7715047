"""Advantage estimation on tensors of any device. Only missing values of truncated steps make it wait."""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from xcfast import kernels
from xcfast.kernels.arguments import check_cuts, check_memory, check_rollout_shapes


def numpy_serves(x: Any) -> bool:
    """Returns whether the CPU kernels can read a numpy view of this tensor."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def check_tensors(inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    """Raises a ValueError if a tensor is not on the device of `rewards`, or an output shares memory.

    A tensor on another device would have to be copied, which is slow; an output there would stay unwritten.
    """
    rewards = inputs["rewards"]
    device = rewards.device if isinstance(rewards, torch.Tensor) else torch.device("cpu")
    for name, x in (*inputs.items(), *outputs.items()):
        if isinstance(x, torch.Tensor) and x.device != device:
            raise ValueError(f"{name} must be on {device} as rewards is; got {x.device}")
    check_memory(outputs, inputs)


def through_numpy(
    compute: Callable[..., tuple[Any, ...]],
    kernel: str,
    arrays: dict[str, Any],
    flags: dict[str, Any],
    ends: dict[str, Any],
    factors: dict[str, float],
    time_major: bool,
    out: tuple[Any, ...] | None,
) -> tuple[Any, ...]:
    """Returns what `compute` returns for numpy views of CPU tensors, as tensors."""

    def view(x: Any) -> Any:
        return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x

    def views(group: dict[str, Any]) -> dict[str, Any]:
        return {name: view(x) for name, x in group.items()}

    targets = None if out is None else tuple(view(x) for x in out)
    results = compute(kernel, views(arrays), views(flags), views(ends), factors, time_major, targets)
    return tuple(torch.from_numpy(x) for x in results) if out is None else out


@torch.no_grad()
def advantages(
    kernel: str,
    arrays: dict[str, Any],
    flags: dict[str, Any],
    ends: dict[str, Any],
    factors: dict[str, float],
    time_major: bool,
    out: tuple[Any, ...] | None,
) -> tuple[Any, ...]:
    """Returns (advantages, returns) for "gae", (returns,) for "discounted_returns"; arguments as in `xcfast.gae`."""
    given = arrays["rewards"]
    is_numpy = not isinstance(given, torch.Tensor)
    device = torch.device("cpu") if is_numpy else given.device

    def tensors(group: dict[str, Any]) -> dict[str, Any]:
        return {k: None if x is None else torch.as_tensor(x, device=device) for k, x in group.items()}

    arrays, flags, ends = tensors(arrays), tensors(flags), tensors(ends)
    inputs = {name: x for name, x in arrays.items() if x is not None}
    for name, x in inputs.items():
        if not x.dtype.is_floating_point:
            raise TypeError(f"{name} must be floating point; got {x.dtype} {list(x.shape)}")
    last_values = ends["last_values"]
    if last_values is not None and last_values.dtype.is_complex:
        raise TypeError(f"last_values must be real numbers; got {last_values.dtype} {list(last_values.shape)}")
    shape = check_rollout_shapes(inputs, flags, ends, time_major)
    dtype = inputs["rewards"].dtype
    for x in inputs.values():
        dtype = torch.promote_types(dtype, x.dtype)
    wide = torch.promote_types(dtype, torch.float32)  # half precision is accumulated in float32

    def time_first(x: Any) -> Any:
        return x.T if x.ndim == 2 and not time_major else x

    inputs = {name: time_first(x).to(wide) for name, x in inputs.items()}
    if flags["episode_starts"] is not None:
        starts = time_first(flags["episode_starts"]).bool()
        terminated = torch.cat([starts[1:], ends["last_done"].bool().reshape(1, *starts.shape[1:])])
    else:
        terminated = time_first(flags["terminated"]).bool()
    truncated = None if flags["truncated"] is None else time_first(flags["truncated"]).bool()
    if truncated is not None and "next_values" not in inputs and "final_values" not in inputs:
        check_cuts(bool((truncated & ~terminated).any()))
    both: Sequence[torch.Tensor] | None = None
    if kernel == "gae":
        both = _in_one_kernel(inputs, terminated, truncated, ends["last_values"], factors, out if time_major else None)
    if both is None:
        both = _in_passes(kernel, inputs, terminated, truncated, ends["last_values"], factors)
    results = tuple((x if time_major else x.T).to(dtype).contiguous() for x in both)
    if out is None:
        return tuple(x.numpy() for x in results) if is_numpy else results
    for name, target, x in zip(
        ("advantages", "returns") if kernel == "gae" else ("returns",), out, results, strict=True
    ):
        if is_numpy and (target.shape != shape or target.dtype != x.numpy().dtype):
            raise ValueError(
                f"out ({name}) must be {x.numpy().dtype} {list(shape)}; got {target.dtype} {list(target.shape)}"
            )
        if is_numpy:
            np.copyto(target, x.numpy())
        elif target.shape != x.shape or target.dtype != dtype or target.device != x.device:
            raise ValueError(
                f"out ({name}) must be {dtype} {list(shape)} on {x.device}; got {target.dtype} {list(target.shape)}"
            )
        elif x is not target:
            target.copy_(x)
    return out


def _in_one_kernel(
    inputs: dict[str, Any],
    terminated: torch.Tensor,
    truncated: torch.Tensor | None,
    last_values: torch.Tensor | None,
    factors: dict[str, float],
    out: tuple[Any, ...] | None,
) -> tuple[torch.Tensor, ...] | None:
    """Returns advantages and returns by the Triton kernel, in `out` if that fits; None for other arguments."""
    rewards = inputs["rewards"]
    if rewards.ndim != 2 or kernels.name == "torch" or not (kernels.name == "triton" or _has_triton(rewards.device)):
        return None
    from xcfast.kernels import triton_gae

    def plain(x: Any) -> Any:
        return None if x is None else x.contiguous()

    arguments: list[Any] = [plain(x) for x in (rewards, inputs["values"], terminated, truncated)]
    arguments += [None if last_values is None else last_values.to(rewards.dtype).contiguous()]
    arguments += [plain(inputs.get(name)) for name in ("final_values", "next_values")] + [*factors.values()]
    if out is not None and all(isinstance(x, torch.Tensor) for x in out) and triton_gae.gae(*arguments, *out):
        return out
    results: Any = (torch.empty_like(arguments[0]), torch.empty_like(arguments[0]))
    return results if triton_gae.gae(*arguments, *results) else None


@functools.cache
def _has_triton(device: torch.device) -> bool:
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def _in_passes(
    kernel: str,
    inputs: dict[str, Any],
    terminated: torch.Tensor,
    truncated: torch.Tensor | None,
    last_values: torch.Tensor | None,
    factors: dict[str, float],
) -> list[torch.Tensor]:
    """Returns advantages and returns, or discounted returns, by torch's own operations on any device."""
    rewards, gamma = inputs["rewards"], factors["gamma"]
    done = terminated if truncated is None else terminated | truncated
    final, nexts = inputs.get("final_values"), inputs.get("next_values")
    baseline = inputs["values"] if kernel == "gae" else torch.zeros_like(rewards)
    if nexts is None:
        assert last_values is not None  # one of the two was given
        nexts = torch.cat([baseline[1:], last_values.to(rewards.dtype).reshape(1, *rewards.shape[1:])])
        if truncated is not None and final is not None:
            nexts = torch.where(truncated, final, nexts)
    elif kernel != "gae":
        # Without a baseline, a step that goes on takes its bootstrap from the recursion; the last one ends it like a
        # truncation.
        ended = done.clone()
        ended[-1] = True
        nexts = torch.where(ended, nexts, 0)
    nexts = torch.where(terminated, 0, nexts)
    delta = rewards + gamma * nexts - baseline
    result = _scan(delta, done, gamma * factors.get("gae_lambda", 1.0))
    return [result, result + baseline] if kernel == "gae" else [result]


def _scan(delta: torch.Tensor, done: torch.Tensor, decay: float) -> torch.Tensor:
    """Solves A[t] = delta[t] + (0 if done[t] else decay A[t + 1]) in log2(T) passes over all envs at once.

    After the pass with step k, A[t] holds the sum over the window [t, t + 2k), and cut[t] says that an episode ends in
    it. Everything is selected, never multiplied: values beyond an end, NaN included, must not spread.
    """
    sums, cut, step = delta, done, 1
    while step < len(sums):
        joined = torch.where(cut[:-step], sums[:-step], sums[:-step] + decay**step * sums[step:])
        sums = torch.cat([joined, sums[-step:]])
        cut = torch.cat([cut[:-step] | cut[step:], cut[-step:]])
        step *= 2
    return sums
