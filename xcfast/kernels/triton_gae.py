"""Advantage estimation on CUDA tensors in one kernel launch: a scan over time, blocks of envs in parallel.

The recurrence A[t] = delta[t] + (0 if done[t] else decay * A[t + 1]) composes maps A -> d + c A, which is associative,
so a block of time steps takes log2 steps instead of one after the other, and all its loads are under way at once.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _then(d_late, c_late, d_early, c_early):  # type: ignore[no-untyped-def]
    """Composes the maps of later and earlier steps; c = 0 selects, since values beyond an end may be NaN."""
    return tl.where(c_early == 0.0, d_early, d_early + c_early * d_late), c_early * c_late


@triton.jit
def _gae_kernel(  # type: ignore[no-untyped-def]
    rewards,
    values,
    terminated,
    truncated,
    last_values,
    final_values,
    next_values,
    advantages,
    returns,
    num_steps,
    num_envs,
    gamma,
    decay,
    HAS_TRUNCATED: tl.constexpr,
    HAS_FINAL: tl.constexpr,
    HAS_NEXT: tl.constexpr,
    BLOCK_STEPS: tl.constexpr,
    BLOCK_ENVS: tl.constexpr,
):
    envs = tl.program_id(0) * BLOCK_ENVS + tl.arange(0, BLOCK_ENVS)
    in_envs = envs < num_envs
    rows = tl.arange(0, BLOCK_STEPS)
    carry = tl.zeros([BLOCK_ENVS], tl.float32)
    if not HAS_NEXT:
        last = tl.load(last_values + envs, mask=in_envs, other=0.0)
    for back in range(0, tl.cdiv(num_steps, BLOCK_STEPS)):
        steps = (tl.cdiv(num_steps, BLOCK_STEPS) - 1 - back) * BLOCK_STEPS + rows
        inside = (steps < num_steps)[:, None] & in_envs[None, :]
        at = steps.to(tl.int64)[:, None] * num_envs + envs[None, :]
        value = tl.load(values + at, mask=inside, other=0.0)
        if HAS_NEXT:
            after = tl.load(next_values + at, mask=inside, other=0.0)
        else:
            follows = inside & (steps + 1 < num_steps)[:, None]
            after = tl.load(values + at + num_envs, mask=follows, other=0.0)
            after = tl.where(follows, after, last[None, :])
        ended = tl.load(terminated + at, mask=inside, other=0) != 0
        cut = ended
        if HAS_TRUNCATED:
            timed_out = tl.load(truncated + at, mask=inside, other=0) != 0
            cut = cut | timed_out
            if HAS_FINAL:
                after = tl.where(timed_out, tl.load(final_values + at, mask=inside & timed_out, other=0.0), after)
        after = tl.where(ended, 0.0, after)
        delta = tl.load(rewards + at, mask=inside, other=0.0) + gamma * after - value
        # Steps beyond the last one pass on the carry.
        delta = tl.where(inside, delta, 0.0)
        factor = tl.where(inside, tl.where(cut, 0.0, decay), 1.0)
        sums, products = tl.associative_scan((delta, factor), 0, _then, reverse=True)
        result = tl.where(products == 0.0, sums, sums + products * carry[None, :])
        tl.store(advantages + at, result, mask=inside)
        tl.store(returns + at, result + value, mask=inside)
        carry = tl.sum(tl.where(rows[:, None] == 0, result, 0.0), axis=0)


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    terminated: torch.Tensor,
    truncated: torch.Tensor | None,
    last_values: torch.Tensor | None,
    final_values: torch.Tensor | None,
    next_values: torch.Tensor | None,
    gamma: float,
    gae_lambda: float,
    advantages: torch.Tensor,
    returns: torch.Tensor,
) -> bool:
    """Writes advantages and returns, all [T, N]. Returns False, with nothing done, for other arguments.

    It supports contiguous float32 tensors of fitting shapes with bool flags (its scalars are float32, so float64 would
    be float64 in name only); which arguments exclude each other is checked by `xcfast.gae`.
    """
    shape = rewards.shape
    for x in (rewards, values, final_values, next_values, advantages, returns, last_values):
        fits = x is None or (x.dtype == torch.float32 and x.shape == (shape[-1:] if x is last_values else shape))
        if not fits or not (x is None or x.is_contiguous()):
            return False
    flags = [x for x in (terminated, truncated) if x is not None]
    if len(shape) != 2 or not all(_is_flag(x, shape) for x in flags):
        return False
    num_steps, num_envs = shape
    block_steps, block_envs = min(64, triton.next_power_of_2(num_steps)), 32
    absent = rewards  # never read

    def given(x: torch.Tensor | None) -> torch.Tensor:
        return absent if x is None else x

    _gae_kernel[(triton.cdiv(num_envs, block_envs),)](
        rewards,
        values,
        terminated.view(torch.uint8),
        absent if truncated is None else truncated.view(torch.uint8),
        given(last_values),
        given(final_values),
        given(next_values),
        advantages,
        returns,
        num_steps,
        num_envs,
        gamma,
        gamma * gae_lambda,
        HAS_TRUNCATED=truncated is not None,
        HAS_FINAL=final_values is not None,
        HAS_NEXT=next_values is not None,
        BLOCK_STEPS=block_steps,
        BLOCK_ENVS=block_envs,
        num_warps=4,
    )
    return True


def _is_flag(x: torch.Tensor, shape: torch.Size) -> bool:
    return x.dtype == torch.bool and x.shape == shape and x.is_contiguous()
