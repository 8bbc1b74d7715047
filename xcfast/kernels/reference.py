"""A plain float64 version of each kernel, against which the tests compare every implementation."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

#: Values of at least this size do not enter running moments: the sums of their squares would overflow.
LARGEST = 1e140

DOMAIN_GAUSSIAN, DOMAIN_UNIFORM, DOMAIN_PERMUTATION = 1, 2, 3
_MASK32, _MASK64 = 2**32 - 1, 2**64 - 1


def _successor_value(
    t: int, n: int, values: F64, terminated: Bool, truncated: Bool, last: F64, final: F64 | None, nexts: F64 | None
) -> float:
    """Returns V of the observation that follows step t of env n; 0 where the episode terminated."""
    if terminated[t, n]:
        return 0.0
    if nexts is not None:
        return float(nexts[t, n])
    if truncated[t, n]:
        if final is None:
            raise ValueError(f"step {t} of env {n} is truncated, and there is no final value")
        return float(final[t, n])
    return float(last[n]) if t == len(values) - 1 else float(values[t + 1, n])


def gae(
    rewards: F64,
    values: F64,
    terminated: Bool,
    truncated: Bool,
    *,
    last_values: F64,
    final_values: F64 | None = None,
    next_values: F64 | None = None,
    gamma: float,
    gae_lambda: float,
) -> tuple[F64, F64]:
    """Returns advantages and returns of a rollout [T, N] (Schulman et al. 2016, equation 16)."""
    advantages = np.zeros(rewards.shape)
    num_steps, num_envs = rewards.shape
    for n in range(num_envs):
        tail = 0.0
        for t in reversed(range(num_steps)):
            bootstrap = _successor_value(t, n, values, terminated, truncated, last_values, final_values, next_values)
            delta = float(rewards[t, n]) + gamma * bootstrap - float(values[t, n])
            goes_on = not (terminated[t, n] or truncated[t, n])
            tail = delta + gamma * gae_lambda * tail if goes_on else delta
            advantages[t, n] = tail
    return advantages, advantages + values


def discounted_returns(
    rewards: F64,
    terminated: Bool,
    truncated: Bool,
    *,
    last_values: F64,
    final_values: F64 | None = None,
    next_values: F64 | None = None,
    gamma: float,
) -> F64:
    """Returns the discounted sum of rewards to the end of the episode or the rollout, bootstrapped there."""
    returns = np.zeros(rewards.shape)
    num_steps, num_envs = rewards.shape
    for n in range(num_envs):
        for t in range(num_steps):
            total, discount = 0.0, 1.0
            for k in range(t, num_steps):
                total += discount * float(rewards[k, n])
                discount *= gamma
                if terminated[k, n] or truncated[k, n] or k == num_steps - 1:
                    cut = _successor_value(k, n, rewards, terminated, truncated, last_values, final_values, next_values)
                    total += discount * cut
                    break
            returns[t, n] = total
    return returns


def moments(batch: F64) -> tuple[F64, F64]:
    """Returns mean and population variance over the first axis, with correctly rounded sums."""
    columns = batch.reshape(len(batch), -1).T
    mean = np.array([math.fsum(c) / len(c) for c in columns])
    var = np.array([math.fsum((c - m) ** 2) / len(c) for c, m in zip(columns, mean, strict=True)])
    return mean.reshape(batch.shape[1:]), var.reshape(batch.shape[1:])


def deviation(var: F64, epsilon: float, epsilon_outside: bool) -> F64:
    """Returns the divisor of `normalize`, sqrt(var + epsilon) or sqrt(var) + epsilon."""
    return np.asarray(np.sqrt(var) + epsilon if epsilon_outside else np.sqrt(var + epsilon))


def normalize(x: F64, mean: F64, var: F64, epsilon: float, epsilon_outside: bool, clip: float) -> F64:
    """Returns clip((x - mean) / deviation); NaN stays NaN."""
    return np.asarray(np.clip((x - mean) / deviation(var, epsilon, epsilon_outside), -clip, clip))


def discounted_reward_sums(rewards: F64, done: Bool, carry: F64, gamma: float) -> tuple[F64, F64]:
    """Returns R_t = gamma R_{t-1} (1 - done_{t-1}) + r_t [T, N], and the carry for the next rollout."""
    sums = np.zeros(rewards.shape)
    carry = carry.copy()
    for t in range(len(rewards)):
        carry = sums[t] = gamma * carry + rewards[t]
        carry = np.where(done[t], 0.0, carry)
    return sums, carry


def splitmix64(x: int) -> int:
    """Returns the output of splitmix64 in state x (Steele et al. 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def stream_key(seed: int, domain: int) -> int:
    """Returns the 64-bit Philox key of a seed (any int) and a purpose."""
    return splitmix64(splitmix64(seed & _MASK64) ^ domain)


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Returns one block of Philox4x32-10 (Salmon et al. 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK32
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return c0, c1, c2, c3


def _block(key: int, *counter: int) -> tuple[int, int, int, int]:
    return philox4x32([c & _MASK32 for c in counter], (key & _MASK32, key >> 32))


def open_uniform(high: int, low: int) -> float:
    """Returns an odd multiple of 2**-53 in (0, 1) from the upper 52 of 64 bits."""
    return ((((high << 32) | low) >> 12) + 0.5) * 2.0**-52


def portable_log(x: float) -> float:
    """Returns log(x) by + - * / alone: x = 2**k m, m near 1, log m = 2 atanh((m - 1) / (m + 1)) as its series."""
    m, k = math.frexp(x)
    m, k = m * 2, k - 1
    if m > 1.4142135623730951:
        m, k = m / 2, k + 1
    s = (m - 1) / (m + 1)
    z = s * s
    series = 1 / 23
    for odd in range(21, 1, -2):
        series = series * z + 1 / odd
    log_m = 2 * s + 2 * s * (z * series)
    return k * LN2_HIGH + (k * LN2_LOW + log_m)


LN2_HIGH, LN2_LOW = float.fromhex("0x1.62e42fefa3800p-1"), float.fromhex("0x1.ef35793c76730p-45")

# Wichura 1988, algorithm AS 241, PPND16: numerator and denominator, highest power first, for the center, the tail
# and the far tail.
_CENTRE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_TAIL = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
     3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
     0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
)  # fmt: skip
_FAR_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
     0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4,
     0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1.0),
)  # fmt: skip


