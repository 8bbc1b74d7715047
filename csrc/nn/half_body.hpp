// Matrix products of bfloat16 numbers, for bf16 and bf16x3. Like kernels_body.hpp, on which it builds, this file has no
// include guard: half.hpp includes it once for each instruction set, inside a namespace.
//
// The depth is cut into steps of 32, and a step into 16 pairs; a pair takes 32 bits. Which two of the 32 are a pair is free,
// as long as both operands agree. In a row product these are depths j and j + 16 of the step, so that pairs are made of two
// vectors without a shuffle; in a weight product they are samples 2 j and 2 j + 1. Both products come down to blocks
//   c [rows <= 32, one or two panels] (+)= a b,
//   a [steps][kParts][32 rows][16 pairs],  a panel of b [steps][16 pairs][kParts][16 columns],
// where the parts are hi and, for bf16x3, lo. A unit multiplies blocks; all else is common to the units. Whatever lies beyond
// the depth is zero in both operands, since a NaN there would reach the sums.
//
// Every element of c is a chain of sums over the steps, in order. The order within a step is the unit's.

constexpr int64_t kStep = 32, kPairs = 16, kBlockRows = 32;
static_assert(kStep == kStagedRows && kBlockRows == kOutBlock);
constexpr int64_t kPart = kBlockRows * kPairs;  // from one part of a to the next

typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef uint32_t LooseBits __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

XC_INLINE Bits load_bits(const void *p) { return *static_cast<const LooseBits *>(p); }
XC_INLINE void store_bits(void *p, Bits v) { *static_cast<LooseBits *>(p) = v; }

// ---- Conversion

// The nearest bfloat16, ties to even, in the upper half; the lower half is 0. A NaN stays one.
struct BitRounding {
  XC_INLINE static Bits nearest(Vec x) {
    const Bits rounded = (Bits(x) + 0x7fff + ((Bits(x) >> 16) & 1)) & 0xffff0000;
    return Bits(select(x == x, Vec(rounded), set1(__builtin_nanf(""))));
  }
  XC_INLINE static Bits pairs(Vec x, Vec y) { return nearest(x) >> 16 | nearest(y); }
};

// The floats in the lower or the upper halves of pairs.
template <bool kUpper>
XC_INLINE Vec half(Bits pairs) {
  return Vec(kUpper ? pairs & 0xffff0000 : pairs << 16);
}

// Writes pairs of the parts of x, in the lower halves, and y; the parts are `stride` pairs apart.
template <class Rounding, int kParts>
XC_INLINE void store_pairs(Vec x, Vec y, uint32_t *to, int64_t stride) {
  const Bits hi = Rounding::pairs(x, y);
  store_bits(to, hi);
  if constexpr (kParts == 2) store_bits(to + stride, Rounding::pairs(x - half<false>(hi), y - half<true>(hi)));
}

// The vector at `lane` of a row of which only the first `width` numbers count, the others being zeros.
XC_INLINE Vec first(int64_t width, int64_t lane, Vec x) {
  IntVec index;
  for (int i = 0; i < kLanes; ++i) index[i] = i;
  const int64_t left = width - lane;
  return select(index < int32_t(left < 0 ? 0 : left > kLanes ? kLanes : left), x, Vec{});
}

// a of `steps` steps: rows of panels of float32, of which `depth` columns are left.
template <class Rounding, int kParts>
XC_INLINE void convert_rows(const float *panels, int64_t stride, int64_t depth, int64_t rows, int64_t steps, uint32_t *a) {
  for (int64_t step = 0; step < steps; ++step, panels += 2 * stride, depth -= kStep, a += kParts * kPart) {
    const bool second = depth > kPanel;  // whether the second panel of the step exists
    for (int64_t i = 0; i < rows * kPanel; i += kLanes) {
      Vec x = load(panels + i), y = second ? load(panels + stride + i) : Vec{};
      if (depth < kStep) {
        x = first(depth, i % kPanel, x);
        y = first(depth - kPanel, i % kPanel, y);
      }
      store_pairs<Rounding, kParts>(x, y, a + i, kPart);
    }
  }
}

// to = from^T, both 16 rows of 16 pairs with so many pairs from row to row.
XC_INLINE void transpose_pairs(const uint32_t *from, int64_t from_stride, uint32_t *to, int64_t to_stride) {
  for (int64_t i = 0; i < kPairs; i += kLanes)
    for (int64_t j = 0; j < kPairs; j += kLanes) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) square[r] = Vec(load_bits(from + (i + r) * from_stride + j));
      transpose(square);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) store_bits(to + (j + r) * to_stride + i, Bits(square[r]));
    }
}

