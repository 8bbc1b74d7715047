// Running moments and normalization. xcfast/normalize.py documents the rules. The state is float64, and var is the population
// variance.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/simd.hpp"

namespace xc {

// The running moments of `dim` columns, which have one count.
struct Moments {
  double *mean, *var;
  int64_t *count;
};

// The number that keeps a divisor away from zero. It is added either to the variance or to its square root; the other one of
// these fields is 0.
struct Epsilon {
  Epsilon(double epsilon, bool outside = false) : of_variance(outside ? 0 : epsilon), of_deviation(outside ? epsilon : 0) {}
  double of_variance, of_deviation;
};

// The moments refuse values of this size and larger ones, because the sums of their squares would overflow.
constexpr double kLargest = 1e140;

namespace detail {

XC_INLINE double inverse_deviation(double var, const Epsilon &epsilon) {
  return 1.0 / (std::sqrt(var + epsilon.of_variance) + epsilon.of_deviation);
}

template <class T>
XC_INLINE bool usable_body(const T *XC_RESTRICT x, int64_t size) {
  int bad = 0;
  for (int64_t i = 0; i < size; ++i) bad |= !(std::fabs(double(x[i])) < kLargest);  // also true for NaN
  return bad == 0;
}

// Columns are handled in blocks, so that the sums of a block are on the stack and in the L1 cache. The blocks are wide:
// reading whole rows in order was measured to be almost twice as fast as blocks so narrow that the second pass finds its
// rows in L2.
constexpr int64_t kBlock = 512;

// Merges (mean_b, m2_b) of count_b samples into (mean, var) of count samples (Chan, Golub, LeVeque 1979).
XC_INLINE void chan_merge(double &mean, double &var, double count, double mean_b, double m2_b, double count_b) {
  const double total = count + count_b, delta = mean_b - mean;
  mean = mean + delta * (count_b / total);
  var = (var * count + m2_b + delta * delta * (count * count_b / total)) / total;
}

XC_INLINE double clipped(double x, double clip) {
  const double low = x < -clip ? -clip : x;  // NaN stays NaN
  return low > clip ? clip : low;
}

// Returns whether all values of a block are certainly usable, given its first row and its sums of squared differences from
// that row. If one were not, then either the first value of its column would be at least kLargest / 4, or the difference at
// least 3/4 kLargest. A NaN or an infinity makes a sum NaN or infinite.
XC_INLINE bool certainly_usable(const double *XC_RESTRICT first, const double *XC_RESTRICT square, int64_t width) {
  constexpr double kSafe = kLargest / 4;
  int doubtful = 0;
  for (int64_t j = 0; j < width; ++j) doubtful |= !(std::fabs(first[j]) < kSafe) | !(square[j] < kSafe * kSafe);
  return doubtful == 0;
}

// Sums the differences from the first row x0. Since x0 is in the batch, (mean - x0)^2 <= B var, which bounds the cancellation.
// Returns false, and changes nothing, if a value is not usable. `checked` says that all are.
template <class T>
XC_INLINE bool merge_block(const T *batch, int64_t rows, int64_t dim, int64_t width, bool checked, double *XC_RESTRICT mean,
                           double *XC_RESTRICT var, int64_t count) {
  double shift[kBlock], sum[kBlock], square[kBlock];
  for (int64_t j = 0; j < width; ++j) {
    shift[j] = double(batch[j]);
    sum[j] = square[j] = 0;
  }
  int64_t i = 1;
  for (; i + 4 <= rows; i += 4) {
    const T *XC_RESTRICT x0 = batch + i * dim, *XC_RESTRICT x1 = x0 + dim, *XC_RESTRICT x2 = x1 + dim, *XC_RESTRICT x3 = x2 + dim;
    for (int64_t j = 0; j < width; ++j) {
      const double d0 = double(x0[j]) - shift[j], d1 = double(x1[j]) - shift[j];
      const double d2 = double(x2[j]) - shift[j], d3 = double(x3[j]) - shift[j];
      sum[j] += (d0 + d1) + (d2 + d3);
      square[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
    }
  }
  for (; i < rows; ++i) {
    const T *XC_RESTRICT x = batch + i * dim;
    for (int64_t j = 0; j < width; ++j) {
      const double d = double(x[j]) - shift[j];
      sum[j] += d;
      square[j] += d * d;
    }
  }
  if (!checked && !certainly_usable(shift, square, width) && !usable_body(batch, rows * dim)) return false;
  const double n = double(count), b = double(rows);
  for (int64_t j = 0; j < width; ++j) {
    const double mean_d = sum[j] / b;
    double m2 = square[j] - sum[j] * mean_d;
    m2 = m2 < 0 ? 0 : m2;
    double m = mean[j], v = var[j];
    chan_merge(m, v, n, shift[j] + mean_d, m2, b);
    mean[j] = m;
    var[j] = v;
  }
  return true;
}

template <class T>
XC_INLINE void normalize_block(const T *batch, int64_t rows, int64_t dim, int64_t width, const double *XC_RESTRICT mean,
                               const double *XC_RESTRICT var, const Epsilon &epsilon, double clip, float *out) {
  double scale[kBlock];
  for (int64_t j = 0; j < width; ++j) scale[j] = inverse_deviation(var[j], epsilon);
  for (int64_t i = 0; i < rows; ++i) {
    const T *XC_RESTRICT x = batch + i * dim;
    float *XC_RESTRICT y = out + i * dim;
    for (int64_t j = 0; j < width; ++j) y[j] = float(clipped((double(x[j]) - mean[j]) * scale[j], clip));
  }
}

// Returns false, and changes nothing, if a value may not enter the moments. If all columns are in one block, its sums show
// that, which saves a pass over the batch.
template <class T, bool kUpdate, bool kNormalize>
XC_INLINE bool moments_body(const T *batch, int64_t rows, int64_t dim, const Moments &m, const Epsilon &epsilon, double clip, float *out) {
  const bool checked = dim > kBlock;
  if (kUpdate && checked && !usable_body(batch, rows * dim)) return false;
  for (int64_t c = 0; c < dim; c += kBlock) {
    const int64_t width = dim - c < kBlock ? dim - c : kBlock;
    if (kUpdate && !merge_block(batch + c, rows, dim, width, checked, m.mean + c, m.var + c, *m.count)) return false;
    if (kNormalize) normalize_block(batch + c, rows, dim, width, m.mean + c, m.var + c, epsilon, clip, out + c);
  }
  if (kUpdate) *m.count += rows;
  return true;
}

// Welford's recursion for each env by itself: there is no cancellation, and the result does not depend on how envs are
// grouped.
template <class T>
XC_INLINE void track_body(const T *obs, int64_t num_envs, int64_t dim, const double *XC_RESTRICT mean, const double *XC_RESTRICT var,
                          const Epsilon &epsilon, double clip, int64_t *counts, double *means, double *m2s, float *out) {
  for (int64_t c = 0; c < dim; c += kBlock) {
    const int64_t width = dim - c < kBlock ? dim - c : kBlock;
    double scale[kBlock];
    for (int64_t j = 0; j < width; ++j) scale[j] = inverse_deviation(var[c + j], epsilon);
    for (int64_t n = 0; n < num_envs; ++n) {
      const double weight = 1.0 / double(counts[n] + 1);
      const T *XC_RESTRICT x = obs + n * dim + c;
      double *XC_RESTRICT m = means + n * dim + c, *XC_RESTRICT s = m2s + n * dim + c;
      float *XC_RESTRICT y = out + n * dim + c;
      for (int64_t j = 0; j < width; ++j) {
        const double value = double(x[j]), delta = value - m[j];
        const double updated = m[j] + delta * weight;
        s[j] += delta * (value - updated);
        m[j] = updated;
        y[j] = float(clipped((value - mean[c + j]) * scale[j], clip));
      }
    }
  }
  for (int64_t n = 0; n < num_envs; ++n) ++counts[n];
}

template <class T>
XC_INLINE void cast_body(const T *XC_RESTRICT x, int64_t size, double *XC_RESTRICT poison, float *XC_RESTRICT out) {
  for (int64_t i = 0; i < size; ++i) {
    poison[i] += double(x[i]) * 0.0;  // 0 as long as all values are finite, and NaN from then on
    out[i] = float(x[i]);
  }
}

template <class T>
XC_INLINE void reward_sums(const T *rewards, const uint8_t *done, int64_t num_steps, int64_t num_envs, double gamma, double *carry,
                           double *shift, double *sum, double *square) {
  for (int64_t n = 0; n < num_envs; ++n) {
    shift[n] = gamma * carry[n] + double(rewards[n]);
    sum[n] = square[n] = 0;
  }
  for (int64_t t = 0; t < num_steps; ++t) {
    const T *XC_RESTRICT r = rewards + t * num_envs;
    const uint8_t *XC_RESTRICT d = done + t * num_envs;
    double *XC_RESTRICT c = carry, *XC_RESTRICT s = sum, *XC_RESTRICT q = square;
    for (int64_t n = 0; n < num_envs; ++n) {
      const double ret = gamma * c[n] + double(r[n]), delta = ret - shift[n];
      s[n] += delta;
      q[n] += delta * delta;
      c[n] = d[n] ? 0.0 : ret;
    }
  }
}

template <class T>
XC_INLINE void scale_body(const T *XC_RESTRICT x, int64_t size, double scale, double clip, float *XC_RESTRICT out) {
  for (int64_t i = 0; i < size; ++i) out[i] = float(clipped(double(x[i]) * scale, clip));
}

}  // namespace detail

// Merges a batch [rows >= 1, dim] into the moments. Returns false, and changes nothing, if a value is not finite, or kLargest or
// more in absolute value.
template <class T>
bool moments_update_unchecked(const T *batch, int64_t rows, int64_t dim, const Moments &m) {
  bool usable = false;
  XC_DISPATCH(usable = detail::moments_body<T, true, false>(batch, rows, dim, m, {0, false}, 0, nullptr));
  return usable;
}

// out = clip((x - mean) / deviation) in float64, then float32. clip may be infinite.
template <class T>
void normalize_unchecked(const T *x, int64_t rows, int64_t dim, const Moments &m, const Epsilon &epsilon, double clip, float *out) {
  XC_DISPATCH(detail::moments_body<T, false, true>(x, rows, dim, m, epsilon, clip, out));
}

// Merges the batch into the moments, as moments_update_unchecked, then normalizes it with them.
template <class T>
bool update_and_normalize_unchecked(const T *x, int64_t rows, int64_t dim, const Moments &m, const Epsilon &epsilon, double clip, float *out) {
  bool usable = false;
  XC_DISPATCH(usable = detail::moments_body<T, true, true>(x, rows, dim, m, epsilon, clip, out));
  return usable;
}

// Normalizes one vector step with frozen statistics, and adds it to the moments of each env (counts [N], means [N, dim], m2s
// [N, dim]).
template <class T>
void normalize_and_track_unchecked(const T *obs, int64_t num_envs, int64_t dim, const Moments &m, const Epsilon &epsilon, double clip,
                                   int64_t *counts, double *means, double *m2s, float *out) {
  XC_DISPATCH(detail::track_body(obs, num_envs, dim, m.mean, m.var, epsilon, clip, counts, means, m2s, out));
}

// Writes out = float32(x). poison becomes NaN where x is not finite.
template <class T>
void cast_and_track_unchecked(const T *x, int64_t size, double *poison, float *out) {
  XC_DISPATCH(detail::cast_body(x, size, poison, out));
}

// Merges the moments of each env into the common ones, in the order of the envs.
inline void merge_tracked_unchecked(const int64_t *counts, const double *means, const double *m2s, int64_t num_envs, int64_t dim,
                                    const Moments &m) {
  for (int64_t n = 0; n < num_envs; ++n) {
    if (counts[n] == 0) continue;
    for (int64_t j = 0; j < dim; ++j)
      detail::chan_merge(m.mean[j], m.var[j], double(*m.count), means[n * dim + j], m2s[n * dim + j], double(counts[n]));
    *m.count += counts[n];
  }
}

// Scales the rewards of a rollout: continues the discounted returns, merges their T * N values in the order of the envs, then
// divides the rewards. carry [N] is the return of each env so far (0 after the end of an episode); scratch holds 3 * N
// doubles.
template <class T>
void normalize_rewards_unchecked(const T *rewards, const uint8_t *done, int64_t num_steps, int64_t num_envs, double gamma,
                                 double *carry, double *scratch, const Moments &m, const Epsilon &epsilon, double clip, float *out) {
  double *shift = scratch, *sum = scratch + num_envs, *square = scratch + 2 * num_envs;
  XC_DISPATCH(detail::reward_sums(rewards, done, num_steps, num_envs, gamma, carry, shift, sum, square));
  const double steps = double(num_steps);
  for (int64_t n = 0; n < num_envs; ++n) {
    const double mean_d = sum[n] / steps, m2 = square[n] - sum[n] * mean_d;
    detail::chan_merge(*m.mean, *m.var, double(*m.count), shift[n] + mean_d, m2 < 0 ? 0 : m2, steps);
    *m.count += num_steps;
  }
  const double scale = detail::inverse_deviation(*m.var, epsilon);
  XC_DISPATCH(detail::scale_body(rewards, num_steps * num_envs, scale, clip, out));
}

}  // namespace xc
