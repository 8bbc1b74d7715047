// The vector code of the learner. It has no include guard: isa.hpp includes it once for each instruction set, inside a
// namespace that defines Vec (kLanes floats), IntVec, set1, fma and sqrt, and the tile whose sums fit into the registers:
// kRows rows of kPanels panels.

constexpr int kVecs = int(kPanel) / kLanes;
constexpr int kSums = kRows * kPanels * kVecs;  // the vectors that hold the sums of a tile

typedef float LooseVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

XC_INLINE Vec load(const float *p) { return *reinterpret_cast<const LooseVec *>(p); }
XC_INLINE void store(float *p, Vec v) { *reinterpret_cast<LooseVec *>(p) = v; }
XC_INLINE Vec select(IntVec mask, Vec yes, Vec no) { return mask ? yes : no; }

// x0 y0 x1 y1 ... of the lower or the upper halves of x and y.
template <bool kUpper, int... I>
XC_INLINE Vec interleave(Vec x, Vec y, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(x, y, ((kUpper ? kLanes / 2 : 0) + I / 2 + I % 2 * kLanes)...);
#else
  return __builtin_shuffle(x, y, IntVec{((kUpper ? kLanes / 2 : 0) + I / 2 + I % 2 * kLanes)...});
#endif
}

// Transposes a square. Each round moves the highest bit of an element's row to its column, and of its column to its row.
XC_INLINE void transpose(Vec (&square)[kLanes]) {
  constexpr std::make_integer_sequence<int, kLanes> lanes;
#pragma GCC unroll 4
  for (int bit = 1; bit < kLanes; bit *= 2) {
    Vec next[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave<false>(square[i], square[i + kLanes / 2], lanes);
      next[2 * i + 1] = interleave<true>(square[i], square[i + kLanes / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) square[i] = next[i];
  }
}

// ---- Elementary functions. All use one core, expm1(x) = p 2^k + (2^k - 1). NaN stays NaN.
// tests/learners/test_learner_native.py states their accuracy.

struct Expm1 {
  Vec p, scale;
};

XC_INLINE Expm1 expm1_parts(Vec x) {
  x = select(x < set1(-87.0f), set1(-87.0f), x);
  x = select(x > set1(88.0f), set1(88.0f), x);
  const Vec magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds x to an integer, which is then in the low bits
  const Vec shifted = fma(x, set1(1.44269504088896341f), magic);
  const Vec k = shifted - magic;
  Vec r = fma(k, set1(-0.693145751953125f), x);
  r = fma(k, set1(-1.428606765330187e-6f), r);
  Vec q = set1(1.9841270e-4f);  // Taylor series to r^7 / 7!; for |r| <= 0.3466 the rest is below 2^-27 r
  q = fma(q, r, set1(1.3888889e-3f));
  q = fma(q, r, set1(8.3333333e-3f));
  q = fma(q, r, set1(4.1666667e-2f));
  q = fma(q, r, set1(1.6666667e-1f));
  q = fma(q, r, set1(0.5f));
  const Vec p = fma(q * r, r, r);
  return {p, Vec((IntVec(shifted) + 127) << 23)};
}
XC_INLINE Vec exp(Vec x) {
  const Expm1 e = expm1_parts(x);
  return fma(e.p, e.scale, e.scale);
}
XC_INLINE Vec expm1(Vec x) {
  const Expm1 e = expm1_parts(x);
  return fma(e.p, e.scale, e.scale - set1(1.0f));
}
XC_INLINE Vec abs(Vec x) { return Vec(IntVec(x) & 0x7fffffff); }
XC_INLINE Vec tanh(Vec x) {
  const Vec e = expm1(abs(x) * set1(-2.0f));
  const Vec t = -e / (e + set1(2.0f));
  return Vec(IntVec(t) | (IntVec(x) & int32_t(0x80000000)));
}
XC_INLINE Vec sigmoid(Vec x) {
  const Vec e = exp(-abs(x));
  return select(x < set1(0.0f), e, set1(1.0f)) / (set1(1.0f) + e);
}
XC_INLINE Vec elu(Vec x) { return select(x > set1(0.0f), x, expm1(x)); }

// ---- Matrix products

// Tiles are R rows by NV vectors. Vector v is v % kVecs of panel v / kVecs.
XC_INLINE int64_t vector_at(int v, int64_t panel_stride) { return (v / kVecs) * panel_stride + (v % kVecs) * kLanes; }

// acc += a [R, depth] b [depth, NV vectors]; element (r, d) of a is a[r * kRowStep + d * kDepthStep].
template <int R, int NV, int kRowStep, int kDepthStep>
XC_INLINE void multiply_add(const float *XC_RESTRICT a, const float *XC_RESTRICT b, int64_t b_stride, int64_t depth, Vec (&acc)[R][NV]) {
#pragma GCC unroll 4
  for (int64_t d = 0; d < depth; ++d) {
    Vec row[NV];
#pragma GCC unroll 32
    for (int v = 0; v < NV; ++v) row[v] = load(b + d * kPanel + vector_at(v, b_stride));
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r) {
      const Vec x = set1(a[r * kRowStep + d * kDepthStep]);
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) acc[r][v] = fma(x, row[v], acc[r][v]);
    }
  }
}