template <class Rounding, int kParts>
inline void half_pack(const Packing &p) {
  constexpr int64_t kPanelStep = kParts * kPairs * kPanel;  // one step of a panel, in pairs
  const int64_t forward = (p.n_in + kStep - 1) / kStep * kPanelStep, backward = (p.n_out + kStep - 1) / kStep * kPanelStep;
  // Row i, i < 16, of `to` are the pairs of the 16 weights from (row, column) on with those from (row + apart, column + beside)
  // on, where the row is `begin` + i. Weights beyond the part or the matrix are zeros.
  const auto convert = [&](int64_t begin, int64_t column, int64_t apart, int64_t beside, uint32_t *to, int64_t row_stride,
                           int64_t part_stride) {
    const auto weights = [&](int64_t row, int64_t k, float *w) {
      if (row < p.end && k < p.n_in) copy_row(p.weight + row * p.n_in + k, p.n_in - k < kPanel ? p.n_in - k : kPanel, w);
    };
    for (int64_t i = 0; i < kPairs; ++i) {
      alignas(64) float x[kPanel] = {}, y[kPanel] = {};
      weights(begin + i, column, x);
      weights(begin + i + apart, column + beside, y);
      for (int64_t lane = 0; lane < kPanel; lane += kLanes)
        store_pairs<Rounding, kParts>(load(x + lane), load(y + lane), to + i * row_stride + lane, part_stride);
    }
  };
  for (int64_t n = p.begin; n < p.end; n += kPanel) {
    uint32_t *to = reinterpret_cast<uint32_t *>(p.forward) + n / kPanel * forward;
    for (int64_t d = 0; d < p.n_in; d += kStep, to += kPanelStep) {
      alignas(64) uint32_t pairs[kParts][kPairs * kPanel];
      convert(n, d, 0, kPanel, pairs[0], kPanel, kPairs * kPanel);
      for (int part = 0; part < kParts; ++part) transpose_pairs(pairs[part], kPanel, to + part * kPanel, kParts * kPanel);
    }
  }
  if (!p.backward) return;
  uint32_t *to = reinterpret_cast<uint32_t *>(p.backward) + p.begin / kStep * kPanelStep;
  for (int64_t k = 0; k < p.n_in; k += kPanel, to += backward) convert(p.begin, k, kPairs, 0, to, kParts * kPanel, kPanel);
}

// Writes pairs of the samples of a panel, 16 rows of kPanel. Samples that are not there are zeros.
template <class Rounding, int kParts>
XC_INLINE void pair_samples(const float *from, int64_t rows, uint32_t *to, int64_t row_stride, int64_t part_stride) {
  for (int64_t j = 0; j < kPairs; ++j, from += 2 * kPanel)
    for (int64_t i = 0; i < kPanel; i += kLanes)
      store_pairs<Rounding, kParts>(2 * j < rows ? load(from + i) : Vec{}, 2 * j + 1 < rows ? load(from + kPanel + i) : Vec{},
                                    to + j * row_stride + i, part_stride);
}

template <class Rounding, int kParts>
inline void stage_x(const Staging &s) {
  for (int64_t panel = 0; panel < panels_of(s.columns); ++panel)
    pair_samples<Rounding, kParts>(s.from + panel * s.from_stride, s.rows, reinterpret_cast<uint32_t *>(s.to + panel * s.to_stride),
                                   kParts * kPanel, kPanel);
}

template <class Rounding, int kParts>
inline void stage_dz(const Staging &s) {
  constexpr int64_t kPanelsOfBlock = kOutBlock / kPanel;
  for (int64_t panel = 0; panel < panels_of(s.columns); ++panel) {
    alignas(64) uint32_t pairs[kParts][kPairs * kPanel];
    pair_samples<Rounding, kParts>(s.from + panel * s.from_stride, s.rows, pairs[0], kPanel, kPairs * kPanel);
    uint32_t *to = reinterpret_cast<uint32_t *>(s.to + panel / kPanelsOfBlock * s.to_stride) + panel % kPanelsOfBlock * kPanel * kPairs;
    for (int part = 0; part < kParts; ++part) transpose_pairs(pairs[part], kPanel, to + part * kPart, kPairs);
  }
}

// ---- Units

struct HalfBlock {
  const uint32_t *a, *b;
  int64_t b_stride, steps;  // from one panel of b to the next, in pairs
  float *c;
  int64_t c_row, c_panel;  // from one row or panel of c to the next
  int64_t rows, panels;
  bool accumulate;  // whether the chains continue the values in c
};

