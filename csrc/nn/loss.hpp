// The distributions, and the loss of a block of rows with the gradients of the heads' outputs. xcfast/learners/loss.py
// documents the loss, xcfast/policy/networks.py the distributions. All is scalar double arithmetic, which takes a thousandth
// of the update's time.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "nn/types.hpp"

namespace xc::nn {

struct LossSettings {
  double clip_range, vf_coef, ent_coef;  // with an infinite clip_range, the ratio is not clipped
  bool kl_penalty = false;               // whether kl_coef times KL(old || new) is added
  double kl_coef = 0;
  double value_range = std::numeric_limits<double>::infinity();  // clip_value_range; infinite: the value loss is not clipped
};

// The policy that collected: the outputs of its head [*, action_size] and, if it is Gaussian, its log standard deviations
// [action_size]. Only the penalty needs it.
struct OldPolicy {
  const float *outputs = nullptr, *log_std = nullptr;
};

// Observations [size, n_obs] with their actions: `actions` [size, action_size] of a Gaussian policy, or `discrete_actions`
// [size] with the masks [size, number of actions] of the allowed ones (null if all are allowed).
struct Rows {
  const float *obs, *actions;
  const int64_t *discrete_actions;
  int64_t size;
  const uint8_t *action_masks = nullptr;

  const uint8_t *mask(int64_t row, int64_t n_actions) const { return action_masks ? action_masks + row * n_actions : nullptr; }
};

// A minibatch: `size` rows of these arrays, the ones that `index` names, or the first ones if it is null.
struct Batch : Rows {
  const float *log_probs, *advantages, *returns;
  const int64_t *index;
  int64_t total;  // the number of samples that the loss is the mean of: `size`, or the sum of it over all ranks
  OldPolicy old{};
  const float *old_values = nullptr;  // by the weights that collected; only a clipped value loss needs them
};

struct LossSums {
  double policy = 0, value = 0, entropy = 0, approx_kl = 0, clipped = 0, kl = 0;
  void add(const LossSums &other) {
    policy += other.policy;
    value += other.value;
    entropy += other.entropy;
    approx_kl += other.approx_kl;
    clipped += other.clipped;
    kl += other.kl;
  }
};

struct AdvantageMoments {
  double mean = 0, inverse_std = 1;
};

// The number, the mean and the sum of squared deviations of the advantages of a minibatch, or of one rank's part of it,
// which may be empty.
struct AdvantageSums {
  double count = 0, mean = 0, square = 0;
  // For (A - mean) / (std + 1e-8), with the population standard deviation.
  AdvantageMoments moments() const { return {mean, 1.0 / (std::sqrt(square / count) + 1e-8)}; }
};
inline AdvantageSums advantage_sums(const float *advantages, const int64_t *index, int64_t size) {
  if (size == 0) return {};
  auto at = [&](int64_t i) { return double(advantages[index ? index[i] : i]); };
  double sum = 0, square = 0;
  for (int64_t i = 0; i < size; ++i) sum += at(i);
  const double mean = sum / double(size);
  for (int64_t i = 0; i < size; ++i) square += (at(i) - mean) * (at(i) - mean);
  return {double(size), mean, square};
}

// One row of an activation in panels.
class PanelRow {
 public:
  PanelRow(float *data, int64_t stride) : data_(data), stride_(stride) {}
  float &operator[](int64_t column) const { return data_[uint64_t(column) / kPanel * uint64_t(stride_) + uint64_t(column) % kPanel]; }

 private:
  float *data_;
  int64_t stride_;
};

// A diagonal Gaussian whose log standard deviations do not depend on the state. `old_log_std` are those of the policy that
// collected; only `kl` needs them.
class Gaussian {
 public:
  Gaussian(const float *log_std, int64_t size, const float *old_log_std = nullptr) : size_(size) {
    constexpr double kLogSqrt2Pi = 0.91893853320467274178;
    for (int64_t j = 0; j < size; ++j) {
      inverse_std_.push_back(std::exp(-double(log_std[j])));
      constant_ += double(log_std[j]) + kLogSqrt2Pi;
      if (!old_log_std) continue;
      const double shrunk = double(old_log_std[j]) - double(log_std[j]);
      excess_variance_.push_back(std::expm1(2.0 * shrunk));
      old_kl_ += 0.5 * excess_variance_.back() - shrunk;
    }
    entropy_ = constant_ + 0.5 * double(size);
  }

