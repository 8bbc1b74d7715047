// The units that multiply bfloat16 numbers: whether this machine has them, and the instructions of AMX, the tiles. The
// instructions are written as assembly, because the compilers' functions for them take no template argument.
#pragma once

#include <cstdint>

#include "kernels/simd.hpp"

#if XC_X86 && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define XC_HALF_UNITS 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define XC_HALF_UNITS 0
#endif

namespace xc::nn {

constexpr int kTileRows = 16, kTileBytes = 64;  // the largest tile, 16 rows of 64 bytes

// The memory that configures the eight tile registers.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

#if XC_HALF_UNITS

// Strides are in bytes. dot: tile C, of float32, += tile A, rows of pairs of bfloat16, times tile B, whose row k has the
// pairs that meet pair k of a row of A. Denormals count as zeros, in the operands and in the sums.
struct AmxTiles {
  static void configure(const TileConfig &config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
  static void release() { asm volatile("tilerelease"); }
  template <int T>
  XC_INLINE static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  XC_INLINE static void load(const void *from, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(from), "r"(stride) : "memory");
  }
  template <int T>
  XC_INLINE static void store(void *to, int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(to), "r"(stride) : "memory");
  }
  template <int C, int A, int B>
  XC_INLINE static void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

// Whether the CPU has AMX with bfloat16, and the operating system grants this process the tile registers. They are asked for
// at the first call.
inline bool has_tiles() {
  static const bool granted = [] {
    unsigned a, b, c, d;
    constexpr unsigned kSavesRegisters = 1u << 27, kBf16 = 1u << 22, kTile = 1u << 24, kTileState = 3u << 17;
    if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !(c & kSavesRegisters)) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kBf16) || !(d & kTile)) return false;
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & kTileState) != kTileState) return false;
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  }();
  return granted;
}

inline bool has_avx512_bf16() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5));
}

#endif

}  // namespace xc::nn