// A unit may prepare a once for all blocks that read it; a pair then takes kWords words of 32 bits.
//
// Tile registers: 0 to 3 hold c, 4 and 5 the two sixteens of rows of a, 6 and 7 the two panels of b.
template <class Tiles>
struct TileUnit {
  static constexpr int64_t kWords = 1;
  static void prepare(uint32_t *, int64_t) {}
  static void begin(int64_t rows) {
    const int64_t upper = rows < kTileRows ? rows : kTileRows, lower = rows > kTileRows ? rows - kTileRows : kTileRows;
    TileConfig config;
    for (int t = 0; t < 8; ++t) {
      config.row_bytes[t] = kTileBytes;
      config.rows[t] = uint8_t(t < 2 || t == 4 ? upper : t < 6 ? lower : kTileRows);
    }
    Tiles::configure(config);
  }
  static void end() { Tiles::release(); }

  template <int kParts>
  static void multiply(const HalfBlock &t) {
    if (t.rows > kTileRows)
      t.panels > 1 ? block<kParts, 2, 2>(t) : block<kParts, 2, 1>(t);
    else
      t.panels > 1 ? block<kParts, 1, 2>(t) : block<kParts, 1, 1>(t);
  }

 private:
  template <int kRowTiles, int kPanels, class F>
  XC_INLINE static void each(F &&f) {
    constexpr std::integral_constant<int, 0> zero;
    constexpr std::integral_constant<int, 1> one;
    f(zero, zero);
    if constexpr (kPanels > 1) f(zero, one);
    if constexpr (kRowTiles > 1) f(one, zero);
    if constexpr (kRowTiles > 1 && kPanels > 1) f(one, one);
  }

  template <int kParts, int kRowTiles, int kPanels>
  static void block(const HalfBlock &given) {
    const HalfBlock t = given;  // a copy, since the compiler must assume that a tile instruction changes any memory
    const auto c = [&](int64_t r, int64_t p) { return t.c + r * kTileRows * t.c_row + p * t.c_panel; };
    const int64_t c_stride = t.c_row * 4;
    if (t.accumulate)
      each<kRowTiles, kPanels>([&](auto r, auto p) { Tiles::template load<2 * r + p>(c(r, p), c_stride); });
    else
      each<kRowTiles, kPanels>([&](auto r, auto p) { Tiles::template zero<2 * r + p>(); });
    const uint32_t *a = t.a, *b = t.b;
    const auto load_a = [&](int part) {
      each<kRowTiles, 1>([&](auto r, auto) { Tiles::template load<4 + r>(a + part * kPart + r * kTileRows * kPairs, kTileBytes); });
    };
    const auto load_b = [&](int part) {
      each<1, kPanels>([&](auto, auto p) { Tiles::template load<6 + p>(b + part * kPanel + p * t.b_stride, kParts * kTileBytes); });
    };
    const auto dots = [&] {
      each<kRowTiles, kPanels>([](auto r, auto p) { Tiles::template dot<2 * r + p, 4 + r, 6 + p>(); });
    };
    for (int64_t step = 0; step < t.steps; ++step, a += kParts * kPart, b += kParts * kPairs * kPanel) {
      load_b(0);
      if constexpr (kParts == 2) {  // lo hi, hi hi, hi lo: each tile is loaded once
        load_a(1);
        dots();
      }
      load_a(0);
      dots();
      if constexpr (kParts == 2) {
        load_b(1);
        dots();
      }
    }
    each<kRowTiles, kPanels>([&](auto r, auto p) { Tiles::template store<2 * r + p>(c(r, p), c_stride); });
  }
};

// Vector registers. Dot adds the products of one pair of R rows with a row of b.
template <class Dot>
struct VectorUnit {
  static constexpr int64_t kWords = Dot::kWords;
  static void prepare(uint32_t *a, int64_t pairs) { Dot::prepare(a, pairs); }
  static void begin(int64_t) {}
  static void end() {}

  template <int kParts>
  static void multiply(const HalfBlock &t) {
    constexpr int kMost = kParts == 2 && kVecs > 1 ? kRows - 2 : kRows;  // two parts of b need registers too
    for (int64_t panel = 0; panel < t.panels; ++panel)
      for_groups(t.rows, kMost, [&](int64_t row, int64_t count) {
        with_rows<kMost>(count, [&](auto rows) {
          group<kParts, decltype(rows)::value>(t, t.a + row * kPairs * kWords, t.b + panel * t.b_stride,
                                               t.c + row * t.c_row + panel * t.c_panel);
        });
      });
  }

