// From observations to actions: the parts that collection and evaluation share. The reference is TorchCollector in
// xcfast/collectors/torch.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/moments.hpp"
#include "kernels/random.hpp"
#include "nn/network.hpp"

namespace xc::collect {

// The settings and the arrays of xcfast.ObservationNormalizer.
struct Normalizer {
  bool enabled;
  Moments moments;
  Epsilon epsilon;
  double clip;
  int64_t *counts;      // [N]
  double *means, *m2s;  // [N, D]; if disabled, `means` becomes NaN where an observation is not finite

  // Normalizes the observations of envs [begin, begin + rows), and adds them to the moments of these envs.
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

// xcfast.policy.ActionMap for a Box: maps the policy's raw sample to the action that the env sees.
struct ActionMap {
  std::vector<float> low, high, scale, offset;  // [A]; scale and offset are empty if samples are only clipped

  void operator()(const float *raw, float *action) const {
    for (size_t a = 0; a < low.size(); ++a) {
      float x = raw[a];
      if (!scale.empty()) x = x * scale[a] + offset[a];
      x = x < low[a] ? low[a] : x;  // NaN stays NaN
      action[a] = x > high[a] ? high[a] : x;
    }
  }
};

// The sample of xcfast.policy.CategoricalActor: the first action whose cumulative probability is not below `noise`.
// `probabilities` is scratch memory [n]. The order of the sums is that of the reference. Its exponential may differ in the
// last place, so the sample may differ where the noise is that close to a cumulative probability.
inline int64_t sample_categorical(const float *logits, int64_t n, double noise, double *probabilities) {
  const double most = *std::max_element(logits, logits + n);
  double sum = 0;
  for (int64_t a = 0; a < n; ++a) sum += probabilities[a] = std::exp(double(logits[a]) - most);
  double cumulative = 0;
  for (int64_t a = 0; a < n; ++a) {
    cumulative += probabilities[a] / sum;
    if (!(cumulative < noise)) return a;  // also if the logits are NaN
  }
  return n - 1;
}

// The mode of xcfast.policy.CategoricalActor, torch's argmax: the first of the largest logits. NaN counts as the largest.
inline int64_t mode_categorical(const float *logits, int64_t n) {
  int64_t best = 0;
  for (int64_t a = 1; a < n && !std::isnan(logits[best]); ++a)
    if (!(logits[a] <= logits[best])) best = a;
  return best;
}

// A policy with the weights of one call. If it is Categorical, the action that the env sees is the index of the action.
struct Policy {
  nn::Network network;
  ActionMap action_map;  // only for a Gaussian policy
  nn::PackedWeights weights;
  std::vector<float> deviation;  // [A], the standard deviation of samples; only for a Gaussian policy

  Policy(nn::Network n, ActionMap map)
      : network(std::move(n)), action_map(std::move(map)), weights(network, nn::best_kernels(), false),
        deviation(network.categorical() ? 0 : size_t(network.action_size())) {}
  Policy(const Policy &) = delete;  // `weights` points to `network`
  Policy &operator=(const Policy &) = delete;

  bool categorical() const { return network.categorical(); }

  // Reads the weights from the flat parameters that `network` describes.
  void load(const float *parameters, const float *new_deviation) {
    const std::vector<char> needed = network.path(network.actor_head);
    for (const auto &part : weights.parts())
      if (needed[size_t(part.layer)]) weights.pack(parameters, part);
    std::copy_n(new_deviation, deviation.size(), deviation.begin());
  }

  // Writes the most likely action, as the env sees it, for one row of the network's output.
  void mode(const float *output, float *action) const {
    if (categorical())
      *action = float(mode_categorical(output, network.action_size()));
    else
      action_map(output, action);
  }
};

// xcfast.collectors.noise.ActionNoise.
struct Noise {
  uint64_t seed;
  int64_t env_offset;
  int64_t *counters;             // [N]
  const float *ahead = nullptr;  // [steps, N, A], the noise of a collection's steps; null if each step draws its own
};

// The scratch memory of one thread.
struct Actor {
  Actor(const Policy &policy, int64_t max_rows)
      : forward(policy.network, policy.network.actor_head, max_rows),
        obs(size_t(max_rows * policy.network.n_obs)),
        outputs(size_t(max_rows * policy.network.action_size())),
        gaussian(policy.categorical() ? 0 : outputs.size()),
        uniform(policy.categorical() ? size_t(max_rows) : 0),
        probabilities(policy.categorical() ? size_t(policy.network.action_size()) : 0),
        action(policy.categorical() ? 1 : policy.deviation.size()) {}

  // Draws the noise of the next step of envs [begin, begin + rows), and counts that step. `place` is that of the first env's
  // row in noise.ahead.
  void draw(const Noise &noise, int64_t place, int64_t begin, int64_t rows) {
    int64_t *counters = noise.counters + begin;
    if (noise.ahead)
      std::copy_n(noise.ahead + place * int64_t(action.size()), rows * int64_t(action.size()), gaussian.data());
    else if (uniform.empty())
      gaussian_noise_unchecked(noise.seed, noise.env_offset + begin, counters, rows, int64_t(action.size()), gaussian.data());
    else
      uniform_noise_unchecked(noise.seed, noise.env_offset + begin, counters, rows, uniform.data());
    for (int64_t row = 0; row < rows; ++row) ++counters[row];
  }

  // Computes the raw sample of one row of outputs and noise, and `action`, the action that the env sees.
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
