// Tests of collect/ without Python and without MuJoCo, for the sanitizers; see tests/mujoco_stand_in.hpp.
#include "collect/collection.hpp"
#include "collect/evaluation.hpp"
#include "tests/mujoco_stand_in.hpp"

namespace {

using namespace xc::testing;
using namespace xc::collect;

constexpr int64_t kObs = kNq + kNv, kSteps = 50;

// A network with one hidden layer of 5, and a critic that is not used.
std::unique_ptr<Policy> make_policy(float low, float high) {
  using xc::nn::Activation;
  xc::nn::Network network{{{kObs, 5, 0, 20, xc::nn::kObs, Activation::leaky_relu},
                           {5, 1, 25, 30, 0, Activation::tanh},
                           {5, 1, 31, 36, 0, Activation::none}},
                          1,
                          2,
                          37,
                          kObs,
                          38};
  auto policy = std::make_unique<Policy>(network, ActionMap{{low}, {high}, {3.0f}, {0.5f}});
  std::vector<float> parameters(38);
  for (size_t k = 0; k < parameters.size(); ++k) parameters[k] = 0.3f * float((k * 7) % 11) - 1.0f;
  const float deviation = 0.7f;
  policy->load(parameters.data(), &deviation);
  return policy;
}

// A network of one layer, from the observations to the logits of two actions.
std::unique_ptr<Policy> make_choosing_policy() {
  using xc::nn::Activation;
  xc::nn::Network network{{{kObs, 2, 0, 8, xc::nn::kObs, Activation::none}, {kObs, 1, 10, 14, xc::nn::kObs, Activation::none}}, 0, 1, -1,
                          kObs, 15};
  auto policy = std::make_unique<Policy>(network, ActionMap{});
  const std::vector<float> parameters{-1, -2, -3, -2, 1, 2, 3, 2, 0.1f, -0.1f, 0, 0, 0, 0, 0};
  policy->load(parameters.data(), nullptr);
  return policy;
}

void choices() {
  const float logits[] = {0.0f, 1.0f, -1.0f};
  const double sum = 1 + std::exp(1.0) + std::exp(-1.0), first = 1 / sum, second = (1 + std::exp(1.0)) / sum;
  double scratch[3];
  const auto at = [&](double noise) { return sample_categorical(logits, 3, noise, scratch); };
  CHECK(at(1e-16) == 0 && at(first - 1e-9) == 0 && at(first + 1e-9) == 1 && at(second - 1e-9) == 1 && at(second + 1e-9) == 2);
  CHECK(at(1 - 1e-16) == 2 && mode_categorical(logits, 3) == 1);
  const float equal[] = {2.0f, 2.0f}, broken[] = {0.0f, NAN, 3.0f}, one[] = {5.0f};
  CHECK(mode_categorical(equal, 2) == 0 && mode_categorical(broken, 3) == 1 && mode_categorical(one, 1) == 0);
  CHECK(sample_categorical(broken, 3, 0.5, scratch) == 0 && sample_categorical(one, 1, 0.5, scratch) == 0);
  const float far[] = {-1e30f, 1e30f};
  CHECK(sample_categorical(far, 2, 1e-16, scratch) == 1);
}

// Everything that a collection writes, and the number of refills that it requested.
struct Result {
  explicit Result(int64_t n)
      : obs(kSteps * n * kObs), actions(kSteps * n), rewards(kSteps * n), choices(kSteps * n), terminated(kSteps * n), truncated(kSteps * n), returns(n),
        lengths(n), counters(n), counts(n), means(n * kObs), m2s(n * kObs), mean(kObs, 0.05), var(kObs, 0.2) {}

  bool operator==(const Result &o) const {
    return obs == o.obs && actions == o.actions && choices == o.choices && rewards == o.rewards && terminated == o.terminated && truncated == o.truncated &&
           returns == o.returns && lengths == o.lengths && counters == o.counters && counts == o.counts && means == o.means &&
           m2s == o.m2s && ended.final_index == o.ended.final_index && ended.final_obs == o.ended.final_obs &&
           episodes() == o.episodes();
  }
  std::vector<std::vector<double>> episodes() const {
    std::vector<std::vector<double>> rows;
    for (const xc::Episode &e : ended.episodes) rows.push_back({double(e.step), double(e.env), e.ret, double(e.length)});
    return rows;
  }
  Normalizer normalizer() {
    return {true, {mean.data(), var.data(), &count}, 1e-8, 5, counts.data(), means.data(), m2s.data()};
  }

