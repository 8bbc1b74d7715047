// The instruction sets of the learner's kernels, and the choice among them at run time. Unlike the kernels of
// kernels/simd.hpp, these use fused multiply-add where the CPU has it. Their bits therefore depend on the instruction set,
// but neither on the number of threads nor on how rows are grouped.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/simd.hpp"
#include "nn/types.hpp"

#if XC_X86
#include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace xc::nn {

// Vectors of 128 bits: the compiler translates them to SSE2, NEON or scalar code.
namespace baseline {
constexpr int kLanes = 4;
typedef float Vec __attribute__((vector_size(16)));
typedef int32_t IntVec __attribute__((vector_size(16)));
#if XC_X86
constexpr const char *kName = "baseline";
constexpr int kRows = 3, kPanels = 1;
XC_INLINE Vec set1(float x) { return Vec(_mm_set1_ps(x)); }
XC_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
XC_INLINE Vec sqrt(Vec x) { return Vec(_mm_sqrt_ps(__m128(x))); }
#elif defined(__ARM_NEON) && defined(__aarch64__)
constexpr const char *kName = "neon";
constexpr int kRows = 6, kPanels = 1;
XC_INLINE Vec set1(float x) { return Vec(vdupq_n_f32(x)); }
XC_INLINE Vec fma(Vec a, Vec b, Vec c) { return Vec(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b))); }
XC_INLINE Vec sqrt(Vec x) { return Vec(vsqrtq_f32(float32x4_t(x))); }
#else
constexpr const char *kName = "baseline";
constexpr int kRows = 3, kPanels = 1;
XC_INLINE Vec set1(float x) { return Vec{x, x, x, x}; }
XC_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
XC_INLINE Vec sqrt(Vec x) { return Vec{std::sqrt(x[0]), std::sqrt(x[1]), std::sqrt(x[2]), std::sqrt(x[3])}; }
#endif
#include "nn/kernels_body.hpp"
}  // namespace baseline

#if XC_X86

#define XC_AVX2 "avx2,fma"
#define XC_AVX512 "avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"

XC_TARGET_BEGIN(XC_AVX2)
namespace avx2 {
constexpr const char *kName = "avx2";
constexpr int kLanes = 8, kRows = 6, kPanels = 1;  // 12 sums, 2 vectors of b and 1 of a take 15 of 16 registers
typedef float Vec __attribute__((vector_size(32)));
typedef int32_t IntVec __attribute__((vector_size(32)));
XC_INLINE Vec set1(float x) { return Vec(_mm256_set1_ps(x)); }
XC_INLINE Vec fma(Vec a, Vec b, Vec c) { return Vec(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c))); }
XC_INLINE Vec sqrt(Vec x) { return Vec(_mm256_sqrt_ps(__m256(x))); }
#include "nn/kernels_body.hpp"
}  // namespace avx2
XC_TARGET_END

XC_TARGET_BEGIN(XC_AVX512)
namespace avx512 {
constexpr const char *kName = "avx512";
// 24 sums, 2 vectors of b and 1 of a take 27 of 32 registers. A tile of one panel would read 13 vectors from memory for 12
// multiply-adds, more than the CPU can load in that time.
constexpr int kLanes = 16, kRows = 12, kPanels = 2;
typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IntVec __attribute__((vector_size(64)));
XC_INLINE Vec set1(float x) { return Vec(_mm512_set1_ps(x)); }
XC_INLINE Vec fma(Vec a, Vec b, Vec c) { return Vec(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c))); }
XC_INLINE Vec sqrt(Vec x) { return Vec(_mm512_maskz_sqrt_ps(__mmask16(-1), __m512(x))); }
#include "nn/kernels_body.hpp"
}  // namespace avx512
XC_TARGET_END

#endif  // XC_X86

// The kernels that this machine can run, the best last.
inline const std::vector<const Kernels *> &available_kernels() {
  static const std::vector<const Kernels *> available = [] {
    std::vector<const Kernels *> found{&baseline::kernels};
#if XC_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      found.push_back(&avx2::kernels);
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
          __builtin_cpu_supports("avx512bw"))
        found.push_back(&avx512::kernels);
    }
#endif
    return found;
  }();
  return available;
}

inline const Kernels &best_kernels() { return *available_kernels().back(); }

}  // namespace xc::nn
