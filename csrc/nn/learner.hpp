// The PPO update. xcfast/learners/native.py documents it, and xcfast/learners/torch.py is its reference.
//
// The work is split into tasks whose sizes do not depend on the number of threads. Every sum runs within a task, or over the
// tasks in their order. So the result has the same bits at any number of threads. A gradient step is three runs of the pool:
//   1. forward pass, loss, gradients of the inputs and the sums for those of the biases, in tasks of rows;
//   2. gradients of the weights, in tasks of outputs, each over all rows;
//   3. Adam and packing, in tasks of outputs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/gae.hpp"
#include "kernels/random.hpp"
#include "nn/chunk.hpp"
#include "nn/loss.hpp"
#include "nn/network.hpp"
#include "pool.hpp"

namespace xc::nn {

struct AdamSettings {
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-5;
};

// The parameters and Adam's moments, each [n_parameters], in the caller's memory.
struct Parameters {
  float *values, *exp_avg, *exp_avg_sq;
};

// A full rollout. The arrays are [num_steps, num_envs, ...]. An update writes values, log_probs, advantages and returns.
struct RolloutView {
  int64_t num_steps, num_envs, num_finals;
  const float *obs, *last_obs, *final_obs;
  const int64_t *final_index;
  const float *actions;
  const int64_t *discrete_actions;
  const float *rewards;  // scaled
  const uint8_t *terminated, *truncated;
  float *values, *log_probs, *advantages, *returns;
  const uint8_t *action_masks = nullptr;  // [num_steps, num_envs, number of actions]; null: all actions are allowed

  // The observations and actions as a batch of `size` rows.
  Rows rows(int64_t size) const { return {obs, actions, discrete_actions, size, action_masks}; }
};

struct UpdateSettings {
  double gamma, gae_lambda;
  bool normalize_advantages;
  double max_norm;  // the limit of the gradient's norm; may be infinite
  uint64_t seed;
  uint32_t iteration;
  int64_t n_epochs, n_minibatch, env_offset;
  const double *learning_rates;  // [n_epochs * n_minibatch]
  int64_t steps_done;            // the number of Adam steps before this update
  // An epoch whose mean approximate KL is larger is the last one.
  double max_approx_kl = std::numeric_limits<double>::infinity();
};

struct UpdateSums {
  LossSums losses;
  double grad_norm = 0;
  int64_t epochs = 0;  // how many epochs ran
  double last_kl = 0;  // the KL of the penalty, summed over the samples of the last epoch
};

class Learner {
 public:
  // pause: a function that the calling thread calls after at most Chunk::kMost rows each. If it throws, the call of the learner
  // ends; an update then leaves the weights as the gradient steps so far have made them.
  Learner(const Network &network, const Parameters &parameters, const LossSettings &loss, const AdamSettings &adam,
          int64_t max_minibatch, int num_threads, const Kernels &kernels = best_kernels(), std::function<void()> pause = nullptr)
      : network_(network),
        kernels_(&kernels),
        parameters_(parameters),
        loss_(loss),
        adam_(adam),
        pause_(std::move(pause)),
        pool_(num_threads),
        weights_(network_, kernels, true),
        chunk_(network_, kernels, max_minibatch, pool_.num_threads()),
        all_(network_.layers.size(), 1),
        value_path_(network_.path(network_.critic_head)),
        gradient_(network_.n_parameters) {
    // Sorted by outputs, so that the parts of the layers alternate: equal shares of the tasks are equal shares of the work. Small
    // parts come last, where they even out what the shares still differ by.
    parts_ = weights_.parts();
    const auto place = [](const PackedWeights::Part &part) { return std::make_pair(part.end - part.begin < kOutBlock, part.begin); };
    std::stable_sort(parts_.begin(), parts_.end(), [&](const auto &a, const auto &b) { return place(a) < place(b); });
    for (const Layer &layer : network_.layers) {
      biases_.push_back(n_biases_);
      n_biases_ += layer.n_out;
    }
    last_reader_.assign(network_.layers.size(), -1);
    for (int l = int(network_.layers.size()) - 1; l >= 0; --l) {
      const int source = network_.layers[size_t(l)].source;
      if (source != kObs) last_reader_[size_t(source)] = l;  // the backward pass runs from the last layer to the first
    }
    const size_t blocks = size_t(Chunk::max_blocks());
    block_sums_.resize(blocks);
    block_bias_.resize(blocks * size_t(n_biases_));
    block_log_std_.resize(blocks * size_t(network_.log_std < 0 ? 0 : network_.action_size()));
    block_scratch_.resize(2 * blocks * size_t(network_.action_size()));
    squares_.resize(parts_.size());
  }
  Learner(const Learner &) = delete;
  Learner &operator=(const Learner &) = delete;