def _horner(coefficients: Sequence[float], r: float) -> float:
    value = coefficients[0]
    for c in coefficients[1:]:
        value = value * r + c
    return value


def inverse_normal_cdf(u: float) -> float:
    """Returns the standard normal quantile of u in (0, 1), to about 1e-16."""
    q = u - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        return q * _horner(_CENTRE[0], r) / _horner(_CENTRE[1], r)
    r = math.sqrt(-portable_log(u if q < 0 else 1.0 - u))
    (num, den), r = (_TAIL, r - 1.6) if r <= 5.0 else (_FAR_TAIL, r - 5.0)
    value = _horner(num, r) / _horner(den, r)
    return -value if q < 0 else value


def gaussian_noise(seed: int, env_offset: int, counters: Sequence[int], width: int) -> npt.NDArray[np.float32]:
    """Returns float32 [N, width]: element a of env n is from half a % 2 of block a // 2 at that env's step count."""
    key = stream_key(seed, DOMAIN_GAUSSIAN)
    out = np.empty((len(counters), width), np.float32)
    for n, step in enumerate(int(c) for c in counters):
        for a in range(width):
            words = _block(key, env_offset + n, step, step >> 32, a // 2)
            out[n, a] = inverse_normal_cdf(open_uniform(*words[2 * (a % 2) : 2 * (a % 2) + 2]))
    return out


def colored_noise(seed: int, beta: float, env: int, block: int, block_size: int, width: int) -> F64:
    """Returns a block of noise with the spectrum 1 / f**beta, [block_size, width] (Timmer and Koenig 1995).

    Dimension a has the numbers [a * block_size, (a + 1) * block_size) of the Gaussian noise at the block's number:
    cosines from frequency 0 to the highest, then sines. Frequency 0 has the power of frequency 1.
    """
    highest = block_size // 2
    white = gaussian_noise(seed, env, [block], width * block_size).reshape(width, block_size).astype(np.float64)
    out = np.zeros((block_size, width))
    total = 0.0
    for k in range(highest + 1):
        power, angle = max(k, 1) ** -beta, 2 * np.pi * (k * np.arange(block_size) % block_size) / block_size
        wave = np.outer(np.cos(angle), white[:, k])
        if 0 < k < highest:
            wave = math.sqrt(2) * (wave - np.outer(np.sin(angle), white[:, highest + k]))
        out += math.sqrt(power) * wave
        total += power * (2 if 0 < k < highest else 1)
    return np.asarray(out / math.sqrt(total))


def uniform_noise(seed: int, env_offset: int, counters: Sequence[int]) -> F64:
    """Returns float64 [N] in (0, 1)."""
    key = stream_key(seed, DOMAIN_UNIFORM)
    steps = [int(c) for c in counters]
    return np.array([open_uniform(*_block(key, env_offset + n, c, c >> 32, 0)[:2]) for n, c in enumerate(steps)])


def minibatch_indices(
    seed: int, iteration: int, epoch: int, num_steps: int, num_envs: int, n_minibatch: int, env_offset: int = 0
) -> list[list[int]]:
    """Returns each minibatch's flat indices; each env's permuted steps are dealt on from where the last env's ended."""
    key = stream_key(seed, DOMAIN_PERMUTATION)
    minibatches: list[list[int]] = [[] for _ in range(n_minibatch)]
    for n in range(num_envs):
        env = env_offset + n
        steps = list(range(num_steps))
        for draw, i in enumerate(range(num_steps - 1, 0, -1)):
            word = _block(key, env, iteration, epoch, draw // 4)[draw % 4]
            j = word * (i + 1) >> 32
            steps[i], steps[j] = steps[j], steps[i]
        for k, t in enumerate(steps):
            minibatches[(env * num_steps + k) % n_minibatch].append(t * num_envs + n)
    return minibatches