// Calls f(row, vector) for a whole tile. The loops are unrolled, so that the accumulators stay in registers.
template <int R, int NV, class F>
XC_INLINE void for_tile(F &&f) {
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
    for (int v = 0; v < NV; ++v) f(r, v);
}

// A tile of a RowProduct: pointers to its first row, and `depth` steps of the inner dimension.
struct RowTile {
  const float *a;
  int64_t a_stride;
  const float *b;
  int64_t b_stride, depth;
  const float *from;  // the sums that the tile continues, or null
  float *c;
  int64_t c_stride;
  const float *bias, *gate;
  float slope;
};

template <int R, int NV>
inline void row_tile(const RowTile &t) {
  Vec acc[R][NV];
  auto at = [&](int r, int v) __attribute__((always_inline)) { return r * kPanel + vector_at(v, t.c_stride); };
  if (t.from)
    for_tile<R, NV>([&](int r, int v) __attribute__((always_inline)) { acc[r][v] = load(t.from + at(r, v)); });
  else
    for_tile<R, NV>([&](int r, int v) __attribute__((always_inline)) { acc[r][v] = Vec{}; });
  const float *a = t.a, *b = t.b;
  int64_t depth = t.depth;
  for (; depth >= kPanel; depth -= kPanel, a += t.a_stride, b += kPanel * kPanel)
    multiply_add<R, NV, kPanel, 1>(a, b, t.b_stride, kPanel, acc);
  multiply_add<R, NV, kPanel, 1>(a, b, t.b_stride, depth, acc);
  const Vec slope = set1(t.slope);
  if (t.bias) {
    for_tile<R, NV>([&](int r, int v) __attribute__((always_inline)) {
      const Vec y = acc[r][v] + load(t.bias + vector_at(v, kPanel)), scaled = y * slope;
      acc[r][v] = select(scaled > y, scaled, y);
    });
  }
  if (t.gate) {
    for_tile<R, NV>([&](int r, int v) __attribute__((always_inline)) {
      acc[r][v] = select(load(t.gate + at(r, v)) > Vec{}, acc[r][v], acc[r][v] * slope);
    });
  }
  for_tile<R, NV>([&](int r, int v) __attribute__((always_inline)) { store(t.c + at(r, v), acc[r][v]); });
}

// tile [R, P panels] += dz^T x, over the samples.
template <int R, int P>
inline void weight_tile(const float *dz, const float *x, int64_t x_stride, int64_t samples, float *tile) {
  constexpr int NV = P * kVecs;
  Vec acc[R][NV];
  for_tile<R, NV>([&](int r, int v) __attribute__((always_inline)) { acc[r][v] = load(tile + (r * NV + v) * kLanes); });
  multiply_add<R, NV, 1, kPanel>(dz, x, x_stride, samples, acc);
  for_tile<R, NV>([&](int r, int v) __attribute__((always_inline)) { store(tile + (r * NV + v) * kLanes, acc[r][v]); });
}

// Calls f(std::integral_constant<int, n>) for an n that is known only at run time, 1 <= n <= kMost.
template <int kMost, class F>
XC_INLINE void with_rows(int64_t n, F &&f) {
  if constexpr (kMost > 1) {
    if (n == kMost) return f(std::integral_constant<int, kMost>());
    return with_rows<kMost - 1>(n, f);
  } else {
    f(std::integral_constant<int, 1>());
  }
}

// Calls f(first, count) for groups of at most `most` rows. The groups have nearly equal sizes, because a group of one row
// would leave most arithmetic units idle.
template <class F>
XC_INLINE void for_groups(int64_t rows, int64_t most, F &&f) {
  const int64_t groups = (rows + most - 1) / most;
  int64_t first = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t count = (rows - first) / (groups - g);
    f(first, count);
    first += count;
  }
}

