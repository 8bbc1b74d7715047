// From observations to actions: what the env loops of collection and evaluation share. xcfast/collector.py (TorchCollector) is the
// reference.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/moments.hpp"
#include "nn/network.hpp"

namespace xc::collect {

// xcfast.ObservationNormalizer's settings and memory.
struct Normalizer {
  bool enabled;
  Moments moments;
  double epsilon, clip;
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

// The Gaussian policy as it is during one call.
struct Policy {
  nn::Network network;
  ActionMap action_map;
  nn::PackedWeights weights;
  std::vector<float> deviation;  // [A], the sample's standard deviation

  Policy(nn::Network n, ActionMap map)
      : network(std::move(n)), action_map(std::move(map)), weights(network, nn::best_kernels(), false),
        deviation(size_t(network.action_size())) {}
  Policy(const Policy &) = delete;  // `weights` points to `network`
  Policy &operator=(const Policy &) = delete;

  // From the flat parameters that `network` describes.
  void load(const float *parameters, const float *new_deviation) {
    const std::vector<char> needed = network.path(network.actor_head);
    for (const auto &part : weights.parts())
      if (needed[size_t(part.layer)]) weights.pack(parameters, part);
    std::copy_n(new_deviation, deviation.size(), deviation.begin());
  }
};

// One thread's scratch.
struct Actor {
  Actor(const Policy &policy, int64_t max_rows)
      : forward(policy.network, policy.network.actor_head, max_rows),
        obs(size_t(max_rows * policy.network.n_obs)),
        means(size_t(max_rows * policy.network.action_size())),
        noise(means.size()),
        action(policy.deviation.size()) {}

  nn::ForwardPass forward;
  std::vector<float> obs, means, noise;
  std::vector<float> action;
};

}  // namespace xc::collect
