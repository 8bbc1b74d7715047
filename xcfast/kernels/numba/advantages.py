"""Jitted advantage estimation and discounted sums, in the order of operations of csrc/kernels/gae.hpp."""
# mypy: disallow-untyped-defs=False

from xcfast.kernels.numba.jitting import jit, overlap


@jit
def successor_values(values, last_values, final_values, truncated, out):
    """Writes V of each step's true successor, which `gae` and `discounted_returns` bootstrap from.

    Args:
        values: float [T, N], V of the observation that step t acted on.
        last_values: float [N], V of the observation after the last step.
        final_values: float [T, N], V of an episode's last observation; read only where `truncated`.
        truncated: bool [T, N], the episode ended at this step by a time limit.
        out: float [T, N], written.

    Raises:
        ValueError: A shape does not fit, or `out` shares memory with another argument.
    """
    num_steps, num_envs = values.shape
    if last_values.shape != (num_envs,):
        raise ValueError("last_values must be [N], one for each env of values [T, N]")
    if final_values.shape != values.shape or truncated.shape != values.shape or out.shape != values.shape:
        raise ValueError("final_values, truncated and out must have the shape of values, [T, N]")
    if overlap(out, values) or overlap(out, last_values) or overlap(out, final_values) or overlap(out, truncated):
        raise ValueError("out must not share memory with values, last_values, final_values or truncated")
    for t in range(num_steps):
        for n in range(num_envs):
            if truncated[t, n]:
                out[t, n] = final_values[t, n]
            elif t == num_steps - 1:
                out[t, n] = last_values[n]
            else:
                out[t, n] = values[t + 1, n]


@jit
def gae(rewards, values, next_values, terminated, truncated, gamma, gae_lambda, advantages, returns):
    """Writes advantages and returns (advantages + values) of a rollout, like `xcfast.compute_gae`.

    Args:
        rewards: float32 or float64 [T, N], reward of step t. All float arrays have this dtype.
        values: float [T, N], V of the observation that step t acted on.
        next_values: float [T, N], V of each step's true successor; see `successor_values`. Not read where `terminated`.
        terminated: bool [T, N], the episode ended at this step by the task.
        truncated: bool [T, N], the episode ended at this step by a time limit.
        gamma: Discount, in [0, 1].
        gae_lambda: Mixing weight, in [0, 1].
        advantages: float [T, N], written.
        returns: float [T, N], written.

    Raises:
        ValueError: A shape does not fit, or an output shares memory with another argument.

    Source: Schulman et al. 2016, equation 16.
    """
    if values.shape != rewards.shape or next_values.shape != rewards.shape:
        raise ValueError("values and next_values must have the shape of rewards, [T, N]")
    if terminated.shape != rewards.shape or truncated.shape != rewards.shape:
        raise ValueError("terminated and truncated must have the shape of rewards, [T, N]")
    if advantages.shape != rewards.shape or returns.shape != rewards.shape:
        raise ValueError("advantages and returns must have the shape of rewards, [T, N]")
    if overlap(advantages, rewards) or overlap(advantages, values) or overlap(advantages, next_values):
        raise ValueError("advantages must not share memory with rewards, values or next_values")
    if overlap(returns, rewards) or overlap(returns, values) or overlap(returns, next_values):
        raise ValueError("returns must not share memory with rewards, values or next_values")
    if overlap(advantages, terminated) or overlap(advantages, truncated) or overlap(advantages, returns):
        raise ValueError("advantages must not share memory with terminated, truncated or returns")
    if overlap(returns, terminated) or overlap(returns, truncated):
        raise ValueError("returns must not share memory with terminated or truncated")
    num_steps, num_envs = rewards.shape
    real = rewards.dtype.type
    discount, decay, zero = real(gamma), real(gamma * gae_lambda), real(0)
    for t in range(num_steps - 1, -1, -1):
        for n in range(num_envs):
            bootstrap = zero if terminated[t, n] else next_values[t, n]
            advantage = rewards[t, n] + discount * bootstrap - values[t, n]
            if t < num_steps - 1 and not (terminated[t, n] or truncated[t, n]):
                advantage += decay * advantages[t + 1, n]
            advantages[t, n] = advantage
            returns[t, n] = advantage + values[t, n]


@jit
def discounted_returns(rewards, next_values, terminated, truncated, gamma, returns):
    """Writes the discounted sum of rewards to each episode's end, like `xcfast.compute_returns`.

    Args:
        rewards: float32 or float64 [T, N], reward of step t. All float arrays have this dtype.
        next_values: float [T, N], V of each step's true successor; read only where `truncated` and at the last step.
        terminated: bool [T, N], the episode ended at this step by the task.
        truncated: bool [T, N], the episode ended at this step by a time limit.
        gamma: Discount, in [0, 1].
        returns: float [T, N], written.

    Raises:
        ValueError: A shape does not fit, or `returns` shares memory with another argument.
    """
    if next_values.shape != rewards.shape or returns.shape != rewards.shape:
        raise ValueError("next_values and returns must have the shape of rewards, [T, N]")
    if terminated.shape != rewards.shape or truncated.shape != rewards.shape:
        raise ValueError("terminated and truncated must have the shape of rewards, [T, N]")
    if overlap(returns, rewards) or overlap(returns, next_values):
        raise ValueError("returns must not share memory with rewards or next_values")
    if overlap(returns, terminated) or overlap(returns, truncated):
        raise ValueError("returns must not share memory with terminated or truncated")
    num_steps, num_envs = rewards.shape
    real = rewards.dtype.type
    discount, zero = real(gamma), real(0)
    for t in range(num_steps - 1, -1, -1):
        for n in range(num_envs):
            cut = t == num_steps - 1 or truncated[t, n]
            successor = next_values[t, n] if cut else returns[t + 1, n]
            returns[t, n] = rewards[t, n] + discount * (zero if terminated[t, n] else successor)


@jit
def discounted_sums(rewards, done, gamma, carry, sums):
    """Writes the running discounted sum of past rewards, R[t] = gamma R[t - 1] + r[t], which restarts after `done`.

    Args:
        rewards: float32 or float64 [T, N], reward of step t.
        done: bool [T, N], the episode ended at this step.
        gamma: Discount, in [0, 1].
        carry: float64 [N], R before the first step (0 at an episode's start); updated to continue after the last one.
        sums: float64 [T, N], written.

    Raises:
        ValueError: A shape does not fit, or `carry` or `sums` shares memory with another argument.
    """
    num_steps, num_envs = rewards.shape
    if done.shape != rewards.shape or sums.shape != rewards.shape:
        raise ValueError("done and sums must have the shape of rewards, [T, N]")
    if carry.shape != (num_envs,):
        raise ValueError("carry must be [N], one for each env of rewards [T, N]")
    if overlap(sums, rewards) or overlap(sums, done) or overlap(sums, carry):
        raise ValueError("sums must not share memory with rewards, done or carry")
    if overlap(carry, rewards) or overlap(carry, done):
        raise ValueError("carry must not share memory with rewards or done")
    for t in range(num_steps):
        for n in range(num_envs):
            total = gamma * carry[n] + rewards[t, n]
            sums[t, n] = total
            carry[n] = 0.0 if done[t, n] else total