  const Network &network() const { return network_; }
  float *gradient() const { return gradient_.data(); }
  const LossSettings &loss() const { return loss_; }
  void set_kl_coef(double kl_coef) { loss_.kl_coef = kl_coef; }

  // Packs all weights. Call it after other code has changed the parameters.
  void pack() {
    pool_.run(int64_t(parts_.size()), [&](int64_t task) { weights_.pack(parameters_.values, parts_[size_t(task)]); });
  }

  // Computes the values of `rows`. Also computes the log-probabilities of the actions if `log_probs` is not null, and the
  // outputs of the actor's head [*, action_size] if `outputs` is not null.
  void evaluate(const Rows &rows, float *values, float *log_probs, float *outputs = nullptr) {
    for (int64_t start = 0; start < rows.size; start += chunk_.capacity()) {
      if (pause_) pause_();
      const int64_t size = std::min(chunk_.capacity(), rows.size - start);
      const Gaussian gaussian = this->gaussian();
      chunk_.run(pool_, size, [&](const Block &block) {
        const Workspace &work = *block.work;
        const int64_t first = start + block.first;
        to_panels(rows.obs + first * network_.n_obs, network_.n_obs, nullptr, block.rows, work.output(kObs, block.at), work.stride());
        forward_rows(network_, *kernels_, weights_, work, log_probs ? all_ : value_path_, block.at, block.rows);
        for (int64_t i = 0; i < block.rows; ++i) {
          values[first + i] = *work.output(network_.critic_head, block.at + i);
          if (log_probs) log_probs[first + i] = float(log_prob(gaussian, rows, first + i, block, i));
        }
        if (outputs)
          from_panels(work.output(network_.actor_head, block.at), work.stride(), network_.action_size(), block.rows,
                      outputs + first * network_.action_size());
      });
    }
  }

  // Writes the gradient of a minibatch's loss to gradient(). Advantages are normalized with `moments`.
  LossSums compute_gradients(const Batch &batch, const AdvantageMoments &moments) {
    const Gaussian gaussian = this->gaussian(loss_.kl_penalty ? batch.old.log_std : nullptr);
    const int64_t log_stds = network_.log_std < 0 ? 0 : network_.action_size();
    std::vector<double> d_log_std(size_t(log_stds), 0.0);
    LossSums sums;
    if (batch.size == 0) std::fill(gradient(), gradient() + network_.n_parameters, 0.0f);
    for (int64_t start = 0; start < batch.size; start += chunk_.capacity()) {
      if (pause_) pause_();
      const int64_t size = std::min(chunk_.capacity(), batch.size - start);
      const int64_t blocks = chunk_.run(pool_, size, [&](const Block &block) {
        gather(batch, start, block);
        forward_rows(network_, *kernels_, weights_, *block.work, all_, block.at, block.rows);
        loss_rows(gaussian, batch, moments, start, block);
        backward_rows(block);
        chunk_.keep(block);
      });
      for (int64_t block = 0; block < blocks; ++block) {
        sums.add(block_sums_[size_t(block)]);
        for (int64_t j = 0; j < log_stds; ++j) d_log_std[size_t(j)] += block_log_std_[size_t(block * log_stds + j)];
      }
      const bool last = start + size == batch.size;
      pool_.run(int64_t(parts_.size()), [&](int64_t task) {
        weight_gradient(parts_[size_t(task)], size, blocks, start > 0);
        if (last) square(task);
      });
    }
    for (int64_t j = 0; j < log_stds; ++j) gradient()[network_.log_std + j] = float(d_log_std[size_t(j)]);
    return sums;
  }

