// Generalized advantage estimation and bootstrapped returns. xcfast/gae.py documents the rules.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/simd.hpp"

namespace xc {

// All arrays are [num_steps, num_envs] and C-contiguous; flags are one byte each. Either last_values [num_envs] or
// next_values is set. truncated and final_values may be null, but a step that is truncated and not terminated needs
// final_values or next_values.
template <class T>
struct GaeArgs {
  const T *rewards, *values;
  const uint8_t *terminated, *truncated;
  const T *last_values, *final_values, *next_values;
  double gamma, gae_lambda;
  T *advantages, *returns;
  int64_t num_steps, num_envs;
};

namespace detail {

template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = uint32_t;
};
template <>
struct BitsOf<double> {
  using type = uint64_t;
};

// flag ? x : y, for a flag of 0 or 1, by masking bits. Compilers make a branch of `?:` on floating point numbers, and then do
// not vectorize the row.
template <class T>
XC_INLINE T select(uint8_t flag, T x, T y) {
  using Bits = typename BitsOf<T>::type;
  Bits x_bits, y_bits;
  std::memcpy(&x_bits, &x, sizeof x);
  std::memcpy(&y_bits, &y, sizeof y);
  const Bits mask = Bits(0) - Bits(flag), bits = (x_bits & mask) | (y_bits & ~mask);
  T result;
  std::memcpy(&result, &bits, sizeof bits);
  return result;
}

// Computes one row, for all envs. Masked entries are selected, never multiplied, so that a NaN in them does not spread.
template <class T, bool kTruncated, bool kFinal, bool kLast>
XC_INLINE void gae_row(int64_t num_envs, T gamma, T decay, const T *XC_RESTRICT rewards, const T *XC_RESTRICT values,
                       const T *XC_RESTRICT successors, const T *XC_RESTRICT final_values, const uint8_t *XC_RESTRICT terminated,
                       const uint8_t *XC_RESTRICT truncated, const T *XC_RESTRICT next_advantages, T *XC_RESTRICT advantages,
                       T *XC_RESTRICT returns) {
  for (int64_t n = 0; n < num_envs; ++n) {
    T bootstrap = successors[n];
    if (kFinal) {
      bootstrap = select(truncated[n], final_values[n], bootstrap);
    }
    bootstrap = select(terminated[n], T(0), bootstrap);
    const T value = values[n];
    T advantage = rewards[n] + gamma * bootstrap - value;
    if (!kLast) {
      const uint8_t done = kTruncated ? uint8_t(terminated[n] | truncated[n]) : terminated[n];
      advantage += select(done, T(0), decay * next_advantages[n]);
    }
    advantages[n] = advantage;
    returns[n] = advantage + value;
  }
}

template <class T, bool kTruncated, bool kFinal>
XC_INLINE void gae_body(const GaeArgs<T> &a) {
  const T gamma = T(a.gamma), decay = T(a.gamma * a.gae_lambda);
  const int64_t n = a.num_envs;
  for (int64_t t = a.num_steps - 1; t >= 0; --t) {
    const int64_t row = t * n;
    const bool last = t == a.num_steps - 1;
    const T *successors = a.next_values ? a.next_values + row : last ? a.last_values : a.values + row + n;
    const T *final_values = kFinal ? a.final_values + row : nullptr;
    const uint8_t *truncated = kTruncated ? a.truncated + row : nullptr;
    if (last)
      gae_row<T, kTruncated, kFinal, true>(n, gamma, decay, a.rewards + row, a.values + row, successors, final_values,
                                           a.terminated + row, truncated, nullptr, a.advantages + row, a.returns + row);
    else
      gae_row<T, kTruncated, kFinal, false>(n, gamma, decay, a.rewards + row, a.values + row, successors, final_values,
                                            a.terminated + row, truncated, a.advantages + row + n, a.advantages + row,
                                            a.returns + row);
  }
}

template <class T, bool kTruncated>
XC_INLINE void returns_row(int64_t num_envs, T gamma, const T *XC_RESTRICT rewards, const T *XC_RESTRICT bootstraps,
                           const uint8_t *XC_RESTRICT terminated, const uint8_t *XC_RESTRICT truncated, const T *XC_RESTRICT next_returns,
                           T *XC_RESTRICT returns) {
  for (int64_t n = 0; n < num_envs; ++n) {
    T successor = next_returns[n];
    if (kTruncated) successor = select(truncated[n], bootstraps[n], successor);
    returns[n] = rewards[n] + gamma * select(terminated[n], T(0), successor);
  }
}

template <class T, bool kTruncated>
XC_INLINE void returns_body(const GaeArgs<T> &a) {
  const T gamma = T(a.gamma);
  const int64_t n = a.num_envs;
  const T *cut_values = a.next_values ? a.next_values : a.final_values;
  for (int64_t t = a.num_steps - 1; t >= 0; --t) {
    const int64_t row = t * n;
    const bool last = t == a.num_steps - 1;
    const T *successors = !last ? a.returns + row + n : a.next_values ? a.next_values + row : a.last_values;
    returns_row<T, kTruncated>(n, gamma, a.rewards + row, kTruncated ? cut_values + row : nullptr, a.terminated + row,
                                      kTruncated ? a.truncated + row : nullptr, successors, a.returns + row);
  }
}

}  // namespace detail

// Writes advantages, and returns = advantages + values. Outputs must not overlap inputs.
template <class T>
void gae_unchecked(const GaeArgs<T> &a) {
  if (a.final_values && a.truncated)
    XC_DISPATCH(detail::gae_body<T, true, true>(a));
  else if (a.truncated)
    XC_DISPATCH(detail::gae_body<T, true, false>(a));
  else
    XC_DISPATCH(detail::gae_body<T, false, false>(a));
}

// Writes returns only: the discounted sums of rewards, bootstrapped where an episode or the rollout is cut (lambda = 1).
template <class T>
void returns_unchecked(const GaeArgs<T> &a) {
  if (a.truncated && (a.final_values || a.next_values))
    XC_DISPATCH(detail::returns_body<T, true>(a));
  else
    XC_DISPATCH(detail::returns_body<T, false>(a));
}

// Returns whether any step is truncated and not terminated, and so needs a bootstrap value of its own.
inline bool any_cut_unchecked(const uint8_t *terminated, const uint8_t *truncated, int64_t size) {
  unsigned found = 0;
  for (int64_t i = 0; i < size; ++i) found |= truncated[i] & (terminated[i] ^ 1u);
  return found != 0;
}

}  // namespace xc
