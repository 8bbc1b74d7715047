// The rows of a minibatch whose activations are held at once, and the blocks of them that are a thread's tasks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "nn/network.hpp"
#include "pool.hpp"

namespace xc::nn {

// The staged operands of the weight products of up to `capacity` rows.
class StagedRows {
 public:
  StagedRows(const Network &network, const Kernels &kernels, int64_t capacity)
      : network_(&network), staging_(kernels.staging), outputs_(network.layers.size() + 1, -1) {
    // Some lines are left free between panels, which spreads them over the sets of the caches.
    const int64_t steps = (capacity + kStagedRows - 1) / kStagedRows, gap = 24 * kPanel;
    x_stride_ = steps * staging_->x_floats + gap;
    dz_stride_ = steps * staging_->dz_floats + gap;
    int64_t size = 0;
    for (const Layer &layer : network.layers) {
      int64_t &output = outputs_[size_t(layer.source + 1)];
      if (output < 0) {
        output = size;
        size += panels_of(layer.n_in) * x_stride_;
      }
      gradients_.push_back(size);
      size += (layer.n_out + kOutBlock - 1) / kOutBlock * dz_stride_;
    }
    buffer_ = Buffer(size);
  }

  int64_t x_stride() const { return x_stride_; }
  int64_t dz_stride() const { return dz_stride_; }
  // The output of a source of layers, and a layer's gradient.
  float *x(int source) const { return buffer_.data() + outputs_[size_t(source + 1)]; }
  float *dz(int layer) const { return buffer_.data() + gradients_[size_t(layer)]; }

  // Stages the first `rows` rows of the workspace, at most kStagedRows, as block number `block`; blocks are kStagedRows apart.
  void stage(const Workspace &work, int64_t block, int64_t rows) {
    for (int source = kObs; source < int(network_->layers.size()); ++source) {
      if (outputs_[size_t(source + 1)] < 0) continue;
      const int64_t columns = source == kObs ? network_->n_obs : network_->layers[size_t(source)].n_out;
      staging_->x({work.output(source, 0), work.stride(), columns, rows, x(source) + block * staging_->x_floats, x_stride_});
    }
    for (int layer = 0; layer < int(network_->layers.size()); ++layer)
      staging_->dz({work.gradient(layer, 0), work.stride(), network_->layers[size_t(layer)].n_out, rows,
                    dz(layer) + block * staging_->dz_floats, dz_stride_});
  }

 private:
  const Network *network_;
  const StagingKernels *staging_;
  std::vector<int64_t> outputs_, gradients_;  // where they begin; -1 for an output that no layer reads
  int64_t x_stride_, dz_stride_;
  Buffer buffer_;
};

// Rows [first, first + rows) of a chunk, whose activations are in the rows of `work` from `at` on.
struct Block {
  int64_t index, first, rows, at;
  const Workspace *work;
};

// If the kernels stage activations, a block is what is staged together, and each thread has memory for the activations of one.
// Otherwise there is memory for those of all rows, which the gradients of the weights read.
class Chunk {
 public:
  static constexpr int64_t kMost = 1024;  // rows

  Chunk(const Network &network, const Kernels &kernels, int64_t max_minibatch, int num_threads)
      : capacity_(std::min(std::max(max_minibatch, kLeast), kMost)) {
    if (kernels.staging) {
      staged_.emplace(network, kernels, capacity_);
      for (int thread = 0; thread < num_threads; ++thread) works_.emplace_back(network, kStagedRows, true);
    } else {
      works_.emplace_back(network, capacity_, true);
    }
  }

  int64_t capacity() const { return capacity_; }
  static constexpr int64_t max_blocks() { return kMost / kMinBlock + 1; }

  // Splits the first `rows` rows into blocks and calls fn(block) for each in a run of the pool. Returns the number of blocks.
  template <class Fn>
  int64_t run(ThreadPool &pool, int64_t rows, Fn &&fn) {
    if (staged_) {
      const int64_t blocks = (rows + kStagedRows - 1) / kStagedRows;
      pool.run(blocks, [&](int64_t k, int thread) {
        const int64_t first = k * kStagedRows;
        fn(Block{k, first, std::min(kStagedRows, rows - first), 0, &works_[size_t(thread)]});
      });
      return blocks;
    }
    int64_t blocks = (rows + kMinBlock - 1) / kMinBlock;
    if (blocks > 8) blocks = ((rows + kBlock - 1) / kBlock + 7) / 8 * 8;  // which divides evenly among the usual numbers of threads
    pool.run(blocks, [&](int64_t k) {
      const int64_t first = rows * k / blocks;
      fn(Block{k, first, rows * (k + 1) / blocks - first, first, &works_[0]});
    });
    return blocks;
  }

  // Keeps what operands() needs of a block whose outputs and gradients are complete.
  void keep(const Block &block) {
    if (staged_) staged_->stage(*block.work, block.index, block.rows);
  }

  // Returns dz, x and their strides for the outputs of a layer from `begin` on, over all rows.
  WeightProduct operands(int layer, int64_t begin, int source) const {
    WeightProduct product{};
    if (staged_) {
      product.dz = staged_->dz(layer) + begin / kOutBlock * staged_->dz_stride();
      product.dz_stride = staged_->dz_stride();
      product.x = staged_->x(source);
      product.x_stride = staged_->x_stride();
    } else {
      product.dz = works_[0].gradient(layer, 0) + begin / kPanel * works_[0].stride();
      product.x = works_[0].output(source, 0);
      product.dz_stride = product.x_stride = works_[0].stride();
    }
    return product;
  }

 private:
  static constexpr int64_t kLeast = 256;   // the capacity for small minibatches
  static constexpr int64_t kBlock = 32;    // about as many rows as a task has if there are many: few enough that no thread
                                           // waits long for the last task of another
  static constexpr int64_t kMinBlock = 16; // as many as it has if there are few

  int64_t capacity_;
  std::vector<Workspace> works_;
  std::optional<StagedRows> staged_;
};

}  // namespace xc::nn
