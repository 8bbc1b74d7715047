// Tests of the matrix products of every precision, without Python, for the sanitizers: against sums in double, with bounds
// that are derived. Buffers have exactly the size that the code may touch. A seed as argument repeats a failing run.
#include <cmath>
#include <cstdio>
#include <limits>
#include <utility>
#include <vector>

#include "check.hpp"
#include "soft_tiles.hpp"

namespace {

using namespace xc::nn;

const float kNaN = std::numeric_limits<float>::quiet_NaN();
const Precision kPrecisions[] = {Precision::fp32, Precision::bf16x3, Precision::bf16};

// A float32 matrix in panels of exactly the wanted rows. What lies beyond its columns is NaN.
struct Panels {
  int64_t rows, columns;
  std::vector<float> data;
  Panels(int64_t r, int64_t c) : rows(r), columns(c), data(size_t(panels_of(c) * r * kPanel), kNaN) {}
  Panels(Rng &rng, int64_t r, int64_t c, float scale) : Panels(r, c) {
    std::normal_distribution<float> d(0, scale);
    for (int64_t i = 0; i < r; ++i)
      for (int64_t j = 0; j < c; ++j) at(i, j) = d(rng);
  }
  int64_t stride() const { return rows * kPanel; }
  float &at(int64_t i, int64_t j) { return data[size_t(j / kPanel * stride() + i * kPanel + j % kPanel)]; }
  float at(int64_t i, int64_t j) const { return const_cast<Panels *>(this)->at(i, j); }
};

// The nearest number with 8 significant bits, ties to even, by double arithmetic; bfloat16's range is float32's.
double bf16(double x) {
  if (x == 0) return 0;
  const int exponent = std::max(std::ilogb(x), -126) - 7;
  return std::ldexp(std::nearbyint(std::ldexp(x, -exponent)), exponent);
}

// The bounds. u = 2^-8 is the unit roundoff of bfloat16 and e = 2^-24 that of float32; n products are summed.
//
// bf16: hi(x) = x (1 + d), |d| <= u. So the sum of hi(x) hi(y) is within (2 u + u^2) sum |x y| of the exact one. Each hi hi is
// exact in float32 (16 bits), and n terms that are summed in float32, in any order, have an error of at most n e sum |hi hi|
// to first order, where sum |hi hi| <= (1 + u)^2 sum |x y|.
//
// bf16x3: let X = hi(x) + lo(x). |x - hi| <= u |x|, so |lo| <= u (1 + u) |x|, and |x - X| <= u^2 |x|. The sum of hi hi + hi lo +
// lo hi = X Y - lo lo is therefore within (2 u^2 + u^4) + u^2 (1 + u)^2 < 3.01 u^2 of the exact one, relative to sum |x y|.
// There are 3 n terms, whose absolute values sum to at most (1 + u)^2 (1 + 2 u) sum |x y|.
//
// fp32: no rounding before the sum, and n roundings of the products where they are not fused.
//
// Hardware counts denormals as zeros: each operand below 2^-126 changes a term by as much times the other operand, each sum
// by 2^-126. Of the operands, lo is the one that is small: `absolute` counts them all.
struct Sum {
  double exact = 0, rounded = 0, size = 0, sum_x = 0, sum_y = 0, start = 0, start_size = 0;
  int64_t n = 0;
  void add(Precision precision, double x, double y) {
    exact += x * y;
    size += std::fabs(x * y);
    sum_x += std::fabs(x);
    sum_y += std::fabs(y);
    ++n;
    const double x_hi = bf16(x), y_hi = bf16(y);
    if (precision == Precision::fp32) rounded += x * y;
    if (precision == Precision::bf16) rounded += x_hi * y_hi;
    if (precision == Precision::bf16x3) rounded += x_hi * y_hi + x_hi * bf16(y - y_hi) + bf16(x - x_hi) * y_hi;
  }
  // A value that is added as it is: what the chain continues, or the bias.
  void carry(double x) {
    start += x;
    start_size += std::fabs(x);
  }
  double absolute() const { return 0x1p-126 * (3 * double(n) + 8 + 4 * (sum_x + sum_y)); }
  // The error of the sum of rounded operands; 4 more roundings for what a chain continues, the bias and the slope, and the
  // terms of second order.
  double accumulation(Precision precision) const {
    const double terms = precision == Precision::bf16 ? double(n) : precision == Precision::bf16x3 ? 3 * double(n) : 2 * double(n);
    const double growth = precision == Precision::fp32 ? 1 : precision == Precision::bf16 ? 1.008 : 1.016;
    return (terms + 4) * 0x1p-24 * (growth * size + start_size) + absolute();
  }
  double rounding(Precision precision) const {
    const double u = 0x1p-8;
    return (precision == Precision::fp32 ? 0 : precision == Precision::bf16 ? 2 * u + u * u : 3.01 * u * u) * size;
  }
};

// How often an element's error is above the bound of the next better precision: were it never, the bounds would say nothing.
struct Vacuity {
  int64_t elements = 0, above = 0;
} vacuity[3];

void check_element(Precision precision, const Sum &sum, double slope, float result) {
  const double scaled = (sum.exact + sum.start) * slope, of_rounded = (sum.rounded + sum.start) * slope;
  CHECK(std::fabs(double(result) - of_rounded) <= sum.accumulation(precision));
  CHECK(std::fabs(double(result) - scaled) <= sum.rounding(precision) + sum.accumulation(precision));
  if (precision == Precision::fp32 || slope != 1) return;
  const auto better = precision == Precision::bf16 ? Precision::bf16x3 : Precision::fp32;
  ++vacuity[int(precision)].elements;
  vacuity[int(precision)].above += std::fabs(double(result) - scaled) > sum.rounding(better) + sum.accumulation(better);
}

float random_scale(Rng &rng) { return rng() % 8 ? 1.0f : 1e-35f; }  // with 1e-35, lo is often a denormal

// c = a w^T or a w with packed weights, with bias and slope, gate, or sums to continue.
void test_row_product(Rng &rng) {
  const int64_t rows = pick(rng, {1, 2, 5, 15, 16, 17, 31, 32, 33, 48, 64, 70}), n_in = pick(rng, {1, 3, 16, 17, 27, 32, 33, 64, 270});
  const int64_t n_out = pick(rng, {1, 2, 8, 16, 17, 31, 32, 33, 48, 70, 271});
  const bool backward = rng() % 2, accumulate = rng() % 2, piecewise = rng() % 2;
  const float slope = piecewise ? 0.25f : 1.0f;
  const int64_t depth = backward ? n_out : n_in, columns = backward ? n_in : n_out;
  const Panels a(rng, rows, depth, random_scale(rng)), gate(rng, rows, columns, 1), start(rng, rows, columns, 1);
  const auto weight = normal<float>(rng, n_out * n_in);
  auto bias = normal<float>(rng, panels_of(columns) * kPanel);
  for (Precision precision : kPrecisions)
    for (const Kernels *kernels : kernels_with_model(precision)) {
      std::vector<float> forward(size_t(panels_of(n_out) * kernels->packed_panel(n_in)));
      std::vector<float> back(size_t(panels_of(n_in) * kernels->packed_panel(n_out)));
      for (int64_t n = 0; n < n_out; n += kOutBlock)
        kernels->pack({weight.data(), n_out, n_in, n, std::min(n + kOutBlock, n_out), forward.data(), back.data()});
      Panels c = accumulate ? start : Panels(rows, columns);
      RowProduct product{a.data.data(), a.stride(), depth, backward ? back.data() : forward.data(), c.data.data(), c.stride(), rows, columns};
      product.accumulate = accumulate;
      product.slope = slope;
      if (backward && piecewise) product.gate = gate.data.data();
      if (!backward) product.bias = bias.data();
      kernels->row_product(product);
      CHECK(!SoftTiles::configured());
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) {
          Sum sum;
          for (int64_t d = 0; d < depth; ++d) sum.add(precision, a.at(i, d), weight[size_t(backward ? d * n_in + j : j * n_in + d)]);
          if (accumulate) sum.carry(start.at(i, j));
          if (!backward) sum.carry(bias[size_t(j)]);
          // Near 0 the sign of y, on which the slope depends, may be wrong: either is then within the bound.
          const double y = sum.rounded + sum.start, here = product.gate ? double(gate.at(i, j)) : product.bias ? y : 1.0;
          if (product.bias && std::fabs(y) <= sum.accumulation(precision)) continue;
          check_element(precision, sum, here > 0 ? 1 : slope, c.at(i, j));
        }
    }
}

