// Counter-based random numbers. xcfast/kernels/reference.py documents the streams. The code uses only integer operations,
// + - * / and sqrt, so that every platform and every implementation gives the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace xc {

enum class Domain : uint64_t { gaussian = 1, uniform = 2, permutation = 3 };

inline uint64_t splitmix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

inline uint64_t stream_key(uint64_t seed, Domain domain) { return splitmix64(splitmix64(seed) ^ uint64_t(domain)); }

// Philox4x32-10 (Salmon et al. 2011), in place on the counter.
inline void philox4x32(uint32_t c[4], uint64_t key) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c[0], p1 = uint64_t(0xCD9E8D57u) * c[2];
    const uint32_t a = uint32_t(p1 >> 32) ^ c[1] ^ k0, b = uint32_t(p0 >> 32) ^ c[3] ^ k1;
    c[0] = a;
    c[1] = uint32_t(p1);
    c[2] = b;
    c[3] = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// Returns an odd multiple of 2^-53 in (0, 1); the distribution is symmetric about 1/2.
inline double open_uniform(uint32_t high, uint32_t low) {
  const uint64_t bits = (uint64_t(high) << 32 | low) >> 12;
  return (double(bits) + 0.5) * 0x1p-52;
}

// Natural logarithm of a positive normal number: x = 2^k m with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m - 1) / (m + 1)).
inline double portable_log(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, 8);
  int64_t k = int64_t(bits >> 52) - 1023;
  bits = (bits & 0x000FFFFFFFFFFFFFu) | 0x3FF0000000000000u;
  double m;
  std::memcpy(&m, &bits, 8);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++k;
  }
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double series = 1.0 / 23.0;  // s^2 <= 0.0295: the first term left out is below 2^-60
  series = series * z + 1.0 / 21.0;
  series = series * z + 1.0 / 19.0;
  series = series * z + 1.0 / 17.0;
  series = series * z + 1.0 / 15.0;
  series = series * z + 1.0 / 13.0;
  series = series * z + 1.0 / 11.0;
  series = series * z + 1.0 / 9.0;
  series = series * z + 1.0 / 7.0;
  series = series * z + 1.0 / 5.0;
  series = series * z + 1.0 / 3.0;
  const double log_m = 2.0 * s + 2.0 * s * (z * series);
  return double(k) * 0x1.62e42fefa3800p-1 + (double(k) * 0x1.ef35793c76730p-45 + log_m);  // ln 2 in two parts
}

// Inverse of the normal distribution function, relative accuracy about 1e-16 (Wichura 1988, algorithm AS 241, PPND16).
inline double inverse_normal_cdf(double u) {
  const double q = u - 0.5;
  if (q >= -0.425 && q <= 0.425) {
    const double r = 0.180625 - q * q;
    const double num = (((((((2509.0809287301226727 * r + 33430.575583588128105) * r + 67265.770927008700853) * r +
                            45921.953931549871457) * r + 13731.693765509461125) * r + 1971.5909503065514427) * r +
                         133.14166789178437745) * r + 3.387132872796366608);
    const double den = (((((((5226.495278852545925 * r + 28729.085735721942674) * r + 39307.89580009271061) * r +
                            21213.794301586595867) * r + 5394.1960214247511077) * r + 687.1870074920579083) * r +
                         42.313330701600911252) * r + 1.0);
    return q * num / den;
  }
  double r = std::sqrt(-portable_log(q < 0 ? u : 1.0 - u));
  double value;
  if (r <= 5.0) {
    r -= 1.6;
    const double num = (((((((7.7454501427834140764e-4 * r + 0.0227238449892691845833) * r + 0.24178072517745061177) * r +
                            1.27045825245236838258) * r + 3.64784832476320460504) * r + 5.7694972214606914055) * r +
                         4.6303378461565452959) * r + 1.42343711074968357734);
    const double den = (((((((1.05075007164441684324e-9 * r + 5.475938084995344946e-4) * r + 0.0151986665636164571966) * r +
                            0.14810397642748007459) * r + 0.68976733498510000455) * r + 1.6763848301838038494) * r +
                         2.05319162663775882187) * r + 1.0);
    value = num / den;
  } else {
    r -= 5.0;
    const double num = (((((((2.01033439929228813265e-7 * r + 2.71155556874348757815e-5) * r + 0.0012426609473880784386) * r +
                            0.026532189526576123093) * r + 0.29656057182850489123) * r + 1.7848265399172913358) * r +
                         5.4637849111641143699) * r + 6.6579046435011037772);
    const double den = (((((((2.04426310338993978564e-15 * r + 1.4215117583164458887e-7) * r + 1.8463183175100546818e-5) * r +
                            7.868691311456132591e-4) * r + 0.0148753612908506148525) * r + 0.13692988092273580531) * r +
                         0.59983220655588793769) * r + 1.0);
    value = num / den;
  }
  return q < 0 ? -value : value;
}

