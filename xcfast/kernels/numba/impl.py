"""The kernels in numba, for installations without the compiled core. Their signatures are those of `_core`.

Like those, they take plain arrays. For anything else they do nothing and return False or None.
"""
# mypy: disallow-untyped-defs=False

from typing import Any

import numpy as np

from xcfast.kernels.numba import advantages as jitted_advantages
from xcfast.kernels.numba import moments as jitted_moments
from xcfast.kernels.numba import rollout as jitted_rollout
from xcfast.kernels.reference import DOMAIN_GAUSSIAN, DOMAIN_PERMUTATION, DOMAIN_UNIFORM, stream_key

__all__ = [
    "cast_and_track",
    "discounted_returns",
    "gae",
    "gather",
    "gaussian_noise",
    "merge_tracked",
    "minibatch_indices",
    "moments_update",
    "normalize",
    "normalize_and_track",
    "normalize_rewards",
    "store_step",
    "uniform_noise",
    "update_and_normalize",
    "warmup",
]


def _plain(*arrays: Any) -> bool:
    """Returns whether all are exactly ndarray, C-contiguous, aligned and of a native dtype."""
    return all(type(x) is np.ndarray and x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative for x in arrays)


def _outputs(*arrays: Any) -> bool:
    """Returns whether all are plain and may be written, and no two share memory."""
    return _plain(*arrays) and all(x.flags.writeable and not _overlap(x, *arrays[:i]) for i, x in enumerate(arrays))


def _overlap(x: np.ndarray, *others: np.ndarray) -> bool:
    return any(np.may_share_memory(x, other) for other in others)


def _is_float(x: np.ndarray) -> bool:
    return x.dtype == np.float32 or x.dtype == np.float64


# --- advantage estimation ---


def _rollout_arguments(rewards, terminated, truncated, last, final, nexts, gamma, same, outputs):
    """Returns rewards, next_values, terminated and truncated, all [T, N]; None if an argument is not plain.

    `same` and `outputs` are further arrays that must be like `rewards`.
    """
    inputs = [rewards, terminated, *same, *(x for x in (truncated, last, final, nexts) if x is not None)]
    if not _plain(*inputs) or not _outputs(*outputs) or not _is_float(rewards) or rewards.ndim not in (1, 2):
        return None
    floats = [*same, *outputs, *(x for x in (final, nexts) if x is not None)]
    flags = [terminated] if truncated is None else [terminated, truncated]
    if len(rewards) < 1 or not 0 <= gamma <= 1 or (last is None) == (nexts is None):
        return None
    if final is not None and nexts is not None:
        return None
    if any(x.dtype != rewards.dtype or x.shape != rewards.shape for x in floats):
        return None
    if any(x.dtype != np.bool_ or x.shape != rewards.shape for x in flags):
        return None
    if any(_overlap(out, *inputs) for out in outputs):
        return None
    matrix = (len(rewards), 1 if rewards.ndim == 1 else rewards.shape[1])
    if last is not None:
        wanted = ((), (1,)) if rewards.ndim == 1 else (matrix[1:], (1, *matrix[1:]))
        if last.dtype != rewards.dtype or last.shape not in wanted:
            return None
    if truncated is None:
        truncated = np.zeros_like(terminated)
    elif final is None and nexts is None and np.any(truncated & ~terminated):
        return None
    terminated, truncated = terminated.reshape(matrix), truncated.reshape(matrix)
    if nexts is None:
        nexts = np.empty(matrix, rewards.dtype)
        values = (same[0] if same else rewards).reshape(matrix)
        final = values if final is None else final.reshape(matrix)
        jitted_advantages.successor_values(values, last.reshape(matrix[1:]), final, truncated, nexts)
    return rewards.reshape(matrix), nexts.reshape(matrix), terminated, truncated


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
    arguments = _rollout_arguments(
        rewards, terminated, truncated, last_values, final_values, next_values, gamma, [values], [advantages, returns]
    )
    if arguments is None or not 0 <= gae_lambda <= 1:
        return False
    rewards, nexts, terminated, truncated = arguments
    shape = rewards.shape
    jitted_advantages.gae(
        rewards, values.reshape(shape), nexts, terminated, truncated, float(gamma), float(gae_lambda),
        advantages.reshape(shape), returns.reshape(shape),
    )  # fmt: skip
    return True


