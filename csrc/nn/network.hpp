// An actor-critic of fully connected layers: its shape, its packed weights, and the forward pass, which the learner and the
// collector share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "nn/buffer.hpp"
#include "nn/isa.hpp"

namespace xc::nn {

constexpr int kObs = -1;  // the source of a layer that reads the observations

// y = activation(x W^T + b). `weight` and `bias` are the indices in the flat parameters where W [n_out, n_in] and b [n_out]
// begin.
struct Layer {
  int64_t n_in, n_out, weight, bias;
  int source;  // the index of an earlier layer, or kObs
  Activation activation;
};

// The layers, each after its source. The heads are the layers that no other layer reads: actor_head gives the means or the
// logits, critic_head the value.
struct Network {
  std::vector<Layer> layers;
  int actor_head, critic_head;
  int64_t log_std;  // where the log standard deviations begin in the flat parameters; -1 for a Categorical policy
  int64_t n_obs, n_parameters;

  bool categorical() const { return log_std < 0; }
  int64_t action_size() const { return layers[size_t(actor_head)].n_out; }

  // Returns which layers a head needs.
  std::vector<char> path(int head) const {
    std::vector<char> needed(layers.size(), 0);
    for (int l = head; l != kObs; l = layers[size_t(l)].source) needed[size_t(l)] = 1;
    return needed;
  }
};

// The number of floats between two panels of an activation with room for `rows` rows. It is a multiple of the cache line,
// and spreads the panels over the sets of the caches.
inline int64_t panel_stride(int64_t rows) { return ((rows + 63) / 64 * 64 + 24) * kPanel; }

// The weights in the form that the matrix products read. Whenever the parameters change, they must be packed again.
class PackedWeights {
 public:
  // The outputs of a layer that one task packs.
  struct Part {
    int layer;
    int64_t begin, end;
  };

  PackedWeights(const Network &network, const Kernels &kernels, bool backward) : network_(&network), kernels_(&kernels) {
    int64_t size = 0;
    for (size_t l = 0; l < network.layers.size(); ++l) {
      const Layer &layer = network.layers[l];
      Place place{size, 0, -1};
      size += panels_of(layer.n_out) * kernels.packed_panel(layer.n_in);
      place.bias = size;
      size += panels_of(layer.n_out) * kPanel;
      if (backward && layer.source != kObs) {
        place.backward = size;
        size += panels_of(layer.n_in) * kernels.packed_panel(layer.n_out);
      }
      places_.push_back(place);
      for (int64_t n = 0; n < layer.n_out; n += kOutBlock) parts_.push_back({int(l), n, std::min(n + kOutBlock, layer.n_out)});
    }
    buffer_ = Buffer(size);
  }

  const std::vector<Part> &parts() const { return parts_; }

  void pack(const float *parameters, const Part &part) {
    const Layer &layer = network_->layers[size_t(part.layer)];
    const Place &place = places_[size_t(part.layer)];
    float *backward = place.backward < 0 ? nullptr : buffer_.data() + place.backward;
    kernels_->pack({parameters + layer.weight, layer.n_out, layer.n_in, part.begin, part.end, buffer_.data() + place.forward, backward});
    std::copy(parameters + layer.bias + part.begin, parameters + layer.bias + part.end, buffer_.data() + place.bias + part.begin);
  }
  void pack(const float *parameters) {
    for (const Part &part : parts_) pack(parameters, part);
  }

  const float *forward(size_t layer) const { return buffer_.data() + places_[layer].forward; }
  const float *backward(size_t layer) const { return buffer_.data() + places_[layer].backward; }
  const float *bias(size_t layer) const { return buffer_.data() + places_[layer].bias; }