// Writes standard normal noise to out [N, width]. Numbers a and a + 1 of env n come from block a / 2 of the counter
// (env_offset + n, counters[n]).
inline void gaussian_noise_unchecked(uint64_t seed, int64_t env_offset, const int64_t *counters, int64_t num_envs, int64_t width,
                                     float *out) {
  const uint64_t key = stream_key(seed, Domain::gaussian);
  for (int64_t n = 0; n < num_envs; ++n) {
    const uint64_t step = uint64_t(counters[n]);
    for (int64_t a = 0; a < width; a += 2) {
      uint32_t c[4] = {uint32_t(env_offset + n), uint32_t(step), uint32_t(step >> 32), uint32_t(a / 2)};
      philox4x32(c, key);
      float *y = out + n * width + a;
      y[0] = float(inverse_normal_cdf(open_uniform(c[0], c[1])));
      if (a + 1 < width) y[1] = float(inverse_normal_cdf(open_uniform(c[2], c[3])));
    }
  }
}

// Writes uniform noise in (0, 1) to out [N].
inline void uniform_noise_unchecked(uint64_t seed, int64_t env_offset, const int64_t *counters, int64_t num_envs, double *out) {
  const uint64_t key = stream_key(seed, Domain::uniform);
  for (int64_t n = 0; n < num_envs; ++n) {
    const uint64_t step = uint64_t(counters[n]);
    uint32_t c[4] = {uint32_t(env_offset + n), uint32_t(step), uint32_t(step >> 32), 0};
    philox4x32(c, key);
    out[n] = open_uniform(c[0], c[1]);
  }
}

// Stratified minibatches. The permuted steps of env e take the places e T, e T + 1, ... of one global sequence, and place p
// belongs to minibatch p mod n_minibatch. indices [T * N] are flat indices t * N + n; minibatch m is
// indices[offsets[m] : offsets[m + 1]]. steps [T] is scratch memory.
inline void minibatch_indices_unchecked(uint64_t seed, uint32_t iteration, uint32_t epoch, int64_t num_steps, int64_t num_envs,
                                        int64_t n_minibatch, int64_t env_offset, int64_t *indices, int64_t *offsets, int64_t *steps) {
  const uint64_t key = stream_key(seed, Domain::permutation);
  const int64_t total = num_steps * num_envs, first = (env_offset * num_steps) % n_minibatch;
  // Minibatch m has the local places lead(m), lead(m) + n_minibatch, ...
  auto lead = [&](int64_t m) { return m >= first ? m - first : m - first + n_minibatch; };
  offsets[0] = 0;
  for (int64_t m = 0; m < n_minibatch; ++m) {
    const int64_t places = total - lead(m);
    offsets[m + 1] = offsets[m] + (places > 0 ? (places + n_minibatch - 1) / n_minibatch : 0);
  }
  int64_t minibatch = first, round = 0;  // local place p = round * n_minibatch + lead(minibatch)
  for (int64_t n = 0; n < num_envs; ++n) {
    for (int64_t i = 0; i < num_steps; ++i) steps[i] = i;
    uint32_t c[4] = {0, 0, 0, 0};
    for (int64_t i = num_steps - 1, draw = 0; i > 0; --i, ++draw) {  // Fisher-Yates; the bias is below T / 2^32
      if (draw % 4 == 0) {
        c[0] = uint32_t(env_offset + n);
        c[1] = iteration;
        c[2] = epoch;
        c[3] = uint32_t(draw / 4);
        philox4x32(c, key);
      }
      const int64_t j = int64_t(uint64_t(c[draw % 4]) * uint64_t(i + 1) >> 32);
      const int64_t swapped = steps[i];
      steps[i] = steps[j];
      steps[j] = swapped;
    }
    for (int64_t k = 0; k < num_steps; ++k) {
      indices[offsets[minibatch] + round] = steps[k] * num_envs + n;
      if (++minibatch == n_minibatch) minibatch = 0;
      if (minibatch == first) ++round;
    }
  }
}

}  // namespace xc