  std::vector<float> obs, actions, rewards;
  std::vector<int64_t> choices;
  std::vector<uint8_t> terminated, truncated;
  std::vector<double> returns;
  std::vector<int64_t> lengths, counters, counts;
  std::vector<double> means, m2s, mean, var;
  int64_t count = 3, refills = 0;
  Collection::Ended ended;
};

constexpr int64_t kLimit = 4;

// One of three episodes ends by termination after three steps, the others by the time limit.
void refill(Memory &world) {
  for (int64_t i = 0; i < world.engine->num_envs(); ++i) {
    if (world.engine->has_draw(i)) continue;
    world.fill(i);
    world.draws[size_t((i * kCapacity + i % kCapacity) * kObs + 1)] = 0.09;
  }
}

// The noise that envs with one action draw, step by step, in kSteps steps.
std::vector<float> drawn_ahead(int64_t n) {
  std::vector<float> noise(size_t(kSteps * n));
  std::vector<int64_t> counters(size_t(n), 0);
  for (int64_t t = 0; t < kSteps; ++t) {
    xc::gaussian_noise_unchecked(5, 0, counters.data(), n, 1, noise.data() + t * n);
    for (int64_t &count : counters) ++count;
  }
  return noise;
}

// Collects steps [0, cut) and [cut, kSteps) in two calls, each of which pauses whenever `limit` has passed. The noise [kSteps, n]
// is drawn unless it is given.
template <class World>
Result collect(int64_t n, int threads, int64_t cut, Schedule::Clock::duration limit = Schedule::kNoLimit, const float *noise = nullptr) {
  constexpr bool kChoices = std::is_same_v<World, ClassicWorld>;
  World world(n, kLimit);
  reset_all(world);
  const auto policy = kChoices ? make_choosing_policy() : make_policy(-4, 4);
  xc::ThreadPool pool(threads);
  Result result(n);
  const RolloutRows rows{result.obs.data(),
                         result.rewards.data(),
                         kChoices ? nullptr : result.actions.data(),
                         kChoices ? result.choices.data() : nullptr,
                         result.terminated.data(),
                         result.truncated.data(),
                         result.returns.data(),
                         result.lengths.data()};
  for (const auto &[begin, end] : {std::pair<int64_t, int64_t>{0, cut}, {cut, kSteps}}) {
    const Noise given{5, 0, result.counters.data(), noise ? noise + begin * n : nullptr};
    Collection collection(*world.engine, *policy, result.normalizer(), rows, given, begin, end, threads);
    while (!collection.run(pool, limit)) {
      CHECK(!collection.failed());
      refill(world);
      ++result.refills;
    }
    const auto ended = collection.ended();
    auto &all = result.ended;
    all.episodes.insert(all.episodes.end(), ended.episodes.begin(), ended.episodes.end());
    all.final_index.insert(all.final_index.end(), ended.final_index.begin(), ended.final_index.end());
    all.final_obs.insert(all.final_obs.end(), ended.final_obs.begin(), ended.final_obs.end());
  }
  return result;
}

template <class World>
void same_on_any_number_of_threads() {
  const Result expected = collect<World>(13, 1, 0);
  const size_t episodes = expected.ended.episodes.size(), finals = expected.ended.final_index.size();
  CHECK(expected.refills >= 1 && episodes > 13 * 10 && finals > 0 && (finals < episodes || std::is_same_v<World, ClassicWorld>));
  for (size_t k = 1; k < expected.ended.episodes.size(); ++k) {
    const auto &a = expected.ended.episodes[k - 1], &b = expected.ended.episodes[k];
    CHECK(a.step < b.step || (a.step == b.step && a.env < b.env));
  }
  for (const int64_t count : expected.counters) CHECK(count == kSteps);
  for (const int threads : {2, 3, 5, 16})
    for (const int64_t cut : {0, 1, 23, 50}) CHECK(collect<World>(13, threads, cut) == expected);
}

// The same numbers, whether the steps draw them or find them in an array.
void same_with_noise_drawn_ahead() {
  const Result expected = collect<World>(13, 1, 0);
  const std::vector<float> noise = drawn_ahead(13);
  for (const int threads : {1, 3})
    for (const int64_t cut : {0, 23}) CHECK(collect<World>(13, threads, cut, Schedule::kNoLimit, noise.data()) == expected);
  const std::vector<float> other(noise.size(), 0.25f);
  CHECK(!(collect<World>(13, 1, 0, Schedule::kNoLimit, other.data()) == expected));
}

// Pauses after each step of a block, and a few at times that differ from run to run.
template <class World>
void same_with_pauses() {
  const Result expected = collect<World>(13, 1, 0);
  for (const int threads : {1, 3})
    for (const auto limit : {std::chrono::microseconds(0), std::chrono::microseconds(20)}) {
      const Result paused = collect<World>(13, threads, 23, limit);
      CHECK(paused == expected);
      CHECK(limit.count() > 0 || paused.refills >= kSteps);
    }
}

// Envs that never terminate; the third observation of envs 4 and 5 is infinite.
class Boundless final : public xc::envs::Dynamics {
 public:
  explicit Boundless(int64_t n) : Dynamics({n, kObs, 1, kObs}) {}
  xc::envs::Outcome step(int64_t, const float *, const xc::envs::Parts &) override { return {1.0, false}; }
  const char *reset(int64_t, const double *) override { return nullptr; }
  void observe(int64_t i, double *obs) const override {
    for (int64_t k = 0; k < kObs; ++k) obs[k] = i >= 4 && k == 2 ? INFINITY : 0.0;
  }
};

// The collection names the first final observation that is not finite, although normalization clips it to an ordinary number.
void final_observations_that_are_not_finite() {
  Memory world(6);
  world.engine = std::make_unique<Engine>(Engine::Config{kLimit, kCapacity}, std::make_unique<Boundless>(6), world.rows());
  reset_all(world);
  const auto policy = make_policy(-4, 4);
  xc::ThreadPool pool(3);
  Result result(6);
  const RolloutRows rows{result.obs.data(),        result.rewards.data(),   result.actions.data(), nullptr,
                         result.terminated.data(), result.truncated.data(), result.returns.data(), result.lengths.data()};
  Collection collection(*world.engine, *policy, result.normalizer(), rows, Noise{5, 0, result.counters.data()}, 0, kLimit, 3);
  CHECK(collection.run(pool, Schedule::kNoLimit));
  const auto ended = collection.ended();
  CHECK(ended.not_finite == (kLimit - 1) * 6 + 4);
  CHECK(collect<World>(13, 2, 0).ended.not_finite == -1);
}

void failures_stop_it() {
  World world(6, kLimit);
  reset_all(world);
  const auto policy = make_policy(99, 99);
  xc::ThreadPool pool(3);
  Result result(6);
  const RolloutRows rows{result.obs.data(),        result.rewards.data(),   result.actions.data(), nullptr,
                         result.terminated.data(), result.truncated.data(), result.returns.data(), result.lengths.data()};
  Collection collection(*world.engine, *policy, result.normalizer(), rows, Noise{5, 0, result.counters.data()}, 0, kSteps, 3);
  CHECK(!collection.run(pool, Schedule::kNoLimit) && collection.failed());
  bool named = false;
  for (int64_t i = 0; i < 6; ++i) named |= world.engine->take_error(i) == "MuJoCo raised an error: stack overflow";
  CHECK(named);
}

template <class World>
std::vector<double> evaluate(int64_t n, int threads, int64_t quota, Schedule::Clock::duration limit = Schedule::kNoLimit) {
  World world(n, kLimit);
  reset_all(world);
  const auto policy = std::is_same_v<World, ClassicWorld> ? make_choosing_policy() : make_policy(-4, 4);
  xc::ThreadPool pool(threads);
  Result result(n);
  Evaluation evaluation(*world.engine, *policy, result.normalizer(), quota, threads);
  while (!evaluation.run(pool, limit)) {
    CHECK(!evaluation.failed());
    refill(world);
  }
  CHECK(result.means == std::vector<double>(size_t(n * kObs)));
  return evaluation.scores();
}

template <class World>
void evaluation_is_the_same_on_any_number_of_threads() {
  const std::vector<double> expected = evaluate<World>(7, 1, 5);
  for (const double score : expected) CHECK(score >= 1 && score <= kLimit);
  for (const int threads : {2, 5}) CHECK(evaluate<World>(7, threads, 5) == expected);
  for (const int threads : {1, 3}) CHECK(evaluate<World>(7, threads, 5, Schedule::Clock::duration::zero()) == expected);
}

}  // namespace

int main() {
  choices();
  same_on_any_number_of_threads<World>();
  same_on_any_number_of_threads<ClassicWorld>();
  same_with_noise_drawn_ahead();
  same_with_pauses<World>();
  same_with_pauses<ClassicWorld>();
  final_observations_that_are_not_finite();
  failures_stop_it();
  evaluation_is_the_same_on_any_number_of_threads<World>();
  evaluation_is_the_same_on_any_number_of_threads<ClassicWorld>();
  std::puts("collector: ok");
}
