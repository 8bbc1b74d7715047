// Distributions and the PPO-Clip loss of a block of rows, with the gradient of the heads' outputs: xcfast/ppo.py
// documents the loss, xcfast/policy.py the distributions. Scalar double arithmetic: it is a thousandth of the update.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "nn/types.hpp"

namespace xc::nn {

struct LossSettings {
  double clip_range, vf_coef, ent_coef;
};

// Observations [size, n_obs] and what was done there: actions [size, action_size] of a Gaussian policy, or discrete
// ones [size], with masks [size, number of actions] of those that were allowed (null: all).
struct Rows {
  const float *obs, *actions;
  const int64_t *discrete_actions;
  int64_t size;
  const uint8_t *action_masks = nullptr;

  const uint8_t *mask(int64_t row, int64_t n_actions) const { return action_masks ? action_masks + row * n_actions : nullptr; }
};

// A minibatch: `size` rows of these arrays, those that `index` names or (without) the first ones.
struct Batch : Rows {
  const float *log_probs, *advantages, *returns;
  const int64_t *index;
  int64_t total;  // samples that the mean is over: size, or that of all ranks together
};

struct LossSums {
  double policy = 0, value = 0, entropy = 0, approx_kl = 0, clipped = 0;
  void add(const LossSums &other) {
    policy += other.policy;
    value += other.value;
    entropy += other.entropy;
    approx_kl += other.approx_kl;
    clipped += other.clipped;
  }
};

struct AdvantageMoments {
  double mean = 0, inverse_std = 1;
};

// (A - mean) / (std + 1e-8), population standard deviation.
inline AdvantageMoments advantage_moments(const float *advantages, const int64_t *index, int64_t size) {
  auto at = [&](int64_t i) { return double(advantages[index ? index[i] : i]); };
  double sum = 0, square = 0;
  for (int64_t i = 0; i < size; ++i) sum += at(i);
  const double mean = sum / double(size);
  for (int64_t i = 0; i < size; ++i) square += (at(i) - mean) * (at(i) - mean);
  return {mean, 1.0 / (std::sqrt(square / double(size)) + 1e-8)};
}

// A row of a panel-laid activation.
class PanelRow {
 public:
  PanelRow(float *data, int64_t stride) : data_(data), stride_(stride) {}
  float &operator[](int64_t column) const { return data_[uint64_t(column) / kPanel * uint64_t(stride_) + uint64_t(column) % kPanel]; }

 private:
  float *data_;
  int64_t stride_;
};

// Diagonal Gaussian with shared log standard deviations.
class Gaussian {
 public:
  Gaussian(const float *log_std, int64_t size) : size_(size) {
    constexpr double kLogSqrt2Pi = 0.91893853320467274178;
    for (int64_t j = 0; j < size; ++j) {
      inverse_std_.push_back(std::exp(-double(log_std[j])));
      constant_ += double(log_std[j]) + kLogSqrt2Pi;
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
  // d_log_prob times the gradient of the log-probability: of the mean into `gradient`, of log_std added to `d_log_std`.
  void log_prob_gradient(PanelRow mean, const float *action, double d_log_prob, PanelRow gradient, double *d_log_std) const {
    for (int64_t j = 0; j < size_; ++j) {
      const double inverse = inverse_std_[size_t(j)], z = (double(action[j]) - double(mean[j])) * inverse;
      gradient[j] = float(d_log_prob * z * inverse);
      d_log_std[j] += d_log_prob * (z * z - 1.0);
    }
  }

 private:
  int64_t size_;
  std::vector<double> inverse_std_;
  double constant_ = 0, entropy_ = 0;
};

// Categorical distribution of one row of logits. scratch [n] receives the log-probabilities.
inline double log_softmax(PanelRow logits, int64_t n, double *log_p) {
  double largest = logits[0], sum = 0, entropy = 0;
  for (int64_t j = 1; j < n; ++j) largest = double(logits[j]) > largest ? double(logits[j]) : largest;
  for (int64_t j = 0; j < n; ++j) sum += std::exp(double(logits[j]) - largest);
  const double shift = largest + std::log(sum);
  for (int64_t j = 0; j < n; ++j) {
    log_p[j] = double(logits[j]) - shift;
    entropy -= std::exp(log_p[j]) * log_p[j];
  }
  return entropy;
}

// The same over the actions that `mask` allows, of which there is one at least; the others' log-probability is -inf.
inline double masked_log_softmax(PanelRow logits, int64_t n, const uint8_t *mask, double *log_p) {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  double largest = kNever, sum = 0, entropy = 0;
  for (int64_t j = 0; j < n; ++j)
    if (mask[j] && double(logits[j]) > largest) largest = double(logits[j]);
  for (int64_t j = 0; j < n; ++j)
    if (mask[j]) sum += std::exp(double(logits[j]) - largest);
  const double shift = largest + std::log(sum);
  for (int64_t j = 0; j < n; ++j) {
    log_p[j] = kNever;
    if (!mask[j]) continue;
    log_p[j] = double(logits[j]) - shift;
    entropy -= std::exp(log_p[j]) * log_p[j];
  }
  return entropy;
}

// The clipped surrogate of one sample: its value, and the gradient by the log-probability (zero where the clip binds).
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

}  // namespace xc::nn