 private:
  // Not inlined: where it is, gcc moves accumulators between registers and memory.
  template <int kParts, int R>
  __attribute__((noinline)) static void group(const HalfBlock &t, const uint32_t *a, const uint32_t *b, float *c) {
    Vec acc[R][kVecs];
    if (t.accumulate)
      for_tile<R, kVecs>([&](int r, int v) __attribute__((always_inline)) { acc[r][v] = load(c + r * t.c_row + v * kLanes); });
    else
      for_tile<R, kVecs>([&](int r, int v) __attribute__((always_inline)) { acc[r][v] = Vec{}; });
    for (int64_t step = 0; step < t.steps; ++step, a += kParts * kPart * kWords)
      for (int64_t j = 0; j < kPairs; ++j, b += kParts * kPanel) Dot::template add<kParts, R>(a + j, b, acc);
    for_tile<R, kVecs>([&](int r, int v) __attribute__((always_inline)) { store(c + r * t.c_row + v * kLanes, acc[r][v]); });
  }
};

// Float32 arithmetic. A bfloat16 is the upper half of a float32: 16 pairs of a are prepared as the 16 floats of their lower
// halves, then those of their upper halves, which are broadcast from memory.
struct EmulatedDot {
  static constexpr int64_t kWords = 2;
  typedef float LooseFloat __attribute__((may_alias));

  static void prepare(uint32_t *a, int64_t pairs) {
    for (int64_t i = pairs - kPairs; i >= 0; i -= kPairs)  // in place: from the last on
      for (int64_t j = kPairs - kLanes; j >= 0; j -= kLanes) {
        const Bits both = load_bits(a + i + j);
        store_bits(a + 2 * i + kPairs + j, Bits(half<true>(both)));
        store_bits(a + 2 * i + j, Bits(half<false>(both)));
      }
  }
  template <bool kUpper, int kParts, int R>
  XC_INLINE static void add_half(const LooseFloat *a, const uint32_t *b, Vec (&acc)[R][kVecs]) {
    Vec row[kParts][kVecs];
    for (int part = 0; part < kParts; ++part)
      for (int v = 0; v < kVecs; ++v) row[part][v] = half<kUpper>(load_bits(b + part * kPanel + v * kLanes));
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec hi = set1(a[r * kPairs * kWords]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) acc[r][v] = fma(hi, row[0][v], acc[r][v]);
      if constexpr (kParts == 2) {
        const Vec lo = set1(a[(kPart + r * kPairs) * kWords]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) acc[r][v] = fma(lo, row[0][v], fma(hi, row[1][v], acc[r][v]));
      }
    }
  }
  template <int kParts, int R>
  XC_INLINE static void add(const uint32_t *a, const uint32_t *b, Vec (&acc)[R][kVecs]) {
    add_half<false, kParts>(reinterpret_cast<const LooseFloat *>(a), b, acc);
    add_half<true, kParts>(reinterpret_cast<const LooseFloat *>(a) + kPairs, b, acc);
  }
};

// ---- Products

// Adds the bias and applies slope and gate, as row_tile does, to rows of one panel of c.
XC_INLINE void finish_panel(const RowProduct &p, int64_t panel, int64_t row, int64_t rows) {
  const int64_t at = panel * p.c_stride + row * kPanel;
  const Vec slope = set1(p.slope);
  for (int v = 0; v < kVecs; ++v) {
    const Vec bias = p.bias ? load(p.bias + panel * kPanel + v * kLanes) : Vec{};
    for (int64_t i = at + v * kLanes; i < at + rows * kPanel; i += kPanel) {
      Vec y = load(p.c + i);
      if (p.bias) {
        y += bias;
        const Vec scaled = y * slope;
        y = select(scaled > y, scaled, y);
      }
      if (p.gate) y = select(load(p.gate + i) > Vec{}, y, y * slope);
      store(p.c + i, y);
    }
  }
}