constexpr int64_t kDepth = 256 / kPanels;  // the panels of b that a tile reads take 16 KB, at most half of the L1 cache

XC_INLINE RowTile tile_at(const RowProduct &p, int64_t panel, int64_t row, int64_t d) {
  const int64_t at = panel * p.c_stride + row * kPanel;
  const bool last = d + kDepth >= p.depth;
  return {p.a + (d / kPanel) * p.a_stride + row * kPanel,
          p.a_stride,
          p.b + (panel * p.depth + d) * kPanel,
          p.depth * kPanel,
          last ? p.depth - d : kDepth,
          d > 0 || p.accumulate ? p.c + at : nullptr,
          p.c + at,
          p.c_stride,
          last && p.bias ? p.bias + panel * kPanel : nullptr,
          last && p.gate ? p.gate + at : nullptr,
          p.slope};
}

// Computes all rows of NV vectors from `panel` on, at most kMost rows at a time.
template <int NV, int kMost>
XC_INLINE void product_panel(const RowProduct &p, int64_t panel) {
  for (int64_t d = 0; d < p.depth; d += kDepth)
    for_groups(p.rows, kMost, [&](int64_t row, int64_t count) {
      const RowTile t = tile_at(p, panel, row, d);
      with_rows<kMost>(count, [&](auto rows) { row_tile<decltype(rows)::value, NV>(t); });
    });
}

inline void row_product(const RowProduct &p) {
  const int64_t panels = panels_of(p.columns);
  int64_t panel = 0;
  if (p.rows <= kRows / 2)  // few rows: several panels at once, as many as fit into the registers
    with_rows<kRows / 2>(p.rows, [&](auto rows) {
      constexpr int R = decltype(rows)::value, kAtOnce = kRows / R;
      for (; panel + kAtOnce <= panels; panel += kAtOnce)
        for (int64_t d = 0; d < p.depth; d += kDepth) row_tile<R, kAtOnce * kVecs>(tile_at(p, panel, 0, d));
    });
  for (; (panel + kPanels - 1) * kPanel + (kVecs > 1 ? kLanes : 0) < p.columns; panel += kPanels) product_panel<kPanels * kVecs, kRows>(p, panel);
  for (; panel < panels; ++panel) {
    if (p.columns - panel * kPanel <= kLanes)  // a narrow head: one vector wide, and more rows
      product_panel<1, kSums>(p, panel);
    else
      product_panel<kVecs, kSums / kVecs>(p, panel);
  }
}

// Copies part of a panel's row; width <= kPanel.
XC_INLINE void copy_row(const float *from, int64_t width, float *to) {
  if (width == kPanel) {
    for (int v = 0; v < kVecs; ++v) store(to + v * kLanes, load(from + v * kLanes));
  } else {
    for (int64_t i = 0; i < width; ++i) to[i] = from[i];
  }
}

// Computes the P panels of columns of a WeightProduct that begin with column c.
template <int P>
inline void weight_columns(const WeightProduct &p, int64_t c) {
  constexpr int64_t kSamples = 128;  // so many rows of dz and x stay in the L1 cache
  constexpr int64_t kWidth = P * kPanel;
  auto columns = [&](int64_t first) { return p.n_in - c - first < kPanel ? p.n_in - c - first : kPanel; };
  alignas(64) float tile[kOutBlock * kWidth] = {};
  if (p.accumulate)
    for (int64_t i = 0; i < p.n_out; ++i)
      for (int64_t j = 0; j < kWidth; j += kPanel) copy_row(p.out + i * p.n_in + c + j, columns(j), tile + i * kWidth + j);
  const float *x = p.x + (c / kPanel) * p.x_stride;
  for (int64_t s = 0; s < p.samples; s += kSamples) {
    const int64_t samples = p.samples - s < kSamples ? p.samples - s : kSamples;
    for (int64_t q = 0; q < p.n_out; q += kPanel)
      for_groups(p.n_out - q < kPanel ? p.n_out - q : kPanel, kRows, [&](int64_t first, int64_t count) {
        const float *dz = p.dz + (q / kPanel) * p.dz_stride + s * kPanel + first;
        float *part = tile + (q + first) * kWidth;
        with_rows<kRows>(count, [&](auto rows) { weight_tile<decltype(rows)::value, P>(dz, x + s * kPanel, p.x_stride, samples, part); });
      });
  }
  for (int64_t i = 0; i < p.n_out; ++i)
    for (int64_t j = 0; j < kWidth; j += kPanel) copy_row(tile + i * kWidth + j, columns(j), p.out + i * p.n_in + c + j);
}

