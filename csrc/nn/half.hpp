// The kernels of precisions bf16 and bf16x3, and the choice among all kernels at run time. Each instruction set of isa.hpp
// emulates them; tiles and AVX512_BF16 have them in hardware.
#pragma once

#include <vector>

#include "nn/isa.hpp"
#include "nn/tiles.hpp"

namespace xc::nn {

namespace baseline {
#include "nn/half_body.hpp"
}  // namespace baseline

#if XC_X86

XC_TARGET_BEGIN(XC_AVX2)
namespace avx2 {
#include "nn/half_body.hpp"
}  // namespace avx2
XC_TARGET_END

XC_TARGET_BEGIN(XC_AVX512)
namespace avx512 {
#include "nn/half_body.hpp"

#if XC_HALF_UNITS
// A CPU that multiplies bfloat16 numbers also rounds to them, in one instruction, which counts denormals as zeros.
struct UnitRounding {
  XC_INLINE static Bits pairs(Vec x, Vec y) {
    const __m512i places = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3,
                                            18, 2, 17, 1, 16, 0);
    __m512i both;  // all of x, then all of y
    asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(x), "v"(y));
    return Bits(_mm512_maskz_permutexvar_epi16(__mmask32(-1), places, both));
  }
};

// The pairs are multiplied by vdpbf16ps, which like the tiles counts denormals as zeros. It multiplies twice as many numbers
// as a float32 instruction: enough for bf16, but not for the three products of bf16x3.
struct FusedDot {
  static constexpr int64_t kWords = 1;
  static void prepare(uint32_t *, int64_t) {}
  template <int kParts, int R>
  XC_INLINE static void add(const uint32_t *a, const uint32_t *b, Vec (&acc)[R][kVecs]) {
    static_assert(kParts == 1);
    const Bits row = load_bits(b);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc[r][0]) : "v"(row), "m"(a[r * kPairs]));
  }
};
inline constexpr Kernels fused_bf16 = half_kernels<VectorUnit<FusedDot>, UnitRounding, 1>("avx512_bf16", false);
inline constexpr Kernels tiles_bf16 = half_kernels<TileUnit<AmxTiles>, UnitRounding, 1>("amx", false);
inline constexpr Kernels tiles_bf16x3 = half_kernels<TileUnit<AmxTiles>, UnitRounding, 2>("amx", false);
#endif
}  // namespace avx512
XC_TARGET_END

#endif  // XC_X86

// The kernels of a precision that this machine can run, the best last.
inline const std::vector<const Kernels *> &available_kernels(Precision precision) {
  if (precision == Precision::fp32) return available_kernels();
  static const auto available = [](bool three) {
    std::vector<const Kernels *> found;
    for (const Kernels *kernels : available_kernels()) {
      if (kernels == &baseline::kernels) found.push_back(three ? &baseline::emulated_bf16x3 : &baseline::emulated_bf16);
#if XC_X86
      if (kernels == &avx2::kernels) found.push_back(three ? &avx2::emulated_bf16x3 : &avx2::emulated_bf16);
      if (kernels != &avx512::kernels) continue;
      found.push_back(three ? &avx512::emulated_bf16x3 : &avx512::emulated_bf16);
#if XC_HALF_UNITS
      if (has_avx512_bf16() && !three) found.push_back(&avx512::fused_bf16);
      if (has_avx512_bf16() && has_tiles()) found.push_back(three ? &avx512::tiles_bf16x3 : &avx512::tiles_bf16);
#endif
#endif
    }
    return found;
  };
  static const std::vector<const Kernels *> bf16 = available(false), bf16x3 = available(true);
  return precision == Precision::bf16 ? bf16 : bf16x3;
}

}  // namespace xc::nn
