// Tests of envs/engine.hpp, of mujoco/ and of classic/ without Python and without MuJoCo, for the sanitizers: see tests/mujoco_stand_in.hpp.
//   g++ -std=c++17 -g -O1 -fsanitize=thread -I csrc csrc/tests/test_env_engine.cpp -o /tmp/test_engine -pthread && /tmp/test_engine
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "envs/vector_step.hpp"
#include "tests/mujoco_stand_in.hpp"
#include "pool.hpp"

namespace {

using namespace xc::testing;

// Taking each env through many steps by itself gives the same as stepping all of them together, on any number of threads.
template <class World, class Action>
void order_does_not_matter(const Action &action) {
  constexpr int64_t kEnvs = 13, kSteps = 60;
  World together(kEnvs, 9);
  reset_all(together);
  xc::ThreadPool one(1);
  for (int64_t t = 0; t < kSteps; ++t)
    one.run(kEnvs, [&](int64_t i) {
      Guard guard(*together.engine);
      const float a = action(i, t);
      const Step step = together.engine->step_one(i, &a);
      if (step.status == Status::kNeedsReset) {
        together.fill(i);
        CHECK(together.engine->reset_one(i) == Status::kDone);
      }
    });
  for (const int threads : {2, 5}) {
    World apart(kEnvs, 9);
    reset_all(apart);
    xc::ThreadPool pool(threads);
    pool.run(kEnvs, [&](int64_t i) {
      Guard guard(*apart.engine);
      for (int64_t t = 0; t < kSteps; ++t) {
        const float a = action(i, t);
        if (apart.engine->step_one(i, &a).status == Status::kNeedsReset) {
          apart.fill(i);
          CHECK(apart.engine->reset_one(i) == Status::kDone);
        }
      }
    });
    CHECK(apart.obs == together.obs && apart.final_obs == together.final_obs);
    CHECK(apart.finished_returns == together.finished_returns && apart.finished_lengths == together.finished_lengths);
  }
}

// A vector step gives the same as stepping each env by itself, and reports ends, lacking initial states and failures, on any
// number of threads.
template <class World, class Action>
void vector_steps(const Action &action) {
  constexpr int64_t kSteps = 40;
  for (const int64_t envs : {1, 2, 3, 13, 16, 300})
    for (const int threads : {1, 2, 3, 8}) {
      World apart(envs, 9), together(envs, 9);
      reset_all(apart);
      reset_all(together);
      xc::ThreadPool pool(threads);
      xc::envs::VectorStep vector_step(together.engine->sizes(), threads);
      std::vector<float> actions(static_cast<size_t>(envs));
      for (int64_t t = 0; t < kSteps; ++t) {
        bool failed = false, ended = false, exhausted = false;
        for (int64_t i = 0; i < envs; ++i) {
          Guard guard(*apart.engine);
          actions[size_t(i)] = action(i, t);
          const Status status = apart.engine->step_one(i, &actions[size_t(i)]).status;
          failed |= status == Status::kFailed;
          ended |= status == Status::kDone;
          exhausted |= status == Status::kDone && !apart.engine->has_draw(i);
        }
        const auto result = vector_step.run(*together.engine, pool, actions.data(), true);
        CHECK(result.failed == failed && result.ended == ended && result.exhausted == exhausted);
        for (int64_t i = 0; i < envs; ++i) {
          CHECK(apart.engine->take_error(i) == together.engine->take_error(i));
          if (apart.used[size_t(i)] == apart.drawn[size_t(i)]) apart.fill(i), together.fill(i);
        }
        CHECK(apart.obs == together.obs && apart.final_obs == together.final_obs && apart.rewards == together.rewards);
        CHECK(apart.terminated == together.terminated && apart.truncated == together.truncated && apart.elapsed == together.elapsed);
        CHECK(apart.returns == together.returns && apart.finished_returns == together.finished_returns);
      }
    }
}

// Three envs, whose steps have four parts. The second part of env 1 waits until env 2 is done.
class Waiting final : public xc::envs::Dynamics {
 public:
  Waiting() : Dynamics({3, 1, 1, 1, 0, 1, 4}) {}

  xc::envs::Outcome step(int64_t i, const float *, const xc::envs::Parts &parts) override {
    CHECK(parts.begin == done[i] && parts.end == parts.begin + 1);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (i == 1 && parts.begin == 1 && done[2] < 4) {
      CHECK(std::chrono::steady_clock::now() < deadline);
      std::this_thread::yield();
    }
    done[i] = parts.end;
    return {double(parts.end), false};
  }
  const char *reset(int64_t, const double *) override { return nullptr; }
  void observe(int64_t i, double *obs) const override { *obs = double(done[i]); }

