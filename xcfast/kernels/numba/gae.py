"""Advantage estimation in numba; the arithmetic follows csrc/kernels/gae.hpp operation by operation."""
# mypy: disallow-untyped-defs=False

import numpy as np

from xcfast.kernels.numba.common import is_float, jit, plain, writable

_BLANK = np.zeros((1, 1))


@jit
def _gae(
    rewards, values, terminated, truncated, last, final, nexts, use_next, use_final, gamma, decay, advantages, returns
):
    num_steps, num_envs = rewards.shape
    zero = gamma - gamma
    for t in range(num_steps - 1, -1, -1):
        for n in range(num_envs):
            bootstrap = nexts[t, n] if use_next else (last[n] if t == num_steps - 1 else values[t + 1, n])
            if use_final and truncated[t, n]:
                bootstrap = final[t, n]
            if terminated[t, n]:
                bootstrap = zero
            advantage = rewards[t, n] + gamma * bootstrap - values[t, n]
            if t < num_steps - 1 and not (terminated[t, n] or truncated[t, n]):
                advantage += decay * advantages[t + 1, n]
            advantages[t, n] = advantage
            returns[t, n] = advantage + values[t, n]


@jit
def _returns(rewards, terminated, truncated, last, cuts, nexts, use_next, use_cuts, gamma, returns):
    num_steps, num_envs = rewards.shape
    zero = gamma - gamma
    for t in range(num_steps - 1, -1, -1):
        for n in range(num_envs):
            if t < num_steps - 1:
                successor = returns[t + 1, n]
            else:
                successor = nexts[t, n] if use_next else last[n]
            if use_cuts and truncated[t, n]:
                successor = cuts[t, n]
            if terminated[t, n]:
                successor = zero
            returns[t, n] = rewards[t, n] + gamma * successor


def _advantage_arguments(rewards, terminated, truncated, last, final, nexts, gamma, same, outputs):
    """Returns the arguments as [T, N] arrays with stand-ins for what is absent, or None where they are not plain."""
    present = [x for x in (truncated, last, final, nexts) if x is not None]
    if not plain(rewards, terminated, *same, *outputs, *present) or not is_float(rewards) or rewards.ndim not in (1, 2):
        return None
    floats = [*same, *outputs, *(x for x in (final, nexts) if x is not None)]
    flags = [terminated] if truncated is None else [terminated, truncated]
    if rewards.shape[0] < 1 or not 0 <= gamma <= 1 or not writable(*outputs) or (last is None) == (nexts is None):
        return None
    if any(x.dtype != rewards.dtype or x.shape != rewards.shape for x in floats) or (
        nexts is not None and final is not None
    ):
        return None
    if any(x.dtype != np.bool_ or x.shape != rewards.shape for x in flags):
        return None
    num_envs = 1 if rewards.ndim == 1 else rewards.shape[1]
    if last is not None:
        wanted = ((), (1,)) if rewards.ndim == 1 else ((num_envs,),)
        if last.dtype != rewards.dtype or last.shape not in wanted:
            return None
    inputs = [rewards, terminated, *same, *present]
    for i, out in enumerate(outputs):
        if any(np.may_share_memory(out, x) for x in [*inputs, *outputs[:i]]):
            return None
    if truncated is not None and final is None and nexts is None:
        if np.any(truncated & ~terminated):
            return None
        truncated = None
    blank = _BLANK.astype(rewards.dtype)
    matrix = (rewards.shape[0], num_envs)
    return (
        rewards.reshape(matrix),
        terminated.reshape(matrix),
        (terminated if truncated is None else truncated).reshape(matrix),
        (blank[0] if last is None else last.reshape(num_envs)),
        (blank if final is None else final.reshape(matrix)),
        (blank if nexts is None else nexts.reshape(matrix)),
        rewards.dtype.type,
        matrix,
        truncated is not None,
    )


def gae(
    rewards,
    values,
    terminated,
    truncated,
    last_values,
    final_values,
    next_values,
    gamma,
    gae_lambda,
    advantages,
    returns,
):
    """See `xcfast.compute_gae`."""
    a = _advantage_arguments(
        rewards, terminated, truncated, last_values, final_values, next_values, gamma, [values], [advantages, returns]
    )
    if a is None or not 0 <= gae_lambda <= 1:
        return False
    rewards, terminated, truncated, last, final, nexts, real, matrix, _ = a
    use_final = final_values is not None and a[-1]
    _gae(
        rewards, values.reshape(matrix), terminated, truncated, last, final, nexts, next_values is not None, use_final,
        real(gamma), real(gamma * gae_lambda), advantages.reshape(matrix), returns.reshape(matrix),
    )  # fmt: skip
    return True


def discounted_returns(rewards, terminated, truncated, last_values, final_values, next_values, gamma, returns):
    """See `xcfast.compute_returns`."""
    a = _advantage_arguments(
        rewards, terminated, truncated, last_values, final_values, next_values, gamma, [], [returns]
    )
    if a is None:
        return False
    rewards, terminated, truncated, last, final, nexts, real, matrix, use_cuts = a
    cuts = nexts if next_values is not None else final
    _returns(
        rewards,
        terminated,
        truncated,
        last,
        cuts,
        nexts,
        next_values is not None,
        use_cuts,
        real(gamma),
        returns.reshape(matrix),
    )
    return True
