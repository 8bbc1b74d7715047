"""Moments and normalisation in numba; the arithmetic follows csrc/kernels/moments.hpp operation by operation."""
# mypy: disallow-untyped-defs=False

from typing import Any

import numpy as np

from xcfast.kernels.numba.common import is_float, jit, plain, writable


@jit
def _chan_merge(mean, var, j, count, mean_b, m2_b, count_b):
    total = count + count_b
    delta = mean_b - mean[j]
    mean[j] = mean[j] + delta * (count_b / total)
    var[j] = (var[j] * count + m2_b + delta * delta * (count * count_b / total)) / total


@jit
def _clipped(x, clip):
    low = -clip if x < -clip else x
    return clip if low > clip else low


@jit
def _update(batch, mean, var, count):
    rows, dim = batch.shape
    total = np.zeros(dim)
    square = np.zeros(dim)
    i = 1
    while i + 4 <= rows:
        for j in range(dim):
            shift = np.float64(batch[0, j])
            d0 = np.float64(batch[i, j]) - shift
            d1 = np.float64(batch[i + 1, j]) - shift
            d2 = np.float64(batch[i + 2, j]) - shift
            d3 = np.float64(batch[i + 3, j]) - shift
            total[j] += (d0 + d1) + (d2 + d3)
            square[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
        i += 4
    while i < rows:
        for j in range(dim):
            d = np.float64(batch[i, j]) - np.float64(batch[0, j])
            total[j] += d
            square[j] += d * d
        i += 1
    for j in range(dim):
        mean_d = total[j] / rows
        m2 = square[j] - total[j] * mean_d
        if m2 < 0:
            m2 = 0.0
        _chan_merge(mean, var, j, np.float64(count[0]), np.float64(batch[0, j]) + mean_d, m2, np.float64(rows))
    count[0] += rows


@jit
def _normalize(x, mean, var, epsilon, clip, out):
    scale = 1.0 / np.sqrt(var + epsilon)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = np.float32(_clipped((np.float64(x[i, j]) - mean[j]) * scale[j], clip))


@jit
def _track(x, counts, means, m2s):
    for n in range(x.shape[0]):
        counts[n] += 1
        weight = 1.0 / np.float64(counts[n])
        for j in range(x.shape[1]):
            value = np.float64(x[n, j])
            delta = value - means[n, j]
            updated = means[n, j] + delta * weight
            m2s[n, j] += delta * (value - updated)
            means[n, j] = updated


@jit
def _merge(counts, means, m2s, mean, var, count):
    for n in range(len(counts)):
        if counts[n] > 0:
            for j in range(len(mean)):
                _chan_merge(mean, var, j, np.float64(count[0]), means[n, j], m2s[n, j], np.float64(counts[n]))
            count[0] += counts[n]


@jit
def _rewards(rewards, done, gamma, carry, mean, var, count, epsilon, clip, out):
    num_steps, num_envs = rewards.shape
    shift = np.empty(num_envs)
    total = np.zeros(num_envs)
    square = np.zeros(num_envs)
    for n in range(num_envs):
        shift[n] = gamma * carry[n] + np.float64(rewards[0, n])
    for t in range(num_steps):
        for n in range(num_envs):
            ret = gamma * carry[n] + np.float64(rewards[t, n])
            delta = ret - shift[n]
            total[n] += delta
            square[n] += delta * delta
            carry[n] = 0.0 if done[t, n] else ret
    for n in range(num_envs):
        mean_d = total[n] / num_steps
        m2 = square[n] - total[n] * mean_d
        if m2 < 0:
            m2 = 0.0
        _chan_merge(mean, var, 0, np.float64(count[0]), shift[n] + mean_d, m2, np.float64(num_steps))
        count[0] += num_steps
    scale = 1.0 / np.sqrt(var[0] + epsilon)
    for t in range(num_steps):
        for n in range(num_envs):
            out[t, n] = np.float32(_clipped(np.float64(rewards[t, n]) * scale, clip))


def _moments_ok(mean: Any, var: Any, count: Any) -> bool:
    return (
        plain(mean, var, count)
        and writable(mean, var, count)
        and mean.dtype == var.dtype == np.float64
        and mean.shape == var.shape
        and count.dtype == np.int64
        and count.shape == (1,)
    )


def _batch_ok(batch: Any, mean: np.ndarray) -> bool:
    return (
        plain(batch) and is_float(batch) and batch.ndim >= 1 and batch.shape[0] >= 1 and batch.shape[1:] == mean.shape
    )


def _out_ok(out: Any, batch: np.ndarray) -> bool:
    return (
        plain(out)
        and writable(out)
        and out.dtype == np.float32
        and out.shape == batch.shape
        and not np.may_share_memory(out, batch)
    )


def _tracked_ok(counts: Any, means: Any, m2s: Any, mean: np.ndarray) -> bool:
    return (
        plain(counts, means, m2s)
        and writable(counts, means, m2s)
        and counts.dtype == np.int64
        and means.dtype == m2s.dtype == np.float64
        and means.shape == m2s.shape == (*counts.shape, *mean.shape)
        and counts.ndim == 1
    )


def moments_update(batch, mean, var, count):
    """See `xcfast.RunningMeanStd.update`."""
    if not _moments_ok(mean, var, count) or not _batch_ok(batch, mean):
        return False
    _update(batch.reshape(len(batch), -1), mean.reshape(-1), var.reshape(-1), count)
    return True


def normalize(x, mean, var, count, epsilon, clip, out):
    """See `xcfast.RunningMeanStd.normalize`."""
    if not _moments_ok(mean, var, count) or not _batch_ok(x, mean) or not _out_ok(out, x):
        return False
    rows = len(x)
    _normalize(
        x.reshape(rows, -1), mean.reshape(-1), var.reshape(-1), float(epsilon), float(clip), out.reshape(rows, -1)
    )
    return True


def update_and_normalize(x, mean, var, count, epsilon, clip, out):
    """See `xcfast.RunningMeanStd.update_and_normalize`."""
    if not _moments_ok(mean, var, count) or not _batch_ok(x, mean) or not _out_ok(out, x):
        return False
    return moments_update(x, mean, var, count) and normalize(x, mean, var, count, epsilon, clip, out)


def normalize_and_track(obs, mean, var, count, epsilon, clip, counts, means, m2s, out):
    """See `xcfast.ObservationNormalizer.normalize_and_track`."""
    if not _moments_ok(mean, var, count) or not _batch_ok(obs, mean) or not _tracked_ok(counts, means, m2s, mean):
        return False
    if obs.shape != means.shape or not normalize(obs, mean, var, count, epsilon, clip, out):
        return False
    rows = len(obs)
    _track(obs.reshape(rows, -1), counts, means.reshape(rows, -1), m2s.reshape(rows, -1))
    return True


def cast_and_track(obs, poison, out):
    """Writes float32(obs) and makes `poison` NaN where obs is not finite."""
    if not plain(obs, poison) or not is_float(obs) or not _out_ok(out, obs):
        return False
    if poison.dtype != np.float64 or poison.shape != obs.shape or not writable(poison):
        return False
    poison[~np.isfinite(obs)] = np.nan
    with np.errstate(all="ignore"):
        np.copyto(out, obs, casting="same_kind")
    return True


def merge_tracked(counts, means, m2s, mean, var, count):
    """See `xcfast.ObservationNormalizer.commit`."""
    if not _moments_ok(mean, var, count) or not _tracked_ok(counts, means, m2s, mean):
        return False
    rows = len(counts)
    _merge(counts, means.reshape(rows, -1), m2s.reshape(rows, -1), mean.reshape(-1), var.reshape(-1), count)
    return True


def normalize_rewards(rewards, done, gamma, carry, scratch, mean, var, count, epsilon, clip, out):
    """See `xcfast.RewardNormalizer`."""
    if not _moments_ok(mean, var, count) or mean.size != 1 or not plain(rewards, done, carry) or not is_float(rewards):
        return False
    if rewards.ndim != 2 or rewards.shape[0] < 1 or done.dtype != np.bool_ or done.shape != rewards.shape:
        return False
    if carry.dtype != np.float64 or carry.shape != rewards.shape[1:] or not _out_ok(out, rewards):
        return False
    _rewards(
        rewards, done, float(gamma), carry, mean.reshape(-1), var.reshape(-1), count, float(epsilon), float(clip), out
    )
    return True
