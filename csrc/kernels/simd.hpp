// The choice of the instruction set of the kernels. The body of a kernel is compiled once for each variant, and the variant
// is chosen at run time, so that a portable wheel uses wide vectors where the CPU has them. No variant uses fused
// multiply-add, and every reduction has a fixed order, so all variants give the same bits.
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__GNUC__) && defined(__x86_64__)
#define XC_X86 1
#else
#define XC_X86 0
#endif

// The functions between XC_TARGET_BEGIN(features), with features as in "avx2,fma", and XC_TARGET_END may use these features.
#define XC_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define XC_TARGET_BEGIN(features) XC_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define XC_TARGET_END XC_PRAGMA(clang attribute pop)
#else
#define XC_TARGET_BEGIN(features) XC_PRAGMA(GCC push_options) XC_PRAGMA(GCC target(features))
#define XC_TARGET_END XC_PRAGMA(GCC pop_options)
#endif

#define XC_INLINE inline __attribute__((always_inline))
#define XC_RESTRICT __restrict__

namespace xc {

enum class Variant { baseline, avx2 };

inline bool has_avx2() {
#if XC_X86
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2");
#else
  return false;
#endif
}

// Only tests change it (use_variant), before they call a kernel.
inline Variant &chosen_variant() {
  static Variant variant = has_avx2() ? Variant::avx2 : Variant::baseline;
  return variant;
}

}  // namespace xc

// Executes `...`, a call of an XC_INLINE body, in the chosen variant.
#if XC_X86
#define XC_DISPATCH(...)                                              \
  do {                                                                \
    if (::xc::chosen_variant() == ::xc::Variant::avx2)                \
      [&]() __attribute__((target("avx2"))) { __VA_ARGS__; }();       \
    else                                                              \
      [&]() { __VA_ARGS__; }();                                       \
  } while (0)
#else
#define XC_DISPATCH(...) \
  do {                   \
    __VA_ARGS__;         \
  } while (0)
#endif