inline void weight_product(const WeightProduct &p) {
  int64_t c = 0;
  for (; c + (kPanels - 1) * kPanel < p.n_in; c += kPanels * kPanel) weight_columns<kPanels>(p, c);
  if (c < p.n_in) weight_columns<1>(p, c);
}

inline void column_sums(const Activations &a, float *out) {
  for (int64_t q = 0; q < panels_of(a.columns); ++q) {
    const float *x = a.data + q * a.stride;
    Vec acc[4][kVecs] = {};  // four chains hide the latency of the addition
    int64_t i = 0;
    for (; i + 4 <= a.rows; i += 4)
#pragma GCC unroll 4
      for (int chain = 0; chain < 4; ++chain)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) acc[chain][v] += load(x + (i + chain) * kPanel + v * kLanes);
    for (; i < a.rows; ++i)
      for (int v = 0; v < kVecs; ++v) acc[0][v] += load(x + i * kPanel + v * kLanes);
    alignas(64) float sums[kPanel];
    for (int v = 0; v < kVecs; ++v) store(sums + v * kLanes, (acc[0][v] + acc[1][v]) + (acc[2][v] + acc[3][v]));
    copy_row(sums, a.columns - q * kPanel < kPanel ? a.columns - q * kPanel : kPanel, out + q * kPanel);
  }
}

// ---- Activations

template <class F>
XC_INLINE void map_panels(const Activations &a, F &&f) {
  for (int64_t p = 0; p < panels_of(a.columns); ++p) {
    float *data = a.data + p * a.stride;
    for (int64_t i = 0; i < a.rows * kPanel; i += kLanes) f(data + i);
  }
}

XC_INLINE int64_t place(const Activations &a, int64_t row, int64_t column) {
  return (column / kPanel) * a.stride + row * kPanel + column % kPanel;
}

inline void softmax(const Activations &a) {
  for (int64_t row = 0; row < a.rows; ++row) {
    float largest = a.data[place(a, row, 0)];
    for (int64_t j = 1; j < a.columns; ++j) {
      const float x = a.data[place(a, row, j)];
      largest = x > largest ? x : largest;
    }
    float sum = 0;
    for (int64_t j = 0; j < a.columns; j += kPanel) {
      float *x = a.data + place(a, row, j);
      for (int v = 0; v < kVecs; ++v) store(x + v * kLanes, exp(load(x + v * kLanes) - set1(largest)));
      for (int64_t i = 0; i < kPanel && j + i < a.columns; ++i) sum += x[i];
    }
    for (int64_t j = 0; j < a.columns; ++j) a.data[place(a, row, j)] /= sum;
  }
}

inline void softmax_gradient(const Activations &y, float *dy) {
  for (int64_t row = 0; row < y.rows; ++row) {
    float dot = 0;
    for (int64_t j = 0; j < y.columns; ++j) dot += y.data[place(y, row, j)] * dy[place(y, row, j)];
    for (int64_t j = 0; j < y.columns; ++j) {
      const int64_t at = place(y, row, j);
      dy[at] = y.data[at] * (dy[at] - dot);
    }
  }
}

inline void activate(Activation activation, const Activations &a) {
  switch (activation) {
    case Activation::tanh: return map_panels(a, [](float *x) { store(x, tanh(load(x))); });
    case Activation::sigmoid: return map_panels(a, [](float *x) { store(x, sigmoid(load(x))); });
    case Activation::elu: return map_panels(a, [](float *x) { store(x, elu(load(x))); });
    case Activation::softmax: return softmax(a);
    case Activation::none: return;
    case Activation::relu:
    case Activation::leaky_relu: {
      const Vec slope = set1(slope_of(activation));
      return map_panels(a, [&](float *p) {
        const Vec x = load(p), scaled = x * slope;
        store(p, select(scaled > x, scaled, x));
      });
    }
  }
}

inline void activation_gradient(Activation activation, const Activations &y, float *dy) {
  const std::ptrdiff_t offset = dy - y.data;
  const Vec one = set1(1.0f);
  auto scale = [&](auto &&factor) {
    map_panels(y, [&](float *p) { store(p + offset, load(p + offset) * factor(load(p))); });
  };
  switch (activation) {
    case Activation::none: return;
    case Activation::relu:
    case Activation::leaky_relu: {
      const Vec slope = set1(slope_of(activation));
      return scale([&](Vec v) { return select(v > Vec{}, one, slope); });
    }
    case Activation::tanh: return scale([&](Vec v) { return fma(-v, v, one); });
    case Activation::sigmoid: return scale([&](Vec v) { return v * (one - v); });
    case Activation::elu: return scale([&](Vec v) { return select(v > Vec{}, one, v + one); });
    case Activation::softmax: return softmax_gradient(y, dy);
  }
}