  // Takes Adam step number `step` (from 1) with gradient(), whose norm it limits to max_norm. Returns the norm before.
  // changed: whether the caller has changed the gradient since compute_gradients.
  double apply(double learning_rate, double max_norm, int64_t step, bool changed = true) {
    if (changed) pool_.run(int64_t(parts_.size()), [&](int64_t task) { square(task); });
    double total = network_.log_std < 0 ? 0.0 : kernels_->sum_of_squares(gradient() + network_.log_std, network_.action_size());
    for (double part : squares_) total += part;
    const double norm = std::sqrt(total), limit = max_norm / (norm + 1e-6);
    AdamStep adam{};
    adam.beta1 = adam_.beta1;
    adam.beta2 = adam_.beta2;
    adam.epsilon = adam_.epsilon;
    adam.gradient_scale = limit < 1.0 ? limit : 1.0;
    adam.step_size = learning_rate / (1.0 - std::pow(adam_.beta1, double(step)));
    adam.inverse_sqrt_correction2 = 1.0 / std::sqrt(1.0 - std::pow(adam_.beta2, double(step)));
    if (network_.log_std >= 0) adam_range(adam, network_.log_std, network_.action_size());
    pool_.run(int64_t(parts_.size()), [&](int64_t task) {
      const PackedWeights::Part &part = parts_[size_t(task)];
      const Layer &layer = network_.layers[size_t(part.layer)];
      adam_range(adam, layer.weight + part.begin * layer.n_in, (part.end - part.begin) * layer.n_in);
      adam_range(adam, layer.bias + part.begin, part.end - part.begin);
      weights_.pack(parameters_.values, part);
    });
    return norm;
  }

  // Does the whole update on a full rollout.
  UpdateSums update(const RolloutView &rollout, const UpdateSettings &settings) {
    begin(rollout, settings);
    const int64_t samples = rollout.num_steps * rollout.num_envs;
    UpdateSums sums;
    while (sums.epochs < settings.n_epochs) {
      LossSums losses;
      int64_t k = sums.epochs++ * settings.n_minibatch;
      for (; k < sums.epochs * settings.n_minibatch; ++k) {
        const Batch batch = minibatch(rollout, settings, k);
        const AdvantageMoments moments = settings.normalize_advantages ? advantages_[size_t(k)].moments() : AdvantageMoments{};
        losses.add(compute_gradients(batch, moments));
        sums.grad_norm += apply(settings.learning_rates[k], settings.max_norm, settings.steps_done + k + 1, false);
      }
      sums.losses.add(losses);
      sums.last_kl = losses.kl;
      if (losses.approx_kl > settings.max_approx_kl * double(samples)) break;
    }
    return sums;
  }

  // The update in parts, for a caller that joins several ranks in between: call begin, then for each minibatch
  // compute_gradients(minibatch(...), moments) and apply.
  void begin(const RolloutView &rollout, const UpdateSettings &settings) {
    pack();
    prepare(rollout, settings);
  }
  // The sums of each minibatch of the current update; zeros if advantages are not normalized.
  const std::vector<AdvantageSums> &advantages() const { return advantages_; }
  // Returns this rank's part of minibatch k.
  Batch minibatch(const RolloutView &rollout, const UpdateSettings &settings, int64_t k) const {
    const int64_t epoch = k / settings.n_minibatch, samples = rollout.num_steps * rollout.num_envs;
    const int64_t *offsets = offsets_.data() + epoch * (settings.n_minibatch + 1) + k % settings.n_minibatch;
    const int64_t size = offsets[1] - offsets[0];
    return {rollout.rows(size), rollout.log_probs, rollout.advantages, rollout.returns,
            indices_.data() + epoch * samples + offsets[0], size, {old_outputs_.data(), old_log_std_.data()}, rollout.values};
  }

