"""Jitted running moments and normalization, in the order of operations of csrc/kernels/moments.hpp."""
# mypy: disallow-untyped-defs=False

import numpy as np

from xcfast.kernels.numba.jitting import jit, overlap
from xcfast.kernels.reference import LARGEST


@jit
def _merge_column(mean, var, j, count, other_mean, other_m2, other_count):
    """Merges the moments of one column; `other_m2` is the sum of squared deviations from `other_mean`."""
    total = count + other_count
    delta = other_mean - mean[j]
    mean[j] = mean[j] + delta * (other_count / total)
    var[j] = (var[j] * count + other_m2 + delta * delta * (count * other_count / total)) / total


@jit
def _clipped(x, clip):
    low = -clip if x < -clip else x
    return clip if low > clip else low


@jit
def usable(batch):
    """Returns whether all values are finite and small enough for the moments."""
    for i in range(batch.shape[0]):
        for j in range(batch.shape[1]):
            if not abs(np.float64(batch[i, j])) < LARGEST:
                return False
    return True


@jit
def update_moments(batch, mean, var, count):
    """Adds a batch of samples to running moments, like `xcfast.RunningMeanStd.update`.

    Args:
        batch: float32 or float64 [B, D], B >= 1.
        mean: float64 [D], updated; all 0 before the first sample.
        var: float64 [D], the population variance, updated; any finite numbers before the first sample.
        count: int64 [1], number of samples so far, updated.

    Returns:
        Whether the batch was added. False, with nothing changed, if a value is NaN, infinite or at least 1e140 in
        absolute value (the sum of the squares would overflow).

    Raises:
        ValueError: A shape does not fit, or an output shares memory with another argument.
    """
    rows, dim = batch.shape
    if rows < 1:
        raise ValueError("batch must be [B, D] with B >= 1")
    if mean.shape != (dim,) or var.shape != (dim,) or count.shape != (1,):
        raise ValueError("mean and var must be [D] as batch is [B, D], count must be [1]")
    if overlap(batch, mean) or overlap(batch, var) or overlap(batch, count):
        raise ValueError("batch must not share memory with mean, var or count")
    if overlap(mean, var) or overlap(mean, count) or overlap(var, count):
        raise ValueError("mean, var and count must not share memory")
    if not usable(batch):
        return False
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
        m2 = max(square[j] - total[j] * mean_d, 0.0)
        _merge_column(mean, var, j, np.float64(count[0]), np.float64(batch[0, j]) + mean_d, m2, np.float64(rows))
    count[0] += rows
    return True


@jit
def merge_moments(mean, var, count, other_mean, other_var, other_count):
    """Adds other running moments to running moments, like `xcfast.RunningMeanStd.merge`.

    Args:
        mean: float64 [D], updated.
        var: float64 [D], the population variance, updated.
        count: int64 [1], number of samples, updated.
        other_mean: float64 [D].
        other_var: float64 [D].
        other_count: int64 [1]; nothing changes if it is 0.

    Raises:
        ValueError: A shape does not fit, or an output shares memory with another argument.
    """
    dim = len(mean)
    if var.shape != (dim,) or other_mean.shape != (dim,) or other_var.shape != (dim,):
        raise ValueError("var, other_mean and other_var must have the shape of mean, [D]")
    if count.shape != (1,) or other_count.shape != (1,):
        raise ValueError("count and other_count must be [1]")
    if overlap(mean, var) or overlap(mean, count) or overlap(var, count):
        raise ValueError("mean, var and count must not share memory")
    if overlap(mean, other_mean) or overlap(mean, other_var) or overlap(mean, other_count):
        raise ValueError("mean must not share memory with other_mean, other_var or other_count")
    if overlap(var, other_mean) or overlap(var, other_var) or overlap(var, other_count):
        raise ValueError("var must not share memory with other_mean, other_var or other_count")
    if overlap(count, other_mean) or overlap(count, other_var) or overlap(count, other_count):
        raise ValueError("count must not share memory with other_mean, other_var or other_count")
    if other_count[0] == 0:
        return
    n, other_n = np.float64(count[0]), np.float64(other_count[0])
    for j in range(dim):
        _merge_column(mean, var, j, n, other_mean[j], other_var[j] * other_n, other_n)
    count[0] += other_count[0]


@jit
def normalize(x, mean, var, epsilon, epsilon_outside, clip, out):
    """Writes clip((x - mean) / deviation), computed in float64, like `xcfast.RunningMeanStd.normalize`.

    Args:
        x: float32 or float64 [B, D].
        mean: float64 [D].
        var: float64 [D], the population variance.
        epsilon: Small number that keeps the deviation away from 0.
        epsilon_outside: bool. False: the deviation is sqrt(var + epsilon); True: it is sqrt(var) + epsilon.
        clip: Bound of the absolute value; ``np.inf`` for no bound.
        out: float32 [B, D], written. NaN stays NaN.

    Raises:
        ValueError: A shape does not fit, or `out` shares memory with another argument.
    """
    dim = x.shape[1]
    if out.shape != x.shape or mean.shape != (dim,) or var.shape != (dim,):
        raise ValueError("out must have the shape of x, [B, D]; mean and var must be [D]")
    if overlap(out, x) or overlap(out, mean) or overlap(out, var):
        raise ValueError("out must not share memory with x, mean or var")
    of_variance = 0.0 if epsilon_outside else epsilon
    of_deviation = epsilon if epsilon_outside else 0.0
    scale = 1.0 / (np.sqrt(var + of_variance) + of_deviation)
    for i in range(x.shape[0]):
        for j in range(dim):
            out[i, j] = np.float32(_clipped((np.float64(x[i, j]) - mean[j]) * scale[j], clip))


@jit
def track(x, counts, means, m2s):
    """Adds each row of x [N, D] to the moments of the env of that row: counts [N], means and m2s [N, D]."""
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
def merge_tracked(counts, means, m2s, mean, var, count):
    """Adds what `track` collected to running moments, in the order of the envs."""
    for n in range(len(counts)):
        if counts[n] > 0:
            for j in range(len(mean)):
                _merge_column(mean, var, j, np.float64(count[0]), means[n, j], m2s[n, j], np.float64(counts[n]))
            count[0] += counts[n]


@jit
def merge_sums(sums, mean, var, count):
    """Adds all values of sums [T, N] to moments of one column, in the order of the envs."""
    num_steps, num_envs = sums.shape
    for n in range(num_envs):
        total = 0.0
        square = 0.0
        for t in range(num_steps):
            delta = sums[t, n] - sums[0, n]
            total += delta
            square += delta * delta
        mean_d = total / num_steps
        m2 = max(square - total * mean_d, 0.0)
        _merge_column(mean, var, 0, np.float64(count[0]), sums[0, n] + mean_d, m2, np.float64(num_steps))
        count[0] += num_steps