  double log_prob(PanelRow mean, const float *action) const {
    double square = 0;
    for (int64_t j = 0; j < size_; ++j) {
      const double z = (double(action[j]) - double(mean[j])) * inverse_std_[size_t(j)];
      square += z * z;
    }
    return -0.5 * square - constant_;
  }
  double entropy() const { return entropy_; }
  // Computes d_log_prob times the gradient of the log-probability. Writes the part of the mean to `gradient`, and adds the
  // part of log_std to `d_log_std`.
  void log_prob_gradient(PanelRow mean, const float *action, double d_log_prob, PanelRow gradient, double *d_log_std) const {
    for (int64_t j = 0; j < size_; ++j) {
      const double inverse = inverse_std_[size_t(j)], z = (double(action[j]) - double(mean[j])) * inverse;
      gradient[j] = float(d_log_prob * z * inverse);
      d_log_std[j] += d_log_prob * (z * z - 1.0);
    }
  }
  // Returns KL(old || this), and adds d_kl times its gradient to the gradients that log_prob_gradient wrote.
  double kl(PanelRow mean, const float *old_mean, double d_kl, PanelRow gradient, double *d_log_std) const {
    double square = 0;
    for (int64_t j = 0; j < size_; ++j) {
      const double inverse = inverse_std_[size_t(j)], z = (double(mean[j]) - double(old_mean[j])) * inverse;
      square += z * z;
      gradient[j] = float(double(gradient[j]) + d_kl * z * inverse);
      d_log_std[j] -= d_kl * (excess_variance_[size_t(j)] + z * z);
    }
    return 0.5 * square + old_kl_;
  }

 private:
  int64_t size_;
  std::vector<double> inverse_std_, excess_variance_;  // the second is old variance / variance - 1
  double constant_ = 0, entropy_ = 0, old_kl_ = 0;      // the last is the KL if the means are equal
};

// The categorical distribution of one row of logits over the actions that `mask` allows, at least one (null: all). Writes the
// log-probabilities to log_p [n], -inf for actions that are not allowed. Returns the entropy.
template <class Row>
double log_softmax(const Row &logits, int64_t n, const uint8_t *mask, double *log_p) {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  double largest = kNever, sum = 0, entropy = 0;
  for (int64_t j = 0; j < n; ++j)
    if ((!mask || mask[j]) && double(logits[j]) > largest) largest = double(logits[j]);
  for (int64_t j = 0; j < n; ++j)
    if (!mask || mask[j]) sum += std::exp(double(logits[j]) - largest);
  const double shift = largest + std::log(sum);
  for (int64_t j = 0; j < n; ++j) {
    log_p[j] = kNever;
    if (mask && !mask[j]) continue;
    log_p[j] = double(logits[j]) - shift;
    entropy -= std::exp(log_p[j]) * log_p[j];
  }
  return entropy;
}

// KL(old || new) of two categorical distributions over the same actions.
inline double categorical_kl(const double *old_log_p, const double *log_p, int64_t n) {
  double kl = 0;
  for (int64_t j = 0; j < n; ++j)
    if (!std::isinf(log_p[j])) kl += std::exp(old_log_p[j]) * (old_log_p[j] - log_p[j]);
  return kl;
}

// The clipped surrogate loss of one sample, and its derivative by the log-probability, which is zero where the clip applies.
struct Surrogate {
  double loss, d_log_prob, approx_kl;
  bool clipped;
};
inline Surrogate clipped_surrogate(double log_prob, double old_log_prob, double advantage, double clip_range) {
  const double log_ratio = log_prob - old_log_prob, ratio = std::exp(log_ratio);
  const double low = 1.0 - clip_range, high = 1.0 + clip_range;
  const double clamped = ratio < low ? low : ratio > high ? high : ratio;
  const double plain = ratio * advantage, limited = clamped * advantage;
  const bool binds = limited < plain;
  return {-(binds ? limited : plain), binds ? 0.0 : -plain, ratio - 1.0 - log_ratio, std::fabs(ratio - 1.0) > clip_range};
}

// The squared error of one value, and its derivative by the value. With a finite range it is the larger one of two squares: that
// of the value, and that of the value clipped to `old` +- range, whose derivative is zero where the clip applies.
struct ValueLoss {
  double loss, d_value;
};
inline ValueLoss value_loss(double value, double target, double old, double range) {
  const double error = value - target, moved = value - old;
  const ValueLoss plain{error * error, 2.0 * error};
  if (!(std::fabs(moved) > range)) return plain;
  const double clipped = old + (moved < 0 ? -range : range) - target;
  return clipped * clipped > plain.loss ? ValueLoss{clipped * clipped, 0.0} : plain;
}

}  // namespace xc::nn
