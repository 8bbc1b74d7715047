"""Jitted random streams and rollout storage, with the bits of csrc/kernels/random.hpp and rollout.hpp."""
# mypy: disallow-untyped-defs=False

import math

import numpy as np

from xcfast.kernels.numba.jitting import jit
from xcfast.kernels.reference import LN2_HIGH, LN2_LOW

_U32 = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@jit
def _philox(c0, c1, c2, c3, key):
    k0 = key & _U32
    k1 = key >> _SHIFT
    for _ in range(10):
        p0 = _M0 * c0
        p1 = _M1 * c2
        c0 = (p1 >> _SHIFT) ^ c1 ^ k0
        c2 = (p0 >> _SHIFT) ^ c3 ^ k1
        c1 = p1 & _U32
        c3 = p0 & _U32
        k0 = (k0 + _W0) & _U32
        k1 = (k1 + _W1) & _U32
    return c0, c1, c2, c3


@jit
def _open_uniform(high, low):
    bits = ((high << _SHIFT) | low) >> np.uint64(12)
    return (np.float64(bits) + 0.5) * 2.0**-52


@jit
def _log(x):
    m, k = math.frexp(x)
    m *= 2.0
    k -= 1
    if m > 1.4142135623730951:
        m *= 0.5
        k += 1
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = 1.0 / 23.0
    series = series * z + 1.0 / 21.0
    series = series * z + 1.0 / 19.0
    series = series * z + 1.0 / 17.0
    series = series * z + 1.0 / 15.0
    series = series * z + 1.0 / 13.0
    series = series * z + 1.0 / 11.0
    series = series * z + 1.0 / 9.0
    series = series * z + 1.0 / 7.0
    series = series * z + 1.0 / 5.0
    series = series * z + 1.0 / 3.0
    log_m = 2.0 * s + 2.0 * s * (z * series)
    return k * LN2_HIGH + (k * LN2_LOW + log_m)


@jit
def _inverse_normal_cdf(u):
    q = u - 0.5
    if -0.425 <= q <= 0.425:
        r = 0.180625 - q * q
        num = 2509.0809287301226727 * r + 33430.575583588128105
        num = num * r + 67265.770927008700853
        num = num * r + 45921.953931549871457
        num = num * r + 13731.693765509461125
        num = num * r + 1971.5909503065514427
        num = num * r + 133.14166789178437745
        num = num * r + 3.387132872796366608
        den = 5226.495278852545925 * r + 28729.085735721942674
        den = den * r + 39307.89580009271061
        den = den * r + 21213.794301586595867
        den = den * r + 5394.1960214247511077
        den = den * r + 687.1870074920579083
        den = den * r + 42.313330701600911252
        den = den * r + 1.0
        return q * num / den
    r = math.sqrt(-_log(u if q < 0 else 1.0 - u))
    if r <= 5.0:
        r -= 1.6
        num = 7.7454501427834140764e-4 * r + 0.0227238449892691845833
        num = num * r + 0.24178072517745061177
        num = num * r + 1.27045825245236838258
        num = num * r + 3.64784832476320460504
        num = num * r + 5.7694972214606914055
        num = num * r + 4.6303378461565452959
        num = num * r + 1.42343711074968357734
        den = 1.05075007164441684324e-9 * r + 5.475938084995344946e-4
        den = den * r + 0.0151986665636164571966
        den = den * r + 0.14810397642748007459
        den = den * r + 0.68976733498510000455
        den = den * r + 1.6763848301838038494
        den = den * r + 2.05319162663775882187
        den = den * r + 1.0
    else:
        r -= 5.0
        num = 2.01033439929228813265e-7 * r + 2.71155556874348757815e-5
        num = num * r + 0.0012426609473880784386
        num = num * r + 0.026532189526576123093
        num = num * r + 0.29656057182850489123
        num = num * r + 1.7848265399172913358
        num = num * r + 5.4637849111641143699
        num = num * r + 6.6579046435011037772
        den = 2.04426310338993978564e-15 * r + 1.4215117583164458887e-7
        den = den * r + 1.8463183175100546818e-5
        den = den * r + 7.868691311456132591e-4
        den = den * r + 0.0148753612908506148525
        den = den * r + 0.13692988092273580531
        den = den * r + 0.59983220655588793769
        den = den * r + 1.0
    value = num / den
    return -value if q < 0 else value


@jit
def gaussian(key, env_offset, counters, out):
    """Fills out [N, A] with standard normal numbers of each env's step count, counters [N]."""
    for n in range(out.shape[0]):
        env = np.uint64(env_offset + n) & _U32
        step = np.uint64(counters[n])
        for a in range(0, out.shape[1], 2):
            r0, r1, r2, r3 = _philox(env, step & _U32, step >> _SHIFT, np.uint64(a // 2), key)
            out[n, a] = np.float32(_inverse_normal_cdf(_open_uniform(r0, r1)))
            if a + 1 < out.shape[1]:
                out[n, a + 1] = np.float32(_inverse_normal_cdf(_open_uniform(r2, r3)))


@jit
def uniform(key, env_offset, counters, out):
    """Fills out [N] with uniform numbers in (0, 1)."""
    for n in range(out.shape[0]):
        step = np.uint64(counters[n])
        r0, r1, _, _ = _philox(np.uint64(env_offset + n) & _U32, step & _U32, step >> _SHIFT, np.uint64(0), key)
        out[n] = _open_uniform(r0, r1)


@jit
def minibatches(key, iteration, epoch, num_steps, num_envs, n_minibatch, env_offset, indices, offsets, steps):
    """Writes the flat indices of one epoch's minibatches, and their offsets; `steps` [T] is scratch memory."""
    total = num_steps * num_envs
    first = (env_offset * num_steps) % n_minibatch
    offsets[0] = 0
    for m in range(n_minibatch):
        places = total - (m - first) % n_minibatch
        offsets[m + 1] = offsets[m] + (max(places, 0) + n_minibatch - 1) // n_minibatch
    place = 0
    for n in range(num_envs):
        env = np.uint64(env_offset + n) & _U32
        for i in range(num_steps):
            steps[i] = i
        draw = 0
        r0 = r1 = r2 = r3 = np.uint64(0)
        for i in range(num_steps - 1, 0, -1):
            if draw % 4 == 0:
                r0, r1, r2, r3 = _philox(env, iteration, epoch, np.uint64(draw // 4), key)
            j = np.int64((r0 * np.uint64(i + 1)) >> _SHIFT)
            r0, r1, r2 = r1, r2, r3
            steps[i], steps[j] = steps[j], steps[i]
            draw += 1
        for k in range(num_steps):
            m = (first + place) % n_minibatch
            indices[offsets[m] + place // n_minibatch] = steps[k] * num_envs + n
            place += 1


@jit
def store(rewards, terminated, truncated, returns, lengths, row, ended, ended_returns, ended_lengths):
    """Stores the rewards of one vector step and counts them into the running episodes.

    Returns:
        The number of episodes that ended. Their envs, returns and lengths are written to the `ended` arrays.
    """
    count = 0
    for n in range(len(rewards)):
        row[n] = np.float32(rewards[n])
        returns[n] += np.float64(rewards[n])
        lengths[n] += 1
        if terminated[n] or truncated[n]:
            ended[count] = n
            ended_returns[count] = returns[n]
            ended_lengths[count] = lengths[n]
            returns[n] = 0.0
            lengths[n] = 0
            count += 1
    return count
