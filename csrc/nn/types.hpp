// What the kernels of every instruction set take: argument blocks, the layout of activations and packed weights.
//
// Activations and packed weights lie in panels of kPanel columns. Column j of row i of an activation [rows, columns] is
// at (j / kPanel) * stride + i * kPanel + j % kPanel: a tile of the matrix product then reads and writes whole cache
// lines, both when rows are the samples (forward, gradients of inputs) and when they are the inner dimension (gradients
// of weights).
#pragma once

#include <cstdint>

namespace xc::nn {

constexpr int64_t kPanel = 16;

inline int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// The numbers are those of xcfast/policy/native_form.py.
enum class Activation : int { none, relu, leaky_relu, tanh, sigmoid, elu, softmax };

// f(x) = max(x, slope x) for the piecewise linear ones, which the matrix product applies itself; 1 for the others.
inline float slope_of(Activation activation) {
  return activation == Activation::relu ? 0.0f : activation == Activation::leaky_relu ? 0.01f : 1.0f;
}
inline bool piecewise_linear(Activation activation) { return activation <= Activation::leaky_relu; }

// c [rows, columns] = a [rows, depth] b, for the forward pass and the gradients of inputs. Every element of c is one
// chain of multiply-adds over the depth in order, whatever the rows beside it.
struct RowProduct {
  const float *a;
  int64_t a_stride, depth;
  const float *b;  // panel p is [depth, kPanel] at b + p * depth * kPanel
  float *c;
  int64_t c_stride, rows, columns;
  const float *bias = nullptr;  // as many as columns, in whole panels; then y = max(y, slope y)
  bool accumulate = false;      // the chain continues what c holds
  const float *gate = nullptr;  // laid out as c: y times slope where gate <= 0
  float slope = 1.0f;
};

// out [n_out, n_in] (row-major) = dz^T x over the samples in order, bias_out [n_out] = sum of dz, for the n_out <=
// kOutBlock outputs of one task. accumulate: continues what out and bias_out hold.
constexpr int64_t kOutBlock = 32;
struct WeightProduct {
  const float *dz;
  int64_t dz_stride, n_out;
  const float *x;
  int64_t x_stride, n_in, samples;
  float *out, *bias_out;
  bool accumulate;
};

// Panel-laid activations [rows, columns].
struct Activations {
  float *data;
  int64_t stride, rows, columns;
};

// Outputs [begin, end) of a weight matrix [n_out, n_in]; begin is a multiple of kPanel. forward: panels of outputs
// [n_in, kPanel]; backward: panels of inputs [n_out, kPanel], may be null. Columns beyond the matrix become 0.
struct Packing {
  const float *weight;
  int64_t n_out, n_in, begin, end;
  float *forward, *backward;
};

// One Adam step (torch.optim.Adam's formula) with gradient_scale times the gradient.
struct AdamStep {
  float *parameters, *exp_avg, *exp_avg_sq;
  const float *gradient;
  int64_t size;
  double beta1, beta2, epsilon, gradient_scale;
  double step_size, inverse_sqrt_correction2;  // lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
};

// One instruction set's functions.
struct Kernels {
  const char *name;
  void (*row_product)(const RowProduct &);
  void (*weight_product)(const WeightProduct &);
  void (*activate)(Activation, const Activations &);
  void (*activation_gradient)(Activation, const Activations &y, float *dy);  // dy, laid out as y, becomes the gradient of the input
  void (*pack)(const Packing &);
  void (*adam)(const AdamStep &);
  double (*sum_of_squares)(const float *, int64_t size);
};

}  // namespace xc::nn
