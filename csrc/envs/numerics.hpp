// numpy's arithmetic, as far as Gymnasium's environments use it. The operations and their order are numpy's, so that the
// results have the same bits.
#pragma once

#include <cmath>
#include <cstdint>

namespace xc::envs {

// numpy's pairwise summation of a contiguous array f(start), ..., f(start + n - 1), in the precision T.
template <class T, class F>
T pairwise_sum(const F &f, int64_t start, int64_t n) {
  if (n < 8) {
    T sum = 0;
    for (int64_t k = 0; k < n; ++k) sum += f(start + k);
    return sum;
  }
  if (n <= 128) {
    T r[8];
    for (int64_t j = 0; j < 8; ++j) r[j] = f(start + j);
    int64_t k = 8;
    for (; k < n - n % 8; k += 8)
      for (int64_t j = 0; j < 8; ++j) r[j] += f(start + k + j);
    T sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    for (; k < n; ++k) sum += f(start + k);
    return sum;
  }
  const int64_t half = n / 2 - (n / 2) % 8;
  const T left = pairwise_sum<T>(f, start, half);
  return left + pairwise_sum<T>(f, start + half, n - half);
}

// np.sum(np.square(x)) of n numbers.
template <class T>
T sum_of_squares(const T *x, int64_t n) {
  return pairwise_sum<T>([x](int64_t k) { return x[k] * x[k]; }, 0, n);
}

// np.clip: NaN stays NaN.
template <class T>
T clip(T x, T low, T high) {
  if (std::isnan(x)) return x;
  const T raised = x > low ? x : low;
  return raised < high ? raised : high;
}

inline bool all_finite(const double *x, int64_t n) {
  for (int64_t k = 0; k < n; ++k)
    if (!std::isfinite(x[k])) return false;
  return true;
}

// x**2 of a numpy scalar, which numpy computes by libm's pow. The call goes through a volatile pointer, because a compiler
// would turn pow(x, 2) into x * x, which may round differently.
inline double pow2(double x) {
  static double (*const volatile libm_pow)(double, double) = std::pow;
  return libm_pow(x, 2.0);
}
inline float pow2(float x) {
  static float (*const volatile libm_pow)(float, float) = std::pow;
  return libm_pow(x, 2.0f);
}

// x % y as numpy and Python define it: the result has the sign of y.
inline double modulo(double x, double y) {
  const double rest = std::fmod(x, y);
  if (rest == 0) return std::copysign(0.0, y);
  return (y < 0) != (rest < 0) ? rest + y : rest;
}

// One of numpy's functions, computed by numpy's own inner loop. Whether that loop calls libm or has vector code of its own
// depends on numpy's version and the CPU.
template <class T>
struct Ufunc {
  using Loop = void (*)(char **, const intptr_t *, const intptr_t *, void *);
  T (*libm)(T);  // serves if `loop` is null
  Loop loop = nullptr;
  void *data = nullptr;

  void operator()(const T *x, int64_t n, T *out) const {
    if (!loop) {
      for (int64_t k = 0; k < n; ++k) out[k] = libm(x[k]);
      return;
    }
    char *pointers[] = {const_cast<char *>(reinterpret_cast<const char *>(x)), reinterpret_cast<char *>(out)};
    const intptr_t count = n, strides[] = {sizeof(T), sizeof(T)};
    loop(pointers, &count, strides, data);
  }
  T operator()(T x) const {
    T y;
    (*this)(&x, 1, &y);
    return y;
  }
};

// How numpy and its BLAS compute on this CPU, as far as that differs between CPUs. The caller measures it or looks it up.
struct Numpy {
  Ufunc<double> sin{std::sin}, cos{std::cos};
  Ufunc<float> sinf{std::sin}, cosf{std::cos};
  bool fused_dot = false;     // whether np.linalg.norm uses fused multiply-add
  bool fused_einsum = false;  // whether np.einsum does

  // np.linalg.norm of two or three numbers.
  template <int kSize>
  double norm(const double (&v)[kSize]) const {
    double dot = v[0] * v[0];
    for (int k = 1; k < kSize; ++k) dot = multiply_add(fused_dot, v[k], v[k], dot);
    return std::sqrt(dot);
  }

  static double multiply_add(bool fused, double a, double b, double c) { return fused ? std::fma(a, b, c) : a * b + c; }
};

}  // namespace xc::envs
