// Tests of the learner without Python, for the sanitizers: with odd and prime sizes and 1, every instruction set and precision
// and several numbers of threads. Buffers have exactly the size that the code may touch. A seed as argument repeats a failing run.
#include <cmath>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "check.hpp"
#include "nn/learner.hpp"
#include "soft_tiles.hpp"

namespace {

using namespace xc::nn;

// All of float32, and one of each other precision.
std::vector<const Kernels *> some_kernels(Rng &rng) {
  std::vector<const Kernels *> some = available_kernels();
  for (Precision precision : {Precision::bf16x3, Precision::bf16}) {
    const auto all = kernels_with_model(precision);
    some.push_back(all[rng() % all.size()]);
  }
  return some;
}

// Random layers: a trunk, which may be absent, and two heads on it, or two trunks.
Network random_network(Rng &rng) {
  Network network{{}, 0, 0, -1, pick(rng, {1, 3, 16, 27, 33}), 0};
  auto place = [&](int64_t size) { return (network.n_parameters += size) - size; };
  auto layer = [&](int source, int64_t n_out, Activation activation) {
    const int64_t n_in = source == kObs ? network.n_obs : network.layers[size_t(source)].n_out;
    const int64_t weight = place(n_in * n_out);
    network.layers.push_back({n_in, n_out, weight, place(n_out), source, activation});
    return int(network.layers.size()) - 1;
  };
  const auto activation = Activation(1 + rng() % 6);
  auto hidden = [&](int source) {
    for (uint64_t depth = rng() % 3; depth > 0; --depth) source = layer(source, pick(rng, {1, 2, 5, 16, 17, 31, 48, 270}), activation);
    return source;
  };
  const int64_t n_actions = pick(rng, {2, 3, 8, 17});
  if (rng() % 2) network.log_std = place(n_actions);
  const int trunk = hidden(kObs);
  network.actor_head = layer(hidden(trunk), n_actions, network.categorical() ? Activation::none : Activation(rng() % 7));
  network.critic_head = layer(hidden(rng() % 2 ? trunk : kObs), 1, Activation::none);
  return network;
}

struct Data {
  int64_t num_steps, num_envs;
  std::vector<float> obs, actions, rewards, last_obs, final_obs;
  std::vector<int64_t> discrete, final_index;
  std::vector<uint8_t> terminated, truncated;