 private:
  struct Place {
    int64_t forward, bias, backward;
  };
  const Network *network_;
  const Kernels *kernels_;
  std::vector<Place> places_;
  std::vector<Part> parts_;
  Buffer buffer_;
};

// The activations of up to `capacity` rows: the observations, every layer's output and, if wanted, its gradient.
class Workspace {
 public:
  Workspace(const Network &network, int64_t capacity, bool gradients) : stride_(panel_stride(capacity)) {
    int64_t size = panels_of(network.n_obs) * stride_;
    for (const Layer &layer : network.layers) {
      outputs_.push_back(size);
      size += panels_of(layer.n_out) * stride_;
    }
    gradients_ = size;
    buffer_ = Buffer(gradients ? 2 * size : size);
  }

  int64_t stride() const { return stride_; }
  // The first panel of a layer's output, from `row` on.
  float *output(int layer, int64_t row) const {
    return buffer_.data() + (layer == kObs ? 0 : outputs_[size_t(layer)]) + row * kPanel;
  }
  float *gradient(int layer, int64_t row) const { return output(layer, row) + gradients_; }

 private:
  int64_t stride_, gradients_;
  std::vector<int64_t> outputs_;
  Buffer buffer_;
};

// Copies rows of a row-major array [*, columns] into panels: the rows that `index` names, or the first ones if it is null.
inline void to_panels(const float *from, int64_t columns, const int64_t *index, int64_t rows, float *to, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) {
    const float *row = from + (index ? index[i] : i) * columns;
    for (int64_t c = 0; c < columns; c += kPanel) std::copy_n(row + c, std::min(kPanel, columns - c), to + (c / kPanel) * stride + i * kPanel);
  }
}

inline void from_panels(const float *from, int64_t stride, int64_t columns, int64_t rows, float *to) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < columns; c += kPanel)
      std::copy_n(from + (c / kPanel) * stride + i * kPanel, std::min(kPanel, columns - c), to + i * columns + c);
}

// Computes the layers in `needed` for rows [row, row + rows), whose observations are in the workspace. The result of a row
// does not depend on the other rows.
inline void forward_rows(const Network &network, const Kernels &kernels, const PackedWeights &weights, const Workspace &work,
                         const std::vector<char> &needed, int64_t row, int64_t rows) {
  for (size_t l = 0; l < network.layers.size(); ++l) {
    if (!needed[l]) continue;
    const Layer &layer = network.layers[l];
    RowProduct product{work.output(layer.source, row),
                       work.stride(),
                       layer.n_in,
                       weights.forward(l),
                       work.output(int(l), row),
                       work.stride(),
                       rows,
                       layer.n_out};
    product.bias = weights.bias(l);
    product.slope = slope_of(layer.activation);
    kernels.row_product(product);
    if (!piecewise_linear(layer.activation)) kernels.activate(layer.activation, {product.c, work.stride(), rows, layer.n_out});
  }
}

// The forward pass by itself, for a caller with rows of its own. It computes only the layers that `head` needs. Each thread
// needs an object of its own.
class ForwardPass {
 public:
  ForwardPass(const Network &network, int head, int64_t max_rows, const Kernels &kernels = best_kernels())
      : network_(&network), kernels_(&kernels), head_(head), max_rows_(max_rows), needed_(network.path(head)),
        work_(network, max_rows, false) {}

  // Computes out [rows, n_out of the head] of obs [rows, n_obs], both row-major, for any number of rows. `weights` must be
  // packed.
  void operator()(const PackedWeights &weights, const float *obs, int64_t rows, float *out) const {
    const int64_t columns = network_->layers[size_t(head_)].n_out;
    for (int64_t i = 0; i < rows; i += max_rows_) {
      const int64_t n = std::min(max_rows_, rows - i);
      to_panels(obs + i * network_->n_obs, network_->n_obs, nullptr, n, work_.output(kObs, 0), work_.stride());
      forward_rows(*network_, *kernels_, weights, work_, needed_, 0, n);
      from_panels(work_.output(head_, 0), work_.stride(), columns, n, out + i * columns);
    }
  }

 private:
  const Network *network_;
  const Kernels *kernels_;
  int head_;
  int64_t max_rows_;
  std::vector<char> needed_;
  Workspace work_;
};

}  // namespace xc::nn