 private:
  Gaussian gaussian(const float *old_log_std = nullptr) const {
    if (network_.categorical()) return Gaussian(nullptr, 0);
    return Gaussian(parameters_.values + network_.log_std, network_.action_size(), old_log_std);
  }

  // Copies the observations of a block; the chunk begins at row `start` of the batch.
  void gather(const Batch &batch, int64_t start, const Block &block) {
    const int64_t from = start + block.first, *index = batch.index ? batch.index + from : nullptr;
    const float *obs = index ? batch.obs : batch.obs + from * network_.n_obs;
    to_panels(obs, network_.n_obs, index, block.rows, block.work->output(kObs, block.at), block.work->stride());
  }

  // Returns the log-probability of the action in row `sample` of the batch, for the outputs in row i of the block. If the policy
  // is Categorical, also writes the log-probabilities of all actions to the block's scratch memory.
  double log_prob(const Gaussian &gaussian, const Rows &batch, int64_t sample, const Block &block, int64_t i, double *entropy = nullptr) {
    const PanelRow output(block.work->output(network_.actor_head, block.at + i), block.work->stride());
    if (!network_.categorical()) {
      if (entropy) *entropy = gaussian.entropy();
      return gaussian.log_prob(output, batch.actions + sample * network_.action_size());
    }
    double *log_p = block_scratch_.data() + 2 * block.index * network_.action_size();
    const double h = log_softmax(output, network_.action_size(), batch.mask(sample, network_.action_size()), log_p);
    if (entropy) *entropy = h;
    return log_p[batch.discrete_actions[sample]];
  }

  // Computes the loss of a block of rows, and the gradients of the heads' outputs.
  void loss_rows(const Gaussian &gaussian, const Batch &batch, const AdvantageMoments &moments, int64_t start, const Block &block) {
    const Workspace &work = *block.work;
    const double scale = 1.0 / double(batch.total);
    const int64_t n_actions = network_.action_size();
    LossSums sums;
    double *d_log_std = network_.log_std < 0 ? nullptr : block_log_std_.data() + block.index * n_actions;
    if (d_log_std) std::fill(d_log_std, d_log_std + n_actions, 0.0);
    for (int64_t i = 0; i < block.rows; ++i) {
      const int64_t at = block.at + i, place = start + block.first + i, sample = batch.index ? batch.index[place] : place;
      double entropy;
      const float new_log_prob = float(log_prob(gaussian, batch, sample, block, i, &entropy));
      const double advantage = (double(batch.advantages[sample]) - moments.mean) * moments.inverse_std;
      const Surrogate s = clipped_surrogate(new_log_prob, batch.log_probs[sample], advantage, loss_.clip_range);
      const double old_value = batch.old_values ? double(batch.old_values[sample]) : 0.0;
      const ValueLoss v = value_loss(*work.output(network_.critic_head, at), batch.returns[sample], old_value, loss_.value_range);
      sums.policy += s.loss;
      sums.value += v.loss;
      sums.entropy += entropy;
      sums.approx_kl += s.approx_kl;
      sums.clipped += s.clipped;
      *work.gradient(network_.critic_head, at) = float(loss_.vf_coef * v.d_value * scale);
      const PanelRow output(work.output(network_.actor_head, at), work.stride());
      const PanelRow gradient(work.gradient(network_.actor_head, at), work.stride());
      const float *old = loss_.kl_penalty ? batch.old.outputs + sample * n_actions : nullptr;
      if (d_log_std) {
        gaussian.log_prob_gradient(output, batch.actions + sample * n_actions, s.d_log_prob * scale, gradient, d_log_std);
        if (old) sums.kl += gaussian.kl(output, old, loss_.kl_coef * scale, gradient, d_log_std);
        continue;
      }
      const double *log_p = block_scratch_.data() + 2 * block.index * n_actions;
      double *old_log_p = block_scratch_.data() + (2 * block.index + 1) * n_actions;
      const uint8_t *mask = batch.mask(sample, n_actions);
      if (old) {
        log_softmax(old, n_actions, mask, old_log_p);
        sums.kl += categorical_kl(old_log_p, log_p, n_actions);
      }
      for (int64_t j = 0; j < n_actions; ++j) {
        if (mask && !mask[j]) {  // its log-probability is -inf
          gradient[j] = 0.0f;
          continue;
        }
        const double p = std::exp(log_p[j]), taken = j == batch.discrete_actions[sample] ? 1.0 : 0.0;
        const double penalty = old ? loss_.kl_coef * (p - std::exp(old_log_p[j])) : 0.0;
        gradient[j] = float(scale * (s.d_log_prob * (taken - p) + loss_.ent_coef * p * (log_p[j] + entropy) + penalty));
      }
    }
    if (d_log_std)  // the derivative of the entropy by each of them is 1
      for (int64_t j = 0; j < n_actions; ++j) d_log_std[j] -= loss_.ent_coef * double(block.rows) * scale;
    block_sums_[size_t(block.index)] = sums;
  }