def discounted_returns(rewards, terminated, truncated, last_values, final_values, next_values, gamma, returns):
    """See `xcfast.compute_returns`."""
    arguments = _rollout_arguments(
        rewards, terminated, truncated, last_values, final_values, next_values, gamma, [], [returns]
    )
    if arguments is None:
        return False
    rewards, nexts, terminated, truncated = arguments
    jitted_advantages.discounted_returns(
        rewards, nexts, terminated, truncated, float(gamma), returns.reshape(rewards.shape)
    )
    return True


# --- moments and normalization ---


def _moments_ok(mean: Any, var: Any, count: Any) -> bool:
    return (
        _outputs(mean, var, count)
        and mean.dtype == var.dtype == np.float64
        and mean.shape == var.shape
        and count.dtype == np.int64
        and count.shape == (1,)
    )


def _batch_ok(batch: Any, mean: Any, var: Any, count: Any) -> bool:
    return (
        _plain(batch)
        and _is_float(batch)
        and batch.ndim >= 1
        and len(batch) >= 1
        and batch.shape[1:] == mean.shape
        and not _overlap(batch, mean, var, count)
    )


def _out_ok(out: Any, batch: np.ndarray, *others: np.ndarray) -> bool:
    return _outputs(out) and out.dtype == np.float32 and out.shape == batch.shape and not _overlap(out, batch, *others)


def _tracked_ok(counts: Any, means: Any, m2s: Any, mean: Any, var: Any, count: Any) -> bool:
    return (
        _outputs(counts, means, m2s, mean, var, count)
        and counts.dtype == np.int64
        and means.dtype == m2s.dtype == np.float64
        and means.shape == m2s.shape == (*counts.shape, *mean.shape)
        and counts.ndim == 1
    )


def moments_update(batch, mean, var, count):
    """See `xcfast.RunningMeanStd.update`."""
    if not _moments_ok(mean, var, count) or not _batch_ok(batch, mean, var, count):
        return False
    rows = batch.reshape(len(batch), -1)
    return bool(jitted_moments.update_moments(rows, mean.reshape(-1), var.reshape(-1), count))


def normalize(x, mean, var, count, epsilon, epsilon_outside, clip, out):
    """See `xcfast.RunningMeanStd.normalize`."""
    moments = mean, var, count
    if not _moments_ok(*moments) or not _batch_ok(x, *moments) or not _out_ok(out, x, *moments):
        return False
    rows = len(x)
    jitted_moments.normalize(
        x.reshape(rows, -1), mean.reshape(-1), var.reshape(-1), float(epsilon), bool(epsilon_outside), float(clip),
        out.reshape(rows, -1),
    )  # fmt: skip
    return True


def update_and_normalize(x, mean, var, count, epsilon, epsilon_outside, clip, out):
    """See `xcfast.RunningMeanStd.update_and_normalize`."""
    moments = mean, var, count
    if not _moments_ok(*moments) or not _batch_ok(x, *moments) or not _out_ok(out, x, *moments):
        return False
    return moments_update(x, *moments) and normalize(x, *moments, epsilon, epsilon_outside, clip, out)


def normalize_and_track(obs, mean, var, count, epsilon, epsilon_outside, clip, counts, means, m2s, out):
    """See `xcfast.ObservationNormalizer.normalize_and_track`."""
    moments, tracked = (mean, var, count), (counts, means, m2s)
    if not _moments_ok(*moments) or not _batch_ok(obs, *moments) or not _tracked_ok(*tracked, *moments):
        return False
    if obs.shape != means.shape or _overlap(obs, *tracked) or not _out_ok(out, obs, *tracked):
        return False
    if not normalize(obs, *moments, epsilon, epsilon_outside, clip, out):
        return False
    rows = len(obs)
    jitted_moments.track(obs.reshape(rows, -1), counts, means.reshape(rows, -1), m2s.reshape(rows, -1))
    return True


def cast_and_track(obs, poison, out):
    """Writes float32(obs) and makes `poison` NaN where `obs` is not finite."""
    if not _plain(obs) or not _is_float(obs) or not _outputs(poison, out) or not _out_ok(out, obs):
        return False
    if poison.dtype != np.float64 or poison.shape != obs.shape or _overlap(poison, obs):
        return False
    poison[~np.isfinite(obs)] = np.nan
    with np.errstate(all="ignore"):
        np.copyto(out, obs, casting="same_kind")
    return True


