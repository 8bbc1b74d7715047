// The arguments of the kernels, which are the same for every instruction set.
//
// Activations and packed weights are stored in panels of kPanel columns. Column j of row i of an activation [rows, columns]
// is at (j / kPanel) * stride + i * kPanel + j % kPanel. So a tile of a matrix product reads and writes whole cache lines,
// both where the rows are the samples (forward pass, gradients of inputs) and where they are the inner dimension (gradients
// of weights).
#pragma once

#include <cstdint>

namespace xc::nn {

constexpr int64_t kPanel = 16;

inline int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// xcfast/policy/native_form.py has the same numbers.
enum class Activation : int { none, relu, leaky_relu, tanh, sigmoid, elu, softmax };

// The slope of a piecewise linear activation max(x, slope x), which the matrix product applies itself; 1 for the others.
inline float slope_of(Activation activation) {
  return activation == Activation::relu ? 0.0f : activation == Activation::leaky_relu ? 0.01f : 1.0f;
}
inline bool piecewise_linear(Activation activation) { return activation <= Activation::leaky_relu; }

// c [rows, columns] = a [rows, depth] b, for the forward pass and the gradients of inputs. Every element of c is one chain
// of multiply-adds over the depth, in order, and does not depend on which rows are computed together.
struct RowProduct {
  const float *a;
  int64_t a_stride, depth;
  const float *b;  // as `pack` has made it; in float32, panel p is [depth, kPanel] at b + p * depth * kPanel
  float *c;
  int64_t c_stride, rows, columns;
  const float *bias = nullptr;  // [columns, padded to whole panels], added at the end; then y becomes max(y, slope y)
  bool accumulate = false;      // whether the chain continues the values in c
  const float *gate = nullptr;  // in the layout of c: y is multiplied by slope where gate <= 0
  float slope = 1.0f;
};

// out [n_out, n_in] (row-major) = dz^T x, over the samples in order, for the n_out <= kOutBlock outputs of one task.
// accumulate: whether the sums continue the values in out. dz and x are staged, if the kernels have StagingKernels.
constexpr int64_t kOutBlock = 32;
struct WeightProduct {
  const float *dz;
  int64_t dz_stride, n_out;
  const float *x;
  int64_t x_stride, n_in, samples;
  float *out;
  bool accumulate;
};

// At most kStagedRows samples of a matrix [*, columns] in panels, which become one step of an operand of a WeightProduct.
constexpr int64_t kStagedRows = 32;
struct Staging {
  const float *from;
  int64_t from_stride, columns, rows;
  float *to;
  int64_t to_stride;
};

// Activations [rows, columns] in panels.
struct Activations {
  float *data;
  int64_t stride, rows, columns;
};

// Packs outputs [begin, end) of a weight matrix [n_out, n_in]; begin is a multiple of kOutBlock, and at most as many outputs
// are packed. `forward` receives panels of outputs [n_in, kPanel], `backward` panels of inputs [n_out, kPanel] unless it is
// null, in the form that the products of the same kernels read. Columns beyond the matrix are 0.
struct Packing {
  const float *weight;
  int64_t n_out, n_in, begin, end;
  float *forward, *backward;
};

// One Adam step, by torch.optim.Adam's formula, with the gradient multiplied by gradient_scale.
struct AdamStep {
  float *parameters, *exp_avg, *exp_avg_sq;
  const float *gradient;
  int64_t size;
  double beta1, beta2, epsilon, gradient_scale;
  double step_size, inverse_sqrt_correction2;  // lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
};

// How the operands of the matrix products are rounded. Products accumulate in float32, and all else is float32.
//   bf16:   x becomes hi(x), the nearest bfloat16 (ties to even).
//   bf16x3: x becomes hi(x) + lo(x), where lo(x) = hi(x - hi(x)); a product x y becomes hi hi + hi lo + lo hi.
enum class Precision : int { fp32, bf16x3, bf16 };

// Kernels whose weight product reads operands in another form than the activations: each block of kStagedRows samples is
// staged while it is in the cache. A staged x has a panel for each kPanel columns, a staged dz one for each kOutBlock.
struct StagingKernels {
  void (*x)(const Staging &);
  void (*dz)(const Staging &);
  int64_t x_floats, dz_floats;  // of one panel for kStagedRows samples
};

// The functions of one instruction set and precision.
struct Kernels {
  const char *name;
  void (*row_product)(const RowProduct &);
  void (*weight_product)(const WeightProduct &);
  void (*column_sums)(const Activations &, float *out);  // out [columns]
  void (*activate)(Activation, const Activations &);
  void (*activation_gradient)(Activation, const Activations &y, float *dy);  // turns dy into the gradient of the input
  void (*pack)(const Packing &);
  void (*adam)(const AdamStep &);
  double (*sum_of_squares)(const float *, int64_t size);
  // The depth of a panel of packed weights is padded to a multiple of depth_step.
  int64_t depth_step = 1, floats_per_depth = kPanel;
  const StagingKernels *staging = nullptr;  // null if weight_product reads the activations themselves
  bool emulated = false;                    // whether other instructions imitate the unit that has this precision

  int64_t packed_panel(int64_t depth) const { return (depth + depth_step - 1) / depth_step * depth_step * floats_per_depth; }
};

}  // namespace xc::nn