  // Propagates the gradients of the heads' outputs back, to the gradients before the activation of every layer, and sums them
  // over the rows, for the biases.
  void backward_rows(const Block &block) {
    const Workspace &work = *block.work;
    for (int l = int(network_.layers.size()) - 1; l >= 0; --l) {
      const Layer &layer = network_.layers[size_t(l)];
      float *gradient = work.gradient(l, block.at);
      const bool is_head = last_reader_[size_t(l)] < 0;
      if (is_head || !piecewise_linear(layer.activation))
        kernels_->activation_gradient(layer.activation, {work.output(l, block.at), work.stride(), block.rows, layer.n_out},
                                      gradient);
      kernels_->column_sums({gradient, work.stride(), block.rows, layer.n_out},
                            block_bias_.data() + block.index * n_biases_ + biases_[size_t(l)]);
      if (layer.source == kObs) continue;
      const Layer &source = network_.layers[size_t(layer.source)];
      RowProduct product{gradient,
                         work.stride(),
                         layer.n_out,
                         weights_.backward(size_t(l)),
                         work.gradient(layer.source, block.at),
                         work.stride(),
                         block.rows,
                         layer.n_in};
      product.accumulate = first_reader(layer.source) != l;
      if (last_reader_[size_t(layer.source)] == l && piecewise_linear(source.activation) && source.activation != Activation::none) {
        product.gate = work.output(layer.source, block.at);
        product.slope = slope_of(source.activation);
      }
      kernels_->row_product(product);
    }
  }

  // Returns the layer whose backward pass is the first to write the gradient of `source`.
  int first_reader(int source) const {
    int reader = -1;
    for (size_t l = 0; l < network_.layers.size(); ++l)
      if (network_.layers[l].source == source) reader = int(l);
    return reader;
  }

  void weight_gradient(const PackedWeights::Part &part, int64_t rows, int64_t blocks, bool accumulate) {
    const Layer &layer = network_.layers[size_t(part.layer)];
    const int64_t n_out = part.end - part.begin;
    WeightProduct product = chunk_.operands(part.layer, part.begin, layer.source);
    product.n_out = n_out;
    product.n_in = layer.n_in;
    product.samples = rows;
    product.out = gradient() + layer.weight + part.begin * layer.n_in;
    product.accumulate = accumulate;
    kernels_->weight_product(product);
    float *bias = gradient() + layer.bias + part.begin;
    if (!accumulate) std::fill_n(bias, n_out, 0.0f);
    for (int64_t block = 0; block < blocks; ++block) {
      const float *sums = block_bias_.data() + block * n_biases_ + biases_[size_t(part.layer)] + part.begin;
      for (int64_t i = 0; i < n_out; ++i) bias[i] += sums[i];
    }
  }

  // Computes the sum of squares of a part's gradient, weight and bias.
  void square(int64_t task) {
    const PackedWeights::Part &part = parts_[size_t(task)];
    const Layer &layer = network_.layers[size_t(part.layer)];
    const int64_t n_out = part.end - part.begin;
    squares_[size_t(task)] = kernels_->sum_of_squares(gradient() + layer.weight + part.begin * layer.n_in, n_out * layer.n_in) +
                             kernels_->sum_of_squares(gradient() + layer.bias + part.begin, n_out);
  }

