// A software model of the eight tile registers of AMX, from the operations that Intel documents (Intel 64 and IA-32
// Architectures Software Developer's Manual, volume 2: LDTILECFG, TILELOADD, TDPBF16PS and the rest), with the faults that a
// CPU would raise. With it, the code for tiles runs on any CPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "nn/half.hpp"

struct SoftTiles {
  static void configure(const xc::nn::TileConfig &config) {
    require(config.palette == 1 && config.start_row == 0, "palette");
    for (uint8_t byte : config.reserved) require(byte == 0, "reserved bytes");
    for (int t = 0; t < 16; ++t) {
      require(config.rows[t] <= 16 && config.row_bytes[t] <= 64, "a tile is too large");
      require((config.rows[t] == 0) == (config.row_bytes[t] == 0), "a tile has rows or columns only");
      require(t < 8 || config.rows[t] == 0, "there are eight tiles");
    }
    state() = State{};
    state().config = config;
    state().configured = true;
  }
  static void release() { state() = State{}; }
  static bool configured() { return state().configured; }

  template <int T>
  static void zero() {
    clear(tile(T));
  }
  template <int T>
  static void load(const void *from, int64_t stride) {
    Tile &t = tile(T);
    clear(t);
    for (int i = 0; i < rows(T); ++i) std::memcpy(t.bytes[i], static_cast<const char *>(from) + i * stride, size_t(row_bytes(T)));
  }
  template <int T>
  static void store(void *to, int64_t stride) {
    for (int i = 0; i < rows(T); ++i) std::memcpy(static_cast<char *>(to) + i * stride, tile(T).bytes[i], size_t(row_bytes(T)));
  }
  template <int C, int A, int B>
  static void dot() {
    Tile &c = tile(C);
    require(C != A && C != B && A != B, "the tiles of a dot differ");
    require(row_bytes(C) % 4 == 0 && row_bytes(A) % 4 == 0, "a row of a dot is whole");
    require(rows(C) == rows(A) && row_bytes(A) / 4 == rows(B) && row_bytes(C) == row_bytes(B), "the sizes of a dot fit");
    const int columns = row_bytes(C) / 4;
    for (int m = 0; m < rows(C); ++m) {
      float sums[32] = {};
      for (int k = 0; k < row_bytes(A) / 4; ++k)
        for (int n = 0; n < columns; ++n)
          for (int half = 0; half < 2; ++half) {
            const float x = bf16(tile(A).bytes[m] + 4 * k + 2 * half), y = bf16(tile(B).bytes[k] + 4 * n + 2 * half);
            sums[2 * n + half] = flush(x * y + sums[2 * n + half]);  // as if fused: the product is exact
          }
      for (int n = 0; n < columns; ++n) {
        float old;
        std::memcpy(&old, c.bytes[m] + 4 * n, 4);
        const float sum = flush(flush(old) + flush(sums[2 * n] + sums[2 * n + 1]));
        std::memcpy(c.bytes[m] + 4 * n, &sum, 4);
      }
    }
  }

 private:
  struct Tile {
    char bytes[16][64];
  };
  struct State {
    bool configured = false;
    xc::nn::TileConfig config;
    Tile tiles[8] = {};
  };
  static State &state() {
    static thread_local State state;
    return state;
  }
  static void require(bool ok, const char *what) {
    if (ok) return;
    std::printf("tiles: %s\n", what);
    std::abort();
  }
  static Tile &tile(int t) {
    require(state().configured && state().config.rows[t] > 0, "a tile is used that is not configured");
    return state().tiles[t];
  }
  static void clear(Tile &t) { std::memset(t.bytes, 0, sizeof t.bytes); }
  static int rows(int t) { return state().config.rows[t]; }
  static int row_bytes(int t) { return state().config.row_bytes[t]; }
  static float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
  static float bf16(const char *from) {
    uint16_t upper;
    std::memcpy(&upper, from, 2);
    const uint32_t bits = uint32_t(upper) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return flush(x);
  }
};

// The kernels for tiles, on the model. Their other code uses the instructions of the namespace.
inline constexpr xc::nn::Kernels soft_tiles_bf16 = xc::nn::baseline::half_kernels<xc::nn::baseline::TileUnit<SoftTiles>, xc::nn::baseline::BitRounding, 1>("soft tiles", true);
inline constexpr xc::nn::Kernels soft_tiles_bf16x3 = xc::nn::baseline::half_kernels<xc::nn::baseline::TileUnit<SoftTiles>, xc::nn::baseline::BitRounding, 2>("soft tiles", true);

// All kernels of a precision that can run here, the model's included.
inline std::vector<const xc::nn::Kernels *> kernels_with_model(xc::nn::Precision precision) {
  auto all = xc::nn::available_kernels(precision);
  if (precision != xc::nn::Precision::fp32)
    all.push_back(precision == xc::nn::Precision::bf16 ? &soft_tiles_bf16 : &soft_tiles_bf16x3);
  return all;
}