def merge_tracked(counts, means, m2s, mean, var, count):
    """See `xcfast.ObservationNormalizer.commit`."""
    if not _moments_ok(mean, var, count) or not _tracked_ok(counts, means, m2s, mean, var, count):
        return False
    rows = len(counts)
    jitted_moments.merge_tracked(
        counts, means.reshape(rows, -1), m2s.reshape(rows, -1), mean.reshape(-1), var.reshape(-1), count
    )
    return True


def normalize_rewards(rewards, done, gamma, carry, scratch, mean, var, count, epsilon, epsilon_outside, clip, out):
    """See `xcfast.RewardNormalizer`."""
    moments = mean, var, count
    if not _outputs(carry, scratch, *moments) or not _moments_ok(*moments) or mean.size != 1:
        return False
    if not _plain(rewards, done) or not _is_float(rewards) or rewards.ndim != 2 or len(rewards) < 1:
        return False
    if done.dtype != np.bool_ or done.shape != rewards.shape or not _out_ok(out, rewards, done, carry, *moments):
        return False
    if carry.dtype != np.float64 or carry.shape != rewards.shape[1:]:
        return False
    if _overlap(rewards, carry, *moments) or _overlap(done, carry, *moments):
        return False
    sums = np.empty(rewards.shape)
    jitted_advantages.discounted_sums(rewards, done, float(gamma), carry, sums)
    column = mean.reshape(1), var.reshape(1)
    jitted_moments.merge_sums(sums, *column, count)
    jitted_moments.normalize(
        rewards.reshape(-1, 1), np.zeros(1), column[1], float(epsilon), bool(epsilon_outside), float(clip),
        out.reshape(-1, 1),
    )  # fmt: skip
    return True


# --- random streams and rollout storage ---


def gaussian_noise(seed, env_offset, counters, out):
    """See `xcfast.kernels.noise.gaussian_noise`."""
    if not _plain(counters) or not _outputs(out) or counters.dtype != np.int64 or out.dtype != np.float32:
        return False
    if env_offset < 0 or out.ndim != 2 or counters.shape != out.shape[:1] or _overlap(out, counters):
        return False
    jitted_rollout.gaussian(np.uint64(stream_key(seed, DOMAIN_GAUSSIAN)), env_offset, counters, out)
    return True


def uniform_noise(seed, env_offset, counters, out):
    """See `xcfast.kernels.noise.uniform_noise`."""
    if not _plain(counters) or not _outputs(out) or counters.dtype != np.int64 or out.dtype != np.float64:
        return False
    if env_offset < 0 or out.ndim != 1 or counters.shape != out.shape or _overlap(out, counters):
        return False
    jitted_rollout.uniform(np.uint64(stream_key(seed, DOMAIN_UNIFORM)), env_offset, counters, out)
    return True


def minibatch_indices(seed, iteration, epoch, num_steps, num_envs, n_minibatch, env_offset, indices, offsets, steps):
    """See `xcfast.Rollout.minibatch_indices`."""
    if not _outputs(indices, offsets, steps) or any(x.dtype != np.int64 for x in (indices, offsets, steps)):
        return False
    if min(iteration, epoch, env_offset) < 0 or min(num_steps, num_envs, n_minibatch) < 1:
        return False
    shapes = ((num_steps * num_envs,), (n_minibatch + 1,), (num_steps,))
    if (indices.shape, offsets.shape, steps.shape) != shapes:
        return False
    jitted_rollout.minibatches(
        np.uint64(stream_key(seed, DOMAIN_PERMUTATION)),
        np.uint64(iteration & 0xFFFFFFFF), np.uint64(epoch & 0xFFFFFFFF),
        num_steps, num_envs, n_minibatch, env_offset, indices, offsets, steps,
    )  # fmt: skip
    return True