template <class Unit, class Rounding, int kParts>
inline void half_row_product(const RowProduct &p) {
  constexpr int64_t kSteps = 8;  // a of so many steps takes 16 KB for each part, prepared for the emulation 32 KB
  alignas(64) uint32_t a[kSteps * kParts * kPart * Unit::kWords];
  const int64_t panels = panels_of(p.columns), steps = (p.depth + kStep - 1) / kStep;
  constexpr int64_t kPanelStep = kParts * kPairs * kPanel;
  int64_t rows = 0;
  for (int64_t row = 0; row < p.rows; row += rows) {
    const int64_t count = p.rows - row < kBlockRows ? p.rows - row : kBlockRows;
    if (count != rows) Unit::begin(rows = count);
    for (int64_t step = 0; step < steps; step += kSteps) {
      const int64_t some = steps - step < kSteps ? steps - step : kSteps;
      convert_rows<Rounding, kParts>(p.a + 2 * step * p.a_stride + row * kPanel, p.a_stride, p.depth - step * kStep, rows, some, a);
      Unit::prepare(a, some * kParts * kPart);
      for (int64_t panel = 0; panel < panels; panel += 2) {
        const int64_t both = panels - panel < 2 ? 1 : 2;
        const auto *b = reinterpret_cast<const uint32_t *>(p.b) + (panel * steps + step) * kPanelStep;
        Unit::template multiply<kParts>({a, b, steps * kPanelStep, some, p.c + panel * p.c_stride + row * kPanel, kPanel, p.c_stride,
                                         rows, both, step > 0 || p.accumulate});
        if (step + some == steps && (p.bias || p.gate))
          for (int64_t q = panel; q < panel + both; ++q) finish_panel(p, q, row, rows);
      }
    }
  }
  Unit::end();
}

template <class Unit, int kParts>
inline void half_weight_product(const WeightProduct &p) {
  constexpr int64_t kSteps = 16 / kParts;  // a of so many steps takes 32 KB, prepared for the emulation 64 KB
  alignas(64) float tile[2][kOutBlock * kPanel] = {};  // for panels that reach beyond the matrix
  const int64_t all = (p.samples + kStep - 1) / kStep;
  Unit::begin(p.n_out);
  for (int64_t step = 0; step < all; step += kSteps) {
    const int64_t steps = all - step < kSteps ? all - step : kSteps;
    const bool accumulate = step > 0 || p.accumulate;
    const auto *a = reinterpret_cast<const uint32_t *>(p.dz) + step * kParts * kPart;
    alignas(64) uint32_t prepared[Unit::kWords > 1 ? kSteps * kParts * kPart * Unit::kWords : 1];
    if constexpr (Unit::kWords > 1) {
      std::memcpy(prepared, a, size_t(steps * kParts * kPart) * 4);
      Unit::prepare(prepared, steps * kParts * kPart);
      a = prepared;
    }
    for (int64_t c = 0; c < p.n_in; c += 2 * kPanel) {
      const int64_t width = p.n_in - c < 2 * kPanel ? p.n_in - c : 2 * kPanel, both = panels_of(width);
      const auto *b = reinterpret_cast<const uint32_t *>(p.x + c / kPanel * p.x_stride) + step * kParts * kPairs * kPanel;
      float *out = p.out + c;
      if (width % kPanel == 0) {
        Unit::template multiply<kParts>({a, b, p.x_stride, steps, out, p.n_in, kPanel, p.n_out, both, accumulate});
        continue;
      }
      const auto rows_of_tile = [&](auto &&copy) {
        for (int64_t q = 0; q < both; ++q)
          for (int64_t i = 0; i < p.n_out; ++i)
            copy(out + i * p.n_in + q * kPanel, width - q * kPanel < kPanel ? width - q * kPanel : kPanel, tile[q] + i * kPanel);
      };
      if (accumulate) rows_of_tile([](float *from, int64_t n, float *to) { copy_row(from, n, to); });
      Unit::template multiply<kParts>({a, b, p.x_stride, steps, tile[0], kPanel, kOutBlock * kPanel, p.n_out, both, accumulate});
      rows_of_tile([](float *to, int64_t n, float *from) { copy_row(from, n, to); });
    }
  }
  Unit::end();
}

template <class Rounding, int kParts>
inline constexpr StagingKernels staging{stage_x<Rounding, kParts>, stage_dz<Rounding, kParts>, kParts * kPairs * kPanel, kParts * kPart};

template <class Unit, class Rounding, int kParts>
constexpr Kernels half_kernels(const char *name, bool emulated) {
  Kernels half = kernels;
  half.name = name;
  half.row_product = half_row_product<Unit, Rounding, kParts>;
  half.weight_product = half_weight_product<Unit, kParts>;
  half.pack = half_pack<Rounding, kParts>;
  half.depth_step = kStep;
  half.floats_per_depth = kParts * kPanel / 2;
  half.staging = &staging<Rounding, kParts>;
  half.emulated = emulated;
  return half;
}

inline constexpr Kernels emulated_bf16 = half_kernels<VectorUnit<EmulatedDot>, BitRounding, 1>(kName, true);
inline constexpr Kernels emulated_bf16x3 = half_kernels<VectorUnit<EmulatedDot>, BitRounding, 2>(kName, true);