// out = dz^T x, of operands that are staged if the kernels do that, and the sums of the columns of dz.
void test_weight_product(Rng &rng) {
  const int64_t samples = pick(rng, {1, 2, 7, 31, 32, 33, 64, 97, 300, 600}), n_in = pick(rng, {1, 3, 16, 17, 27, 32, 33, 48, 70});
  const int64_t n_out = pick(rng, {1, 2, 8, 15, 16, 17, 31, 32});
  const Panels dz(rng, samples, n_out, random_scale(rng)), x(rng, samples, n_in, 1);
  const bool accumulate = rng() % 2;
  const auto start = normal<float>(rng, n_out * n_in);
  for (Precision precision : kPrecisions)
    for (const Kernels *kernels : kernels_with_model(precision)) {
      auto out = start;
      WeightProduct product{dz.data.data(), dz.stride(), n_out, x.data.data(), x.stride(), n_in, samples, out.data(), accumulate};
      std::vector<float> staged_x, staged_dz;
      if (const StagingKernels *staging = kernels->staging) {
        const int64_t steps = (samples + kStagedRows - 1) / kStagedRows;
        staged_x.resize(size_t(panels_of(n_in) * steps * staging->x_floats));
        staged_dz.resize(size_t(steps * staging->dz_floats));
        product.x_stride = steps * staging->x_floats;
        product.dz_stride = steps * staging->dz_floats;
        for (int64_t step = 0; step < steps; ++step) {
          const int64_t row = step * kStagedRows, count = std::min(kStagedRows, samples - row);
          staging->x({&x.data[size_t(row * kPanel)], x.stride(), n_in, count, &staged_x[size_t(step * staging->x_floats)], product.x_stride});
          staging->dz({&dz.data[size_t(row * kPanel)], dz.stride(), n_out, count, &staged_dz[size_t(step * staging->dz_floats)], product.dz_stride});
        }
        product.x = staged_x.data();
        product.dz = staged_dz.data();
      }
      kernels->weight_product(product);
      CHECK(!SoftTiles::configured());
      std::vector<float> sums_of_dz(static_cast<size_t>(n_out));
      kernels->column_sums({const_cast<float *>(dz.data.data()), dz.stride(), samples, n_out}, sums_of_dz.data());
      for (int64_t o = 0; o < n_out; ++o) {
        Sum sums;
        for (int64_t s = 0; s < samples; ++s) sums.add(Precision::fp32, dz.at(s, o), 1);
        check_element(Precision::fp32, sums, 1, sums_of_dz[size_t(o)]);
        for (int64_t j = 0; j < n_in; ++j) {
          Sum sum;
          for (int64_t s = 0; s < samples; ++s) sum.add(precision, dz.at(s, o), x.at(s, j));
          if (accumulate) sum.carry(start[size_t(o * n_in + j)]);
          check_element(precision, sum, 1, out[size_t(o * n_in + j)]);
        }
      }
    }
}

