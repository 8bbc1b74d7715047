// numpy's arithmetic, as far as Gymnasium's tasks use it: same operations in the same order, so that results are the same bits.
#pragma once

#include <cmath>
#include <cstdint>

namespace xc::mujoco {

// numpy's pairwise summation of contiguous f(0), ..., f(n - 1), in the type that f returns.
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

// np.sum(np.square(x)).
template <class T>
T sum_of_squares(const T *x, int64_t n) {
  return pairwise_sum<T>([x](int64_t k) { return x[k] * x[k]; }, 0, n);
}

// np.clip: NaN stays NaN.
inline double clip(double x, double low, double high) {
  if (std::isnan(x)) return x;
  const double raised = x > low ? x : low;
  return raised < high ? raised : high;
}

inline bool all_finite(const double *x, int64_t n) {
  for (int64_t k = 0; k < n; ++k)
    if (!std::isfinite(x[k])) return false;
  return true;
}

// numpy squares a scalar by libm's pow; called through a volatile pointer, because a compiler turns pow(x, 2) into x * x.
inline double pow2(double x) {
  static double (*const volatile libm_pow)(double, double) = std::pow;
  return libm_pow(x, 2.0);
}

// What depends on the CPU that numpy and its BLAS chose their code for; measured or looked up by the caller.
struct Numpy {
  using Loop = void (*)(char **, const intptr_t *, const intptr_t *, void *);
  Loop sin = nullptr, cos = nullptr;  // inner loops of np.sin and np.cos for doubles
  void *sin_data = nullptr, *cos_data = nullptr;
  bool fused_dot = false;     // np.linalg.norm uses fused multiply-add
  bool fused_einsum = false;  // so does np.einsum

  void sines(const double *x, int64_t n, double *out) const { apply(sin, sin_data, [](double v) { return std::sin(v); }, x, n, out); }
  void cosines(const double *x, int64_t n, double *out) const {
    apply(cos, cos_data, [](double v) { return std::cos(v); }, x, n, out);
  }

  // np.linalg.norm of two or three numbers.
  template <int kSize>
  double norm(const double (&v)[kSize]) const {
    double dot = v[0] * v[0];
    for (int k = 1; k < kSize; ++k) dot = multiply_add(fused_dot, v[k], v[k], dot);
    return std::sqrt(dot);
  }

  static double multiply_add(bool fused, double a, double b, double c) { return fused ? std::fma(a, b, c) : a * b + c; }

 private:
  template <class F>
  static void apply(Loop loop, void *data, F &&scalar, const double *x, int64_t n, double *out) {
    if (!loop) {
      for (int64_t k = 0; k < n; ++k) out[k] = scalar(x[k]);
      return;
    }
    char *pointers[] = {const_cast<char *>(reinterpret_cast<const char *>(x)), reinterpret_cast<char *>(out)};
    const intptr_t count = n, strides[] = {sizeof(double), sizeof(double)};
    loop(pointers, &count, strides, data);
  }
};

}  // namespace xc::mujoco