  Data(Rng &rng, const Network &network) : num_steps(pick(rng, {1, 5, 32})), num_envs(pick(rng, {1, 3, 8})) {
    const int64_t samples = num_steps * num_envs;
    obs = normal<float>(rng, samples * network.n_obs);
    last_obs = normal<float>(rng, num_envs * network.n_obs);
    rewards = normal<float>(rng, samples);
    if (!network.categorical()) actions = normal<float>(rng, samples * network.action_size());
    for (int64_t i = 0; i < samples; ++i) {
      if (network.categorical()) discrete.push_back(int64_t(rng() % uint64_t(network.action_size())));
      terminated.push_back(rng() % 10 == 0);
      truncated.push_back(rng() % 10 == 0);
      if (truncated.back() && !terminated.back()) final_index.push_back(i);
    }
    final_obs = normal<float>(rng, int64_t(final_index.size()) * network.n_obs);
  }
};

struct Result {
  std::vector<float> parameters, values, log_probs, advantages, returns;
  UpdateSums sums;
};

Result run_update(const Network &network, const std::vector<float> &start, const Data &data, int64_t n_minibatch, int threads,
                  const Kernels &kernels, const LossSettings &loss = {0.2, 0.25, 0.01}, double max_approx_kl = INFINITY,
                  std::function<void()> pause = nullptr) {
  const size_t samples = size_t(data.num_steps * data.num_envs);
  Result r{start, std::vector<float>(samples), std::vector<float>(samples), std::vector<float>(samples), std::vector<float>(samples), {}};
  std::vector<float> exp_avg(start.size()), exp_avg_sq(start.size());
  const int64_t minibatch = (int64_t(samples) + n_minibatch - 1) / n_minibatch;
  Learner learner(network, {r.parameters.data(), exp_avg.data(), exp_avg_sq.data()}, loss, {}, minibatch, threads, kernels, std::move(pause));
  // A Gaussian's actions are far from what this network would do, so that ratios would overflow after larger steps.
  const std::vector<double> rates(size_t(2 * n_minibatch), network.categorical() ? 1e-3 : 1e-5);
  const RolloutView view{data.num_steps,
                         data.num_envs,
                         int64_t(data.final_index.size()),
                         data.obs.data(),
                         data.last_obs.data(),
                         data.final_obs.data(),
                         data.final_index.data(),
                         network.categorical() ? nullptr : data.actions.data(),
                         network.categorical() ? data.discrete.data() : nullptr,
                         data.rewards.data(),
                         data.terminated.data(),
                         data.truncated.data(),
                         r.values.data(),
                         r.log_probs.data(),
                         r.advantages.data(),
                         r.returns.data()};
  r.sums = learner.update(view, {0.99, 0.95, true, 0.5, 7, 3, 2, n_minibatch, 0, rates.data(), 0, max_approx_kl});
  return r;
}

void test_update_is_the_same_on_any_number_of_threads(Rng &rng) {
  const Network network = random_network(rng);
  const std::vector<float> start = normal<float>(rng, network.n_parameters, 0.3f);
  const Data data(rng, network);
  const int64_t samples = data.num_steps * data.num_envs, n_minibatch = std::min(samples, pick(rng, {1, 2, 7}));
  const LossSettings loss = rng() % 2 ? LossSettings{0.2, 0.25, 0.01} : LossSettings{INFINITY, 0.25, 0.01, true, 2.0};
  for (const Kernels *kernels : some_kernels(rng)) {
    const Result one = run_update(network, start, data, n_minibatch, 1, *kernels, loss);
    bool finite = true;
    for (float x : one.parameters) finite &= std::isfinite(x);
    CHECK(finite);
    CHECK(!same_bits(one.parameters, start));
    CHECK(one.sums.epochs == 2);
    CHECK(loss.kl_penalty ? std::fabs(one.sums.last_kl) > 0 : one.sums.last_kl == 0);
    for (int threads : {2, 5}) {
      const Result many = run_update(network, start, data, n_minibatch, threads, *kernels, loss);
      CHECK(same_bits(many.parameters, one.parameters));
      CHECK(same_bits(many.returns, one.returns));
      CHECK(many.sums.losses.policy == one.sums.losses.policy && many.sums.grad_norm == one.sums.grad_norm);
      CHECK(many.sums.losses.kl == one.sums.losses.kl);
    }
  }
}

// The first of two epochs is the last where its mean approximate KL is above the limit, and only there.
void test_epochs_stop_above_the_limit(Rng &rng) {
  const Network network = random_network(rng);
  const std::vector<float> start = normal<float>(rng, network.n_parameters, 0.3f);
  const Data data(rng, network);
  const int64_t samples = data.num_steps * data.num_envs, n_minibatch = std::min<int64_t>(samples / 2, 3);
  if (n_minibatch < 2) return;  // the only gradient step of an epoch sees no KL, nor does one sample have an advantage
  const LossSettings loss{0.2, 0.25, 0.01};
  const Result stopped = run_update(network, start, data, n_minibatch, 2, best_kernels(), loss, 0);
  const double kl = stopped.sums.losses.approx_kl / double(samples);
  CHECK(stopped.sums.epochs == 1 && kl > 0);
  CHECK(run_update(network, start, data, n_minibatch, 2, best_kernels(), loss, 0.9 * kl).sums.epochs == 1);
  CHECK(run_update(network, start, data, n_minibatch, 2, best_kernels(), loss, 1.1 * kl).sums.epochs == 2);
}

// The loss of a minibatch in plain double arithmetic.
double reference_loss(const Network &network, const std::vector<double> &parameters, const Batch &batch, const LossSettings &loss) {
  double total = 0;
  for (int64_t i = 0; i < batch.size; ++i) {
    std::vector<std::vector<double>> outputs;
    for (const Layer &layer : network.layers) {
      std::vector<double> x, y;
      for (int64_t j = 0; j < layer.n_in; ++j)
        x.push_back(layer.source == kObs ? double(batch.obs[i * network.n_obs + j]) : outputs[size_t(layer.source)][size_t(j)]);
      double sum = 0;
      for (int64_t o = 0; o < layer.n_out; ++o) {
        double z = parameters[size_t(layer.bias + o)];
        for (int64_t j = 0; j < layer.n_in; ++j) z += parameters[size_t(layer.weight + o * layer.n_in + j)] * x[size_t(j)];
        switch (layer.activation) {
          case Activation::none: break;
          case Activation::relu: z = z > 0 ? z : 0; break;
          case Activation::leaky_relu: z = z > 0 ? z : 0.01 * z; break;
          case Activation::tanh: z = std::tanh(z); break;
          case Activation::sigmoid: z = 1 / (1 + std::exp(-z)); break;
          case Activation::elu: z = z > 0 ? z : std::expm1(z); break;
          case Activation::softmax: sum += z = std::exp(z); break;
        }
        y.push_back(z);
      }
      if (layer.activation == Activation::softmax)
        for (double &v : y) v /= sum;
      outputs.push_back(y);
    }
    const std::vector<double> &head = outputs[size_t(network.actor_head)];
    double log_prob = 0, entropy = 0, kl = 0;
    if (network.categorical()) {
      const int64_t n = network.action_size();
      const float *old = loss.kl_penalty ? batch.old.outputs + i * n : nullptr;
      std::vector<double> logits, old_logits;  // of the allowed actions
      for (int64_t j = 0; j < n; ++j) {
        if (batch.action_masks && !batch.action_masks[i * n + j]) continue;
        logits.push_back(head[size_t(j)]);
        if (old) old_logits.push_back(double(old[j]));
      }
      double sum = 0, old_sum = 0;
      for (double logit : logits) sum += std::exp(logit);
      for (double logit : old_logits) old_sum += std::exp(logit);
      log_prob = head[size_t(batch.discrete_actions[i])] - std::log(sum);
      for (double logit : logits) entropy -= std::exp(logit) / sum * (logit - std::log(sum));
      for (size_t j = 0; j < old_logits.size(); ++j) {
        const double p = std::exp(old_logits[j]) / old_sum, q = std::exp(logits[j]) / sum;
        kl += p * std::log(p / q);
      }
    } else {
      for (int64_t j = 0; j < network.action_size(); ++j) {
        const double log_std = parameters[size_t(network.log_std + j)];
        const double z = (double(batch.actions[i * network.action_size() + j]) - head[size_t(j)]) * std::exp(-log_std);
        log_prob -= 0.5 * z * z + log_std + 0.5 * std::log(2 * M_PI);
        entropy += log_std + 0.5 + 0.5 * std::log(2 * M_PI);
        if (!loss.kl_penalty) continue;
        const double old_log_std = batch.old.log_std[j], apart = double(batch.old.outputs[i * network.action_size() + j]) - head[size_t(j)];
        const double variance = std::exp(2 * log_std), old_variance = std::exp(2 * old_log_std);
        kl += log_std - old_log_std + (old_variance + apart * apart) / (2 * variance) - 0.5;
      }
    }
    const double ratio = std::exp(log_prob - double(batch.log_probs[i])), advantage = batch.advantages[i];
    const double clamped = std::min(std::max(ratio, 1 - loss.clip_range), 1 + loss.clip_range);
    const double value = outputs[size_t(network.critic_head)][0], target = double(batch.returns[i]);
    double error = (value - target) * (value - target);
    if (std::isfinite(loss.value_range)) {
      const double old = double(batch.old_values[i]), bounded = std::min(std::max(value, old - loss.value_range), old + loss.value_range);
      error = std::max(error, (bounded - target) * (bounded - target));
    }
    total += -std::min(ratio * advantage, clamped * advantage) + loss.vf_coef * error - loss.ent_coef * entropy;
    total += loss.kl_coef * kl;
  }
  return total / double(batch.size);
}

void test_a_pause_that_throws_ends_the_update(Rng &rng) {
  const Network network = random_network(rng);
  const std::vector<float> start = normal<float>(rng, network.n_parameters, 0.3f);
  const Data data(rng, network);
  const int64_t n_minibatch = std::min<int64_t>(data.num_steps * data.num_envs, 3);
  const auto update = [&](std::function<void()> pause) {
    return run_update(network, start, data, n_minibatch, 2, best_kernels(), {0.2, 0.25, 0.01}, INFINITY, std::move(pause)).parameters;
  };
  int64_t calls = 0;
  CHECK(same_bits(update([&] { ++calls; }), update(nullptr)));
  CHECK(calls > 2 * n_minibatch);
  for (const int64_t last : {int64_t(1), calls}) {
    int64_t left = last;
    bool thrown = false;
    try {
      update([&] {
        if (--left == 0) throw std::runtime_error("stop");
      });
    } catch (const std::runtime_error &) {
      thrown = true;
    }
    CHECK(thrown && left == 0);
  }
}

void test_gradient_is_the_slope_of_the_loss(Rng &rng) {
  Network network = random_network(rng);
  for (Layer &layer : network.layers)  // no kinks, so that differences are slopes
    if (layer.activation == Activation::relu || layer.activation == Activation::leaky_relu || layer.activation == Activation::elu)
      layer.activation = Activation::tanh;
  std::vector<float> start = normal<float>(rng, network.n_parameters, 0.2f);
  const int64_t rows = pick(rng, {1, 3, 16, 50});
  const auto obs = normal<float>(rng, rows * network.n_obs), actions = normal<float>(rng, rows * network.action_size(), 0.5f);
  const auto advantages = normal<float>(rng, rows), noise = normal<float>(rng, rows, 0.01f);
  std::vector<int64_t> discrete;
  for (int64_t i = 0; i < rows; ++i) discrete.push_back(int64_t(rng() % uint64_t(network.action_size())));
  const bool categorical = network.categorical();
  std::vector<uint8_t> masks;
  for (int64_t i = 0; i < rows * network.action_size(); ++i)
    masks.push_back(discrete[size_t(i / network.action_size())] == i % network.action_size() || rng() % 2);
  const uint8_t *mask = categorical && rng() % 2 ? masks.data() : nullptr;
  const Rows inputs{obs.data(), categorical ? nullptr : actions.data(), categorical ? discrete.data() : nullptr, rows, mask};
  LossSettings loss{1e3, 0.5, 0.05};  // never clipped: no edges either
  if (rng() % 2) loss = {INFINITY, 0.5, 0.05, true, 0.7};
  if (rng() % 2) loss.value_range = 0.5;
  const auto old_outputs = normal<float>(rng, rows * network.action_size()), old_log_std = normal<float>(rng, network.action_size(), 0.3f);
  for (const Kernels *kernels : available_kernels()) {
    std::vector<float> parameters = start, exp_avg(start.size()), exp_avg_sq(start.size());
    std::vector<float> values(static_cast<size_t>(rows)), log_probs(static_cast<size_t>(rows));
    Learner learner(network, {parameters.data(), exp_avg.data(), exp_avg_sq.data()}, loss, {}, rows, 2, *kernels);
    learner.pack();
    learner.evaluate(inputs, values.data(), log_probs.data());
    for (float &x : log_probs) x += 0.1f;
    // Values on both sides of the clip, and errors on both sides of where it applies (at 0.2), all away from these edges.
    std::vector<float> returns, old_values;
    for (int64_t i = 0; i < rows; ++i) {
      const float sign = i % 4 < 2 ? 1.0f : -1.0f, error = i / 4 % 2 ? 0.7f : 0.05f;
      returns.push_back(values[size_t(i)] - (i / 8 % 2 ? error : -error) + noise[size_t(i)]);
      old_values.push_back(values[size_t(i)] - sign * (i % 2 ? 0.9f : 0.1f));
    }
    const Batch batch{inputs, log_probs.data(), advantages.data(), returns.data(), nullptr, rows,
                      {old_outputs.data(), old_log_std.data()}, old_values.data()};
    learner.compute_gradients(batch, {});
    std::vector<double> direction(start.size()), up(start.size()), down(start.size());
    double slope = 0, scale = 0;
    const double h = 1e-5;
    for (size_t i = 0; i < start.size(); ++i) {
      direction[i] = std::normal_distribution<double>()(rng);
      slope += direction[i] * double(learner.gradient()[i]);
      scale += std::fabs(direction[i] * double(learner.gradient()[i]));
      up[i] = double(start[i]) + h * direction[i];
      down[i] = double(start[i]) - h * direction[i];
    }
    const double wanted = (reference_loss(network, up, batch, loss) - reference_loss(network, down, batch, loss)) / (2 * h);
    CHECK(std::fabs(slope - wanted) <= 1e-4 * scale + 1e-6);
  }
}

void test_forward_pass_of_any_number_of_rows(Rng &rng) {
  const Network network = random_network(rng);
  const auto parameters = normal<float>(rng, network.n_parameters, 0.3f);
  const int64_t rows = 1 + int64_t(rng() % 70), head_size = network.action_size();
  const auto obs = normal<float>(rng, rows * network.n_obs);
  for (const Kernels *kernels : some_kernels(rng)) {
    PackedWeights weights(network, *kernels, false);
    weights.pack(parameters.data());
    std::vector<float> all(size_t(rows * head_size)), some(size_t(rows * head_size));
    ForwardPass(network, network.actor_head, 64, *kernels)(weights, obs.data(), rows, all.data());
    const ForwardPass few(network, network.actor_head, 5, *kernels);
    for (int64_t row = 0; row < rows;) {
      const int64_t count = std::min<int64_t>(rows - row, 1 + int64_t(rng() % 9));
      few(weights, obs.data() + row * network.n_obs, count, some.data() + row * head_size);
      row += count;
    }
    CHECK(same_bits(all, some));
  }
}

}  // namespace

int main(int argc, char **argv) {
  const uint64_t seed = seed_of(argc, argv);
  std::printf("test_nn, seed %llu:", static_cast<unsigned long long>(seed));
  for (const Kernels *kernels : kernels_with_model(Precision::bf16)) std::printf(" %s", kernels->name);
  std::printf("\n");
  Rng rng(seed);
  for (int round = 0; round < 40 && failures == 0; ++round) {
    test_update_is_the_same_on_any_number_of_threads(rng);
    test_epochs_stop_above_the_limit(rng);
    test_a_pause_that_throws_ends_the_update(rng);
    test_gradient_is_the_slope_of_the_loss(rng);
    test_forward_pass_of_any_number_of_rows(rng);
  }
  std::printf(failures ? "%d failures\n" : "ok\n", failures);
  return failures != 0;
}
