// From observations to actions: what the env loops of collection and evaluation share. xcfast/collectors/torch.py (TorchCollector) is the
// reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/moments.hpp"
#include "kernels/random.hpp"
#include "nn/network.hpp"

namespace xc::collect {

// xcfast.ObservationNormalizer's settings and memory.
struct Normalizer {
  bool enabled;
  Moments moments;
  Epsilon epsilon;
  double clip;
  int64_t *counts;      // [N]
  double *means, *m2s;  // [N, D]; disabled: means becomes NaN where a value is not finite

  // Rows of envs [begin, begin + rows), which also enter their own moments.
  void track(const double *obs, int64_t begin, int64_t rows, int64_t dim, float *out) const {
    if (enabled)
      normalize_and_track_unchecked(obs, rows, dim, moments, epsilon, clip, counts + begin, means + begin * dim, m2s + begin * dim, out);
    else
      cast_and_track_unchecked(obs, rows * dim, means + begin * dim, out);
  }

  void apply(const double *obs, int64_t rows, int64_t dim, float *out) const {
    if (enabled)
      normalize_unchecked(obs, rows, dim, moments, epsilon, clip, out);
    else
      for (int64_t k = 0; k < rows * dim; ++k) out[k] = float(obs[k]);
  }
};

// xcfast.policy.ActionMap for a Box: from the policy's raw sample to the action that the env sees.
struct ActionMap {
  std::vector<float> low, high, scale, offset;  // [A]; scale and offset are empty where nothing is mapped

  void operator()(const float *raw, float *action) const {
    for (size_t a = 0; a < low.size(); ++a) {
      float x = raw[a];
      if (!scale.empty()) x = x * scale[a] + offset[a];
      x = x < low[a] ? low[a] : x;  // NaN passes both comparisons
      action[a] = x > high[a] ? high[a] : x;
    }
  }
};

// xcfast.policy.CategoricalActor's sample: the first action whose cumulative probability is not below `noise`. probabilities: [n] scratch.
// The sums are in the reference's order; its exponential may differ in the last place, which matters where the noise is as near to a
// cumulative probability.
inline int64_t sample_categorical(const float *logits, int64_t n, double noise, double *probabilities) {
  const double most = *std::max_element(logits, logits + n);
  double sum = 0;
  for (int64_t a = 0; a < n; ++a) sum += probabilities[a] = std::exp(double(logits[a]) - most);
  double cumulative = 0;
  for (int64_t a = 0; a < n; ++a) {
    cumulative += probabilities[a] / sum;
    if (!(cumulative < noise)) return a;  // also where logits are NaN
  }
  return n - 1;
}

// Its mode: torch's argmax, the first of the largest; NaN counts as the largest.
inline int64_t mode_categorical(const float *logits, int64_t n) {
  int64_t best = 0;
  for (int64_t a = 1; a < n && !std::isnan(logits[best]); ++a)
    if (!(logits[a] <= logits[best])) best = a;
  return best;
}

// The policy as it is during one call: Gaussian, or Categorical with the action's index as the action that the env sees.
struct Policy {
  nn::Network network;
  ActionMap action_map;  // of a Gaussian policy
  nn::PackedWeights weights;
  std::vector<float> deviation;  // [A], the sample's standard deviation; of a Gaussian policy

  Policy(nn::Network n, ActionMap map)
      : network(std::move(n)), action_map(std::move(map)), weights(network, nn::best_kernels(), false),
        deviation(network.categorical() ? 0 : size_t(network.action_size())) {}
  Policy(const Policy &) = delete;  // `weights` points to `network`
  Policy &operator=(const Policy &) = delete;

  bool categorical() const { return network.categorical(); }

  // From the flat parameters that `network` describes.
  void load(const float *parameters, const float *new_deviation) {
    const std::vector<char> needed = network.path(network.actor_head);
    for (const auto &part : weights.parts())
      if (needed[size_t(part.layer)]) weights.pack(parameters, part);
    std::copy_n(new_deviation, deviation.size(), deviation.begin());
  }

  // The most likely action, as the env sees it, for a row of the network's output.
  void mode(const float *output, float *action) const {
    if (categorical())
      *action = float(mode_categorical(output, network.action_size()));
    else
      action_map(output, action);
  }
};

// xcfast.collector.ActionNoise.
struct Noise {
  uint64_t seed;
  int64_t env_offset;
  int64_t *counters;  // [N]
};

// One thread's scratch.
struct Actor {
  Actor(const Policy &policy, int64_t max_rows)
      : forward(policy.network, policy.network.actor_head, max_rows),
        obs(size_t(max_rows * policy.network.n_obs)),
        outputs(size_t(max_rows * policy.network.action_size())),
        gaussian(policy.categorical() ? 0 : outputs.size()),
        uniform(policy.categorical() ? size_t(max_rows) : 0),
        probabilities(policy.categorical() ? size_t(policy.network.action_size()) : 0),
        action(policy.categorical() ? 1 : policy.deviation.size()) {}

  // Noise of the next step of envs [begin, begin + rows), which counts them.
  void draw(const Noise &noise, int64_t begin, int64_t rows) {
    int64_t *counters = noise.counters + begin;
    if (uniform.empty())
      gaussian_noise_unchecked(noise.seed, noise.env_offset + begin, counters, rows, int64_t(action.size()), gaussian.data());
    else
      uniform_noise_unchecked(noise.seed, noise.env_offset + begin, counters, rows, uniform.data());
    for (int64_t row = 0; row < rows; ++row) ++counters[row];
  }

  // Actions of a row of outputs and noise: the sample, and `action`, what the env sees.
  void sample(const Policy &policy, int64_t row, float *sample) {
    const int64_t width = int64_t(action.size());
    const float *mean = outputs.data() + row * width, *noise = gaussian.data() + row * width;
    for (int64_t a = 0; a < width; ++a) sample[a] = mean[a] + policy.deviation[size_t(a)] * noise[a];
    policy.action_map(sample, action.data());
  }
  void sample(const Policy &policy, int64_t row, int64_t *sample) {
    const int64_t n = policy.network.action_size();
    *sample = sample_categorical(outputs.data() + row * n, n, uniform[size_t(row)], probabilities.data());
    action[0] = float(*sample);
  }

  nn::ForwardPass forward;
  std::vector<float> obs, outputs;
  std::vector<float> gaussian;                 // [max_rows, A]
  std::vector<double> uniform, probabilities;  // [max_rows], [n]
  std::vector<float> action;
};

}  // namespace xc::collect