// A row that is NaN or infinite is not finite in the result, and spoils no other row.
void test_what_is_not_finite_stays_in_its_row(Rng &rng) {
  const int64_t rows = 40, n_in = pick(rng, {5, 33}), n_out = pick(rng, {3, 32}), bad = int64_t(rng() % rows);
  const uint32_t patterns[] = {0x7f800000, 0xff800000, 0x7fffffff, 0xffffffff, 0x7f800001, 0x7fc00000};
  const auto weight = normal<float>(rng, n_out * n_in);
  for (uint32_t pattern : patterns) {
    Panels a(rng, rows, n_in, 1);
    std::memcpy(&a.at(bad, int64_t(rng() % uint64_t(n_in))), &pattern, 4);
    for (Precision precision : kPrecisions)
      for (const Kernels *kernels : kernels_with_model(precision)) {
        std::vector<float> packed(size_t(panels_of(n_out) * kernels->packed_panel(n_in)));
        kernels->pack({weight.data(), n_out, n_in, 0, n_out, packed.data(), nullptr});
        Panels c(rows, n_out);
        kernels->row_product({a.data.data(), a.stride(), n_in, packed.data(), c.data.data(), c.stride(), rows, n_out});
        bool right = true;
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < n_out; ++j) right &= std::isfinite(c.at(i, j)) == (i != bad);
        CHECK(right);
      }
  }
}

}  // namespace

int main(int argc, char **argv) {
  const uint64_t seed = seed_of(argc, argv);
  std::printf("test_half, seed %llu:", static_cast<unsigned long long>(seed));
  for (const Kernels *kernels : kernels_with_model(Precision::bf16)) std::printf(" %s", kernels->name);
  std::printf("\n");
  Rng rng(seed);
  for (int round = 0; round < 60 && failures == 0; ++round) {
    test_row_product(rng);
    test_weight_product(rng);
    if (round < 5) test_what_is_not_finite_stays_in_its_row(rng);
  }
  for (Precision precision : {Precision::bf16x3, Precision::bf16}) {
    const Vacuity &v = vacuity[int(precision)];
    CHECK(v.elements > 0 && v.above > 0);
    std::printf("precision %d: %lld of %lld errors are above the bound of the next better one\n", int(precision),
                static_cast<long long>(v.above), static_cast<long long>(v.elements));
  }
  std::printf(failures ? "%d failures\n" : "ok\n", failures);
  return failures != 0;
}