  std::atomic<int64_t> done[3] = {};
};

// A thread does the parts that another one leaves, also in the middle of a step.
void parts_are_shared() {
  Memory memory(3);
  auto owned = std::make_unique<Waiting>();
  Waiting &dynamics = *owned;
  Engine engine({0, kCapacity}, std::move(owned), memory.rows());
  xc::ThreadPool pool(2);
  xc::envs::VectorStep vector_step(engine.sizes(), 2);
  const float actions[3] = {};
  for (int repeat = 0; repeat < 200; ++repeat) {
    for (auto &done : dynamics.done) done = 0;
    vector_step.run(engine, pool, actions, true);
    for (int64_t i = 0; i < 3; ++i) CHECK(memory.obs[size_t(i)] == 4 && memory.rewards[size_t(i)] == 4 && memory.elapsed[size_t(i)] == repeat + 1);
  }
}

// A pole that is always pushed the same way falls; observations are rounded to float32.
void cart_poles_fall() {
  ClassicWorld world(2, 0);
  reset_all(world);
  Guard guard(*world.engine);
  for (int64_t i = 0; i < 2; ++i) {
    const float push = float(i);
    int steps = 1;
    while (world.engine->step_one(i, &push).status == Status::kRunning) ++steps;
    CHECK(steps > 5 && steps < 20 && world.terminated[i] && !world.truncated[i] && world.finished_returns[i] == steps);
    CHECK((world.final_obs[4 * i + 2] > 0.2) == (i == 0) && (world.final_obs[4 * i + 2] < -0.2) == (i == 1));
  }
  for (const double x : world.final_obs) CHECK(x == float(x));
}

void episodes_end() {
  World world(1, 4);
  reset_all(world);
  Guard guard(*world.engine);
  const float still = 0;
  for (int t = 1; t <= 4; ++t) {
    const Step step = world.engine->step_one(0, &still);
    CHECK(step.reward == 1 && !step.terminated && step.truncated == (t == 4));
    CHECK(step.status == (t == 4 ? Status::kDone : Status::kRunning));
  }
  CHECK(world.finished_returns[0] == 4 && world.finished_lengths[0] == 4 && world.returns[0] == 0 && world.elapsed[0] == 0);
  CHECK(world.obs[0] == world.draws[4] && world.final_obs[1] > 0.15);
  // The initial states run out: the env waits until there are more.
  Step step{};
  for (int t = 0; t < 8; ++t) step = world.engine->step_one(0, &still);
  CHECK(step.status == Status::kNeedsReset && !world.engine->has_draw(0) && world.engine->reset_one(0) == Status::kNeedsReset);
  world.fill(0);
  CHECK(world.engine->reset_one(0) == Status::kDone && world.engine->step_one(0, &still).status == Status::kRunning);
}

void warnings_and_errors() {
  World world(4, 3);
  reset_all(world);
  xc::ThreadPool pool(3);
  for (int round = 0; round < 50; ++round) {
    std::vector<Step> steps(4);
    pool.run(4, [&](int64_t i) {
      Guard guard(*world.engine);
      const float a = i == 2 && round % 5 == 1 ? 99.f : i == 1 ? 5.f : 0.f;
      steps[i] = world.engine->step_one(i, &a);
    });
    for (int64_t i = 0; i < 4; ++i) {
      CHECK((steps[i].status == Status::kFailed) == (i == 2 && round % 5 == 1));
      const std::string message = world.engine->take_error(i);
      CHECK(message == (i == 2 && round % 5 == 1 ? "MuJoCo raised an error: stack overflow" : ""));
      if (world.used[i] == world.drawn[i]) world.fill(i);
    }
    CHECK(log_handler == nullptr);  // the guard puts back what was there
  }
  CHECK(world.warning_counts[1 * kWarnings + 3] > 0 && world.warning_counts[0 * kWarnings + 3] == 0);
}

// An error that misses the thread's handler is noticed, and all handlers are put back.
void whether_errors_arrive() {
  const auto ignore = [](Api::LogHandler) -> Api::LogHandler { return nullptr; };  // a setter of another shape: it sets nothing
  Api api;
  api.error = &stand_in_error;
  CHECK(!errors_arrive(api));  // without a setter and without a second net it does not even try
  api.set_log_handler = &set_log_handler;
  CHECK(!errors_arrive(api));
  for (const bool by_log : {true, false}) {
    api.set_process_log_handler = by_log ? &set_process_log_handler : nullptr;
    api.process_error_handler = by_log ? nullptr : &process_error_handler;
    api.set_log_handler = &set_log_handler;
    CHECK(errors_arrive(api));
    api.set_log_handler = ignore;
    CHECK(!errors_arrive(api));
    CHECK(!log_handler && !process_log_handler && !process_error_handler);
  }
}

void arithmetic() {
  std::vector<double> x(1000);
  for (size_t k = 0; k < x.size(); ++k) x[k] = 1.0 / static_cast<double>(k + 1);
  for (const int64_t n : {0, 1, 7, 8, 9, 127, 128, 129, 1000}) {
    double plain = 0;
    for (int64_t k = 0; k < n; ++k) plain += x[k] * x[k];
    CHECK(std::fabs(sum_of_squares(x.data(), n) - plain) < 1e-12);
  }
  CHECK(std::isnan(clip<double>(NAN, -1, 1)) && clip<double>(3, -1, 1) == 1 && clip<double>(-INFINITY, -1, 1) == -1 && clip(0.5, -1.0, 1.0) == 0.5);
  CHECK(pow2(3.0) == 9 && pow2(3.0f) == 9 && xc::envs::modulo(-1.0, 3.0) == 2 && xc::envs::modulo(7.5, 3.0) == 1.5 && std::isnan(xc::envs::modulo(NAN, 3.0)));
}

}  // namespace

int main() {
  order_does_not_matter<World>([](int64_t i, int64_t t) { return static_cast<float>((i * 7 + t * 3) % 11 - 5) * 0.3f; });
  order_does_not_matter<ClassicWorld>([](int64_t i, int64_t t) { return static_cast<float>((i * 7 + t * 3) % 11 % 2); });
  vector_steps<World>([](int64_t i, int64_t t) { return (i + t) % 17 == 5 ? 99.f : static_cast<float>((i * 7 + t * 3) % 11 - 5) * 0.3f; });
  vector_steps<ClassicWorld>([](int64_t i, int64_t t) { return static_cast<float>((i * 7 + t * 3) % 11 % 2); });
  parts_are_shared();
  cart_poles_fall();
  episodes_end();
  warnings_and_errors();
  whether_errors_arrive();
  arithmetic();
  std::puts("env engine: ok");
}