def gather(indices, sources, destinations):
    """Writes ``destination[i] = source[indices[i]]`` for each pair."""
    if not isinstance(sources, tuple) or not isinstance(destinations, tuple) or len(sources) != len(destinations):
        return False
    if not _plain(indices, *sources, *destinations) or indices.dtype != np.int64 or indices.ndim != 1:
        return False
    count = len(indices)
    for source, out in zip(sources, destinations, strict=True):
        if source.ndim < 1 or len(source) != len(sources[0]) or out.ndim < 1 or len(out) < count:
            return False
        if source.dtype != out.dtype or out.shape[1:] != source.shape[1:]:
            return False
        if not _outputs(out) or _overlap(out, source, indices):
            return False
    rows = len(sources[0]) if sources else 0
    if count and (indices.min() < 0 or indices.max() >= rows):
        raise IndexError(f"indices must be in [0, {rows})")
    for source, out in zip(sources, destinations, strict=True):
        np.take(source, indices, axis=0, out=out[:count], mode="clip")
    return True


def store_step(
    step, obs_buffer, actions_buffer, rewards_buffer, terminated_buffer, truncated_buffer, returns, lengths,
    episodes, num_episodes, cuts, num_cuts, num_final, obs, actions, rewards, terminated, truncated,
):  # fmt: skip
    """See `xcfast.Rollout.store`."""
    rows = (obs, actions, rewards, terminated, truncated)
    buffers = (obs_buffer, actions_buffer, rewards_buffer, terminated_buffer, truncated_buffer)
    outputs = (*buffers, returns, lengths, episodes, cuts)
    if not _plain(*rows, *outputs) or not all(x.flags.writeable for x in outputs) or not _is_float(rewards):
        return None
    num_envs = len(returns)
    if not 0 <= step < len(obs_buffer) or any(x.shape != b.shape[1:] for x, b in zip(rows, buffers, strict=True)):
        return None
    if any(x.dtype != b.dtype for x, b in zip(rows, buffers, strict=True) if x is not rewards):
        return None
    if num_episodes + num_envs > len(episodes) or num_cuts + num_envs > len(cuts):
        return None
    cut = np.flatnonzero(truncated & ~terminated)
    if len(cut) != num_final:
        raise ValueError(
            "final_obs must have one row for each env that is truncated and not terminated: "
            f"{len(cut)} at step {step}; got {num_final}"
        )
    np.copyto(obs_buffer[step], obs)
    np.copyto(actions_buffer[step], actions)
    np.copyto(terminated_buffer[step], terminated)
    np.copyto(truncated_buffer[step], truncated)
    ended = np.empty(num_envs, np.int64), np.empty(num_envs), np.empty(num_envs, np.int64)
    count = jitted_rollout.store(rewards, terminated, truncated, returns, lengths, rewards_buffer[step], *ended)
    appended = episodes[num_episodes : num_episodes + count]
    appended["step"] = step
    for field, column in zip(("env", "ret", "length"), ended, strict=True):
        appended[field] = column[:count]
    cuts[num_cuts : num_cuts + len(cut)] = step * num_envs + cut
    return count, len(cut)


def warmup() -> None:
    """Compiles the functions that a training run calls (float32 rollouts, float64 observations)."""
    flat, flags, one = np.zeros((2, 1), np.float32), np.zeros((2, 1), np.bool_), np.zeros(1, np.float32)
    gae(flat, flat, flags, flags, one, flat, None, 0.9, 0.9, flat.copy(), flat.copy())
    discounted_returns(flat, flags, flags, one, flat, None, 0.9, flat.copy())
    mean, var, count, obs = np.zeros(1), np.ones(1), np.zeros(1, np.int64), np.zeros((2, 1))
    update_and_normalize(obs, mean, var, count, 1e-8, False, 5.0, flat.copy())
    tracked = np.zeros(2, np.int64), np.zeros((2, 1)), np.zeros((2, 1))
    normalize_and_track(obs, mean, var, count, 1e-8, False, 5.0, *tracked, flat.copy())
    merge_tracked(*tracked, mean, var, count)
    normalize_rewards(flat, flags, 0.9, np.zeros(1), np.zeros((3, 1)), mean, var, count, 1e-8, False, 5.0, flat.copy())
    minibatch_indices(0, 0, 0, 2, 1, 1, 0, np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros(2, np.int64))
    ended = np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int64)
    jitted_rollout.store(np.zeros(1), flags[0], flags[1], np.zeros(1), count, one, *ended)
    gaussian_noise(0, 0, count, one.reshape(1, 1))
    uniform_noise(0, 0, count, np.zeros(1))