  void adam_range(AdamStep adam, int64_t begin, int64_t size) {
    adam.parameters = parameters_.values + begin;
    adam.exp_avg = parameters_.exp_avg + begin;
    adam.exp_avg_sq = parameters_.exp_avg_sq + begin;
    adam.gradient = gradient() + begin;
    adam.size = size;
    kernels_->adam(adam);
  }

  // Computes values, old log-probabilities, advantages and returns, then the minibatches of all epochs and the moments of
  // their advantages.
  void prepare(const RolloutView &r, const UpdateSettings &settings) {
    const int64_t samples = r.num_steps * r.num_envs;
    last_values_.resize(size_t(r.num_envs));
    finals_.resize(size_t(r.num_finals));
    if (loss_.kl_penalty) {
      old_outputs_.resize(size_t(samples * network_.action_size()));
      const int64_t log_stds = network_.categorical() ? 0 : network_.action_size();
      old_log_std_.resize(size_t(log_stds));
      if (log_stds) std::copy_n(parameters_.values + network_.log_std, log_stds, old_log_std_.data());
    }
    evaluate(r.rows(samples), r.values, r.log_probs, loss_.kl_penalty ? old_outputs_.data() : nullptr);
    evaluate({r.last_obs, nullptr, nullptr, r.num_envs}, last_values_.data(), nullptr);
    evaluate({r.final_obs, nullptr, nullptr, r.num_finals}, finals_.data(), nullptr);
    final_values_.resize(size_t(samples));
    for (int64_t i = 0; i < r.num_finals; ++i) final_values_[size_t(r.final_index[i])] = finals_[size_t(i)];
    gae_unchecked(GaeArgs<float>{r.rewards, r.values, r.terminated, r.truncated, last_values_.data(), final_values_.data(), nullptr,
                                 settings.gamma, settings.gae_lambda, r.advantages, r.returns, r.num_steps, r.num_envs});

    indices_.resize(size_t(settings.n_epochs * samples));
    offsets_.resize(size_t(settings.n_epochs * (settings.n_minibatch + 1)));
    steps_.resize(size_t(settings.n_epochs * r.num_steps));
    advantages_.assign(size_t(settings.n_epochs * settings.n_minibatch), AdvantageSums{});
    pool_.run(settings.n_epochs, [&](int64_t epoch) {
      int64_t *indices = indices_.data() + epoch * samples, *offsets = offsets_.data() + epoch * (settings.n_minibatch + 1);
      minibatch_indices_unchecked(settings.seed, settings.iteration, uint32_t(epoch), r.num_steps, r.num_envs, settings.n_minibatch,
                                  settings.env_offset, indices, offsets, steps_.data() + epoch * r.num_steps);
      if (!settings.normalize_advantages) return;
      for (int64_t m = 0; m < settings.n_minibatch; ++m)
        advantages_[size_t(epoch * settings.n_minibatch + m)] =
            advantage_sums(r.advantages, indices + offsets[m], offsets[m + 1] - offsets[m]);
    });
  }

  Network network_;
  const Kernels *kernels_;
  Parameters parameters_;
  LossSettings loss_;
  AdamSettings adam_;
  std::function<void()> pause_;
  ThreadPool pool_;
  PackedWeights weights_;
  Chunk chunk_;
  std::vector<char> all_, value_path_;
  Buffer gradient_;
  std::vector<PackedWeights::Part> parts_;
  std::vector<int> last_reader_;  // for each layer, the reader of its output that the backward pass visits last; -1 for a head
  std::vector<int64_t> biases_;   // where the sums of each layer begin in those of a block
  int64_t n_biases_ = 0;
  std::vector<float> block_bias_;  // [blocks, n_biases]
  std::vector<LossSums> block_sums_;
  std::vector<double> block_log_std_, block_scratch_, squares_;
  std::vector<float> last_values_, finals_, final_values_;
  std::vector<float> old_outputs_, old_log_std_;  // see OldPolicy
  std::vector<int64_t> indices_, offsets_, steps_;
  std::vector<AdvantageSums> advantages_;
};

}  // namespace xc::nn