// ---- Weights

// to [k][kPanel] = w^T of the rows that are there, zeros for the others.
XC_INLINE void transpose_panel(const float *w, int64_t n_in, int64_t outs, float *to) {
  for (int64_t i = 0; i < kPanel; i += kLanes) {
    const auto row = [&](int64_t r) { return i + r < outs ? w + (i + r) * n_in : nullptr; };
    int64_t k = 0;
    for (; k + kLanes <= n_in; k += kLanes) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) square[r] = row(r) ? load(row(r) + k) : Vec{};
      transpose(square);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) store(to + (k + r) * kPanel + i, square[r]);
    }
    for (; k < n_in; ++k)
      for (int64_t r = 0; r < kLanes; ++r) to[k * kPanel + i + r] = row(r) ? row(r)[k] : 0.0f;
  }
}

inline void pack(const Packing &p) {
  for (int64_t n = p.begin; n < p.end; n += kPanel) {
    const int64_t outs = p.n_out - n < kPanel ? p.n_out - n : kPanel;
    const float *w = p.weight + n * p.n_in;
    transpose_panel(w, p.n_in, outs, p.forward + n * p.n_in);
    if (!p.backward) continue;
    for (int64_t k = 0; k < p.n_in; k += kPanel) {
      const int64_t width = p.n_in - k < kPanel ? p.n_in - k : kPanel;  // the rest of the panel stays 0
      float *to = p.backward + k * p.n_out + n * kPanel;
      for (int64_t i = 0; i < outs; ++i) copy_row(w + i * p.n_in + k, width, to + i * kPanel);
    }
  }
}

inline void adam(const AdamStep &a) {
  const Vec scale = set1(float(a.gradient_scale)), step = set1(float(-a.step_size)), epsilon = set1(float(a.epsilon));
  const Vec beta1 = set1(float(a.beta1)), rest1 = set1(float(1.0 - a.beta1));
  const Vec beta2 = set1(float(a.beta2)), rest2 = set1(float(1.0 - a.beta2));
  const Vec correction = set1(float(a.inverse_sqrt_correction2));
  auto update = [&](float *parameter, float *exp_avg, float *exp_avg_sq, const float *gradient) {
    const Vec g = load(gradient) * scale;
    const Vec m = fma(load(exp_avg), beta1, g * rest1), v = fma(load(exp_avg_sq), beta2, g * g * rest2);
    store(exp_avg, m);
    store(exp_avg_sq, v);
    store(parameter, fma(step, m / fma(sqrt(v), correction, epsilon), load(parameter)));
  };
  int64_t i = 0;
  for (; i + kLanes <= a.size; i += kLanes) update(a.parameters + i, a.exp_avg + i, a.exp_avg_sq + i, a.gradient + i);
  if (i == a.size) return;
  const size_t rest = size_t(a.size - i) * 4;
  float parameter[kLanes] = {}, exp_avg[kLanes] = {}, exp_avg_sq[kLanes] = {}, gradient[kLanes] = {};
  std::memcpy(parameter, a.parameters + i, rest);
  std::memcpy(exp_avg, a.exp_avg + i, rest);
  std::memcpy(exp_avg_sq, a.exp_avg_sq + i, rest);
  std::memcpy(gradient, a.gradient + i, rest);
  update(parameter, exp_avg, exp_avg_sq, gradient);
  std::memcpy(a.parameters + i, parameter, rest);
  std::memcpy(a.exp_avg + i, exp_avg, rest);
  std::memcpy(a.exp_avg_sq + i, exp_avg_sq, rest);
}

// Sums in double, where the square of a float is exact, since the norm must not depend on the width of the vectors.
inline double sum_of_squares(const float *x, int64_t size) {
  double sums[16] = {};
  int64_t i = 0;
  for (; i + 16 <= size; i += 16)
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) sums[j] += double(x[i + j]) * double(x[i + j]);
  for (; i < size; ++i) sums[i % 16] += double(x[i]) * double(x[i]);
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

inline constexpr Kernels kernels{kName, row_product, weight_product, column_sums, activate, activation_gradient, pack, adam, sum_of_squares};
