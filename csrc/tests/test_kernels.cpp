// Tests of the kernels without Python, for the sanitizers (`make sanitize`). Every buffer is a vector of exactly the size that
// the kernel may touch. A seed as argument repeats a failing run.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "check.hpp"
#include "kernels/gae.hpp"
#include "kernels/moments.hpp"
#include "kernels/random.hpp"
#include "kernels/rollout.hpp"

namespace {

std::vector<uint8_t> coins(Rng &rng, int64_t size, double p) {
  std::bernoulli_distribution d(p);
  std::vector<uint8_t> x(static_cast<size_t>(size));
  for (auto &v : x) v = d(rng);
  return x;
}

// Runs `compute` once per variant; all must give the bits of the first.
template <class F>
auto in_all_variants(F &&compute) {
  xc::chosen_variant() = xc::Variant::baseline;
  auto result = compute();
  if (xc::has_avx2()) {
    xc::chosen_variant() = xc::Variant::avx2;
    CHECK(same_bits(compute(), result));
  }
  return result;
}

template <class T>
void test_gae(Rng &rng, int64_t num_steps, int64_t num_envs, bool with_truncated, bool with_next) {
  const int64_t size = num_steps * num_envs;
  const auto rewards = normal<T>(rng, size), values = normal<T>(rng, size), last = normal<T>(rng, num_envs);
  auto final_values = normal<T>(rng, size), next_values = normal<T>(rng, size);
  const auto terminated = coins(rng, size, 0.2), truncated = coins(rng, size, with_truncated ? 0.2 : 0);
  for (size_t i = 0; i < final_values.size(); ++i) {  // what is masked must not leak
    if (!truncated[i] || terminated[i]) final_values[i] = std::numeric_limits<T>::quiet_NaN();
    if (terminated[i]) next_values[i] = std::numeric_limits<T>::quiet_NaN();
  }
  const double gamma = 0.99, gae_lambda = 0.95;
  const auto packed = in_all_variants([&] {
    std::vector<T> advantages(rewards.size()), returns(rewards.size());
    xc::GaeArgs<T> args{rewards.data(),
                        values.data(),
                        terminated.data(),
                        with_truncated ? truncated.data() : nullptr,
                        with_next ? nullptr : last.data(),
                        with_truncated && !with_next ? final_values.data() : nullptr,
                        with_next ? next_values.data() : nullptr,
                        gamma,
                        gae_lambda,
                        advantages.data(),
                        returns.data(),
                        num_steps,
                        num_envs};
    xc::gae_unchecked(args);
    auto packed_all = advantages;
    packed_all.insert(packed_all.end(), returns.begin(), returns.end());
    xc::returns_unchecked(args);
    packed_all.insert(packed_all.end(), returns.begin(), returns.end());
    return packed_all;
  });
  // |delta| <= 15 for normal samples of this size, summed with weights below 1 / (1 - 0.99) at most
  const double tolerance = double(num_steps + 4) * std::numeric_limits<T>::epsilon() * 15 * std::min<double>(double(num_steps), 100);
  for (int64_t n = 0; n < num_envs; ++n) {
    double advantage = 0, total = 0;
    for (int64_t t = num_steps - 1; t >= 0; --t) {
      const size_t i = size_t(t * num_envs + n);
      const bool last_step = t == num_steps - 1, done = terminated[i] || truncated[i];
      double bootstrap;
      if (terminated[i])
        bootstrap = 0;
      else if (with_next)
        bootstrap = double(next_values[i]);
      else if (truncated[i])
        bootstrap = double(final_values[i]);
      else
        bootstrap = double(last_step ? last[size_t(n)] : values[i + size_t(num_envs)]);
      advantage = double(rewards[i]) + gamma * bootstrap - double(values[i]) + (done ? 0 : gamma * gae_lambda * advantage);
      total = double(rewards[i]) + gamma * (done || last_step ? bootstrap : total);
      CHECK(std::abs(double(packed[i]) - advantage) <= tolerance);
      CHECK(std::abs(double(packed[i + rewards.size()]) - (advantage + double(values[i]))) <= tolerance);
      CHECK(std::abs(double(packed[i + 2 * rewards.size()]) - total) <= tolerance);
    }
  }
}

template <class T>
void test_moments(Rng &rng, int64_t rows, int64_t dim, double offset) {
  auto batch = normal<T>(rng, rows * dim);
  for (auto &x : batch) x = T(double(x) + offset);
  const auto state = in_all_variants([&] {
    std::vector<double> m(size_t(2 * dim));
    int64_t count = 0;
    std::vector<float> out(batch.size());
    const xc::Moments moments{m.data(), m.data() + dim, &count};
    const int64_t half = rows / 2;
    if (half) CHECK(xc::moments_update_unchecked(batch.data(), half, dim, moments));
    CHECK(xc::update_and_normalize_unchecked(batch.data() + half * dim, rows - half, dim, moments, 1e-8, 2.0, out.data() + half * dim));
    xc::normalize_unchecked(batch.data(), rows, dim, moments, 1e-8, 2.0, out.data());
    CHECK(count == rows);
    for (float y : out) CHECK(std::abs(y) <= 2);
    return m;
  });
  const auto tracked = in_all_variants([&] {  // the rows as envs, tracked twice
    std::vector<double> m(size_t(2 * dim)), means(batch.size()), m2s(batch.size());
    std::vector<int64_t> counts(static_cast<size_t>(rows));
    int64_t count = 0;
    std::vector<float> out(batch.size());
    const xc::Moments moments{m.data(), m.data() + dim, &count};
    for (int i = 0; i < 2; ++i)
      xc::normalize_and_track_unchecked(batch.data(), rows, dim, moments, 1e-8, 5.0, counts.data(), means.data(), m2s.data(), out.data());
    xc::merge_tracked_unchecked(counts.data(), means.data(), m2s.data(), rows, dim, moments);
    CHECK(count == 2 * rows);
    return m;
  });
  const double eps = std::numeric_limits<double>::epsilon();
  for (int64_t j = 0; j < dim; ++j) {
    long double mean = 0, var = 0;
    for (int64_t i = 0; i < rows; ++i) mean += (long double)(batch[size_t(i * dim + j)]) / rows;
    for (int64_t i = 0; i < rows; ++i) var += (batch[size_t(i * dim + j)] - mean) * (batch[size_t(i * dim + j)] - mean) / rows;
    const double mean_tolerance = eps * double(rows + 8) * (std::abs(offset) + 10);
    // rows * eps relative, for the shift as for Welford; and the rounding of the means squared
    const double var_tolerance = eps * double(rows * rows + 16) * 100 + mean_tolerance * 20;
    for (const auto *m : {&state, &tracked}) {
      CHECK(std::abs((*m)[size_t(j)] - double(mean)) <= mean_tolerance);
      CHECK(std::abs((*m)[size_t(dim + j)] - double(var)) <= var_tolerance);
    }
  }
}

// Where epsilon is added, and which values may enter the moments.
template <class T>
void test_deviation_and_usable(Rng &rng, int64_t rows, int64_t dim) {
  auto batch = normal<T>(rng, rows * dim);
  std::vector<double> mean(static_cast<size_t>(dim)), var(static_cast<size_t>(dim), 0.04);
  int64_t count = 1;
  const xc::Moments moments{mean.data(), var.data(), &count};
  for (const bool outside : {false, true}) {
    const auto out = in_all_variants([&] {
      std::vector<float> result(batch.size());
      xc::normalize_unchecked(batch.data(), rows, dim, moments, {0.05, outside}, std::numeric_limits<double>::infinity(), result.data());
      return result;
    });
    const double deviation = outside ? 0.25 : 0.3;  // sqrt(.04) + .05, sqrt(.04 + .05)
    for (size_t i = 0; i < out.size(); ++i)
      CHECK(std::abs(double(out[i]) - double(batch[i]) / deviation) <= std::numeric_limits<float>::epsilon() * std::abs(out[i]));
  }
  // Returns whether the batch enters the moments; if not, they do not change.
  const auto usable = [&] {
    return in_all_variants([&] {
      std::vector<double> m(size_t(2 * dim), 0.5);
      int64_t number = 3;
      const xc::Moments own{m.data(), m.data() + dim, &number};
      const bool accepted = xc::moments_update_unchecked(batch.data(), rows, dim, own);
      CHECK(number == (accepted ? 3 + rows : 3));
      if (!accepted) CHECK(m == std::vector<double>(size_t(2 * dim), 0.5));
      return std::vector<int>{accepted};
    })[0];
  };
  CHECK(usable());
  const double below = std::nextafter(1e140, 0.0);
  for (const double value : {double(NAN), double(INFINITY), -double(INFINITY), 1e140, -1e140, below, -below, 1e100}) {
    for (const size_t place : {size_t(0), batch.size() - 1, size_t(rng() % batch.size())}) {
      const T before = batch[place];
      batch[place] = std::abs(value) > double(std::numeric_limits<T>::max()) ? std::numeric_limits<T>::infinity() : T(value);
      CHECK(usable() == (std::abs(double(batch[place])) < 1e140));
      batch[place] = before;
    }
  }
}

void test_rewards(Rng &rng, int64_t num_steps, int64_t num_envs) {
  const auto rewards = normal<float>(rng, num_steps * num_envs);
  const auto done = coins(rng, num_steps * num_envs, 0.1);
  in_all_variants([&] {
    std::vector<double> carry(size_t(num_envs), 0.0), scratch(size_t(3 * num_envs));
    std::vector<float> out(rewards.size());
    double mean = 0, var = 1;
    int64_t count = 0;
    xc::normalize_rewards_unchecked(rewards.data(), done.data(), num_steps, num_envs, 0.9, carry.data(), scratch.data(),
                                    xc::Moments{&mean, &var, &count}, 1e-8, 5.0, out.data());
    CHECK(count == num_steps * num_envs);
    for (size_t n = 0; n < size_t(num_envs); ++n)
      if (done[done.size() - size_t(num_envs) + n]) CHECK(carry[n] == 0);
    out.push_back(float(var));
    return out;
  });
}

void test_philox() {  // known answers of Random123
  const struct {
    uint32_t counter[4];
    uint64_t key;
    uint32_t wanted[4];
  } cases[] = {
      {{0, 0, 0, 0}, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{~0u, ~0u, ~0u, ~0u}, ~uint64_t(0), {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const auto &c : cases) {
    uint32_t counter[4];
    std::copy(c.counter, c.counter + 4, counter);
    xc::philox4x32(counter, c.key);
    CHECK(std::equal(counter, counter + 4, c.wanted));
  }
}

void test_noise(uint64_t seed) {
  CHECK(xc::open_uniform(0, 0) == 0x1p-53);
  CHECK(xc::open_uniform(~0u, ~0u) == 1 - 0x1p-53);
  CHECK(xc::inverse_normal_cdf(0.5) == 0);
  for (double u : {0x1p-53, 1e-12, 1e-3, 0.07, 0.2, 0.4999})  // erfc is the other way round, so this is an independent check
    CHECK(std::abs(0.5 * std::erfc(-xc::inverse_normal_cdf(u) / std::sqrt(2.0)) / u - 1) < 1e-13);
  for (double x : {1e-300, 1e-16, 0.3, 0.70710678, 0.7072, 1.0, 1.5, 1e10})
    CHECK(std::abs(xc::portable_log(x) - std::log(x)) <= 4 * std::numeric_limits<double>::epsilon() * std::abs(std::log(x)) + 1e-16);
  const std::vector<int64_t> counters{0, 5, int64_t(1) << 40};
  std::vector<float> all(3 * 5), part(2 * 5);
  xc::gaussian_noise_unchecked(seed, 7, counters.data(), 3, 5, all.data());
  xc::gaussian_noise_unchecked(seed, 8, counters.data() + 1, 2, 5, part.data());
  CHECK(std::equal(part.begin(), part.end(), all.begin() + 5));
  std::vector<double> uniform(3);
  xc::uniform_noise_unchecked(seed, 7, counters.data(), 3, uniform.data());
  for (double u : uniform) CHECK(u > 0 && u < 1);
}

void test_minibatches(uint64_t seed, int64_t num_steps, int64_t num_envs, int64_t n_minibatch, int64_t env_offset) {
  std::vector<int64_t> indices(size_t(num_steps * num_envs), -1), offsets(size_t(n_minibatch + 1)), steps(static_cast<size_t>(num_steps));
  xc::minibatch_indices_unchecked(seed, 3, 1, num_steps, num_envs, n_minibatch, env_offset, indices.data(), offsets.data(), steps.data());
  CHECK(offsets.back() == num_steps * num_envs);
  for (size_t m = 0; m < size_t(n_minibatch); ++m) {
    const int64_t size = offsets[m + 1] - offsets[m], least = num_steps * num_envs / n_minibatch;
    CHECK(size == least || size == least + 1);
  }
  std::sort(indices.begin(), indices.end());
  for (size_t i = 0; i < indices.size(); ++i) CHECK(indices[i] == int64_t(i));
}

void test_rollout(Rng &rng) {
  const int64_t num_steps = 3, num_envs = 5;
  std::vector<float> rewards(size_t(num_steps * num_envs));
  std::vector<uint8_t> terminated(rewards.size()), truncated(rewards.size());
  std::vector<double> returns(size_t(num_envs), 1.5);
  std::vector<int64_t> lengths(size_t(num_envs), 2), cuts(static_cast<size_t>(num_envs));
  std::vector<xc::Episode> episodes(static_cast<size_t>(num_envs));
  const auto r = normal<double>(rng, num_envs);
  const std::vector<uint8_t> end{0, 1, 0, 1, 0}, cut{0, 0, 1, 1, 0};
  CHECK(xc::count_cut_unchecked(end.data(), cut.data(), num_envs) == 1);
  const int64_t finished =
      xc::store_step_unchecked(1, num_envs, r.data(), end.data(), cut.data(), rewards.data() + num_envs, terminated.data() + num_envs,
                               truncated.data() + num_envs, returns.data(), lengths.data(), episodes.data(), cuts.data());
  CHECK(finished == 3 && cuts[0] == num_envs + 2);
  CHECK(episodes[1].env == 2 && episodes[1].step == 1 && episodes[1].length == 3 && episodes[1].ret == 1.5 + r[2]);
  CHECK(returns[2] == 0 && lengths[2] == 0 && lengths[0] == 3 && rewards[size_t(num_envs)] == float(r[0]));
  CHECK(std::equal(end.begin(), end.end(), terminated.begin() + num_envs) && std::equal(cut.begin(), cut.end(), truncated.begin() + num_envs));
  for (int64_t width : {1, 3, 27}) {
    const auto from = normal<float>(rng, 40 * width);
    std::vector<int64_t> indices(30);
    for (auto &i : indices) i = int64_t(rng() % 40);
    CHECK(xc::indices_within(indices.data(), 30, 40));
    std::vector<float> to(size_t(30 * width));
    xc::gather_rows_unchecked(reinterpret_cast<const char *>(from.data()), reinterpret_cast<char *>(to.data()), indices.data(), 30, width * 4);
    for (size_t i = 0; i < to.size(); ++i) CHECK(to[i] == from[size_t(indices[i / size_t(width)] * width) + i % size_t(width)]);
  }
  const int64_t outside[] = {0, -1};
  CHECK(!xc::indices_within(outside, 2, 40));
}

}  // namespace

int main(int argc, char **argv) {
  const uint64_t seed = seed_of(argc, argv);
  Rng rng(seed);
  for (int64_t num_steps : {1, 2, 17})
    for (int64_t num_envs : {1, 3, 8, 13, 64})
      for (int kind = 0; kind < 4; ++kind) {
        test_gae<float>(rng, num_steps, num_envs, kind & 1, kind & 2);
        test_gae<double>(rng, num_steps, num_envs, kind & 1, kind & 2);
      }
  for (int64_t rows : {1, 2, 5, 64})
    for (int64_t dim : {1, 3, 27, 600}) {
      test_moments<double>(rng, rows, dim, 0);
      test_moments<double>(rng, rows, dim, 1e6);
      test_moments<float>(rng, rows, dim, 3);
      test_deviation_and_usable<double>(rng, rows, dim);
      test_deviation_and_usable<float>(rng, rows, dim);
    }
  for (int64_t num_envs : {1, 3, 16}) test_rewards(rng, 33, num_envs);
  test_philox();
  test_noise(seed);
  for (int64_t env_offset : {0, 3}) {
    test_minibatches(seed, 7, 3, 4, env_offset);
    test_minibatches(seed, 16, 8, 128, env_offset);
    test_minibatches(seed, 1, 1, 1, env_offset);
  }
  test_rollout(rng);
  if (failures) std::printf("%d checks failed with seed %llu\n", failures, static_cast<unsigned long long>(seed));
  return failures != 0;
}
