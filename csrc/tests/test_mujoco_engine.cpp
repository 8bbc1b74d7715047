// Tests of mujoco/engine.hpp without Python and without MuJoCo, for the sanitizers. A stand-in takes the place of MuJoCo's functions: a
// cart whose speed is its control, that warns and fails when told to.
//   g++ -std=c++17 -g -O1 -fsanitize=thread -I csrc csrc/tests/test_mujoco_engine.cpp -o /tmp/test_engine -pthread && /tmp/test_engine
#include "mujoco/engine.hpp"

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "mujoco/tasks.hpp"
#include "pool.hpp"

#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) {                                                             \
      std::fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                 \
    }                                                                               \
  } while (0)

namespace {

using namespace xc::mujoco;

constexpr int64_t kNq = 2, kNv = 2, kNu = 1, kCapacity = 3;

struct Data {
  double qpos[kNq], qvel[kNv], ctrl[kNu];
  int warnings[8];
};

thread_local Api::LogHandler log_handler = nullptr;

struct Message {
  int level, topic;
  char subject[1024];
};

Api::LogHandler set_log_handler(Api::LogHandler handler) {
  return std::exchange(log_handler, handler);
}
void stand_in_step(const void *, void *d) {
  auto *data = static_cast<Data *>(d);
  if (data->ctrl[0] == 99) {
    const Message message{3, 0, "stack overflow"};
    log_handler(&message);
    std::abort();  // an error handler does not return
  }
  if (data->ctrl[0] == 5) {
    const Message message{2, 0, "unstable"};
    log_handler(&message);
    ++data->warnings[2 * 3 + 1];
  }
  data->qvel[0] = data->ctrl[0];
  data->qpos[0] += 0.01 * data->qvel[0];
  data->qpos[1] += 0.02;
}
void stand_in_forward(const void *, void *) {}
void stand_in_reset(const void *, void *d) { *static_cast<Data *>(d) = Data{}; }

struct World {
  explicit World(int64_t n, int64_t limit) : data(n), obs(4 * n), final_obs(4 * n), rewards(n), returns(n), finished_returns(n),
        terminated(n), truncated(n), lengths(n), finished_lengths(n), elapsed(n), draws(n * kCapacity * (kNq + kNv)), drawn(n), used(n),
        terms(n), warning_counts(n * kWarnings) {
    Engine::Config config;
    config.api.step = &stand_in_step;
    config.api.forward = &stand_in_forward;
    config.api.reset_data = &stand_in_reset;
    config.api.rne_post_constraint = &stand_in_forward;
    config.api.set_log_handler = &set_log_handler;
    config.nq = kNq;
    config.nv = kNv;
    config.nu = kNu;
    config.frame_skip = 2;
    config.max_episode_steps = limit;
    config.draws_capacity = kCapacity;
    config.num_warnings = 4;
    config.warning_stride = 2 * sizeof(int);
    std::vector<Simulation> simulations(n);
    for (int64_t i = 0; i < n; ++i) {
      Simulation &sim = simulations[i];
      sim.data = &data[i];
      sim.qpos = data[i].qpos;
      sim.qvel = data[i].qvel;
      sim.ctrl = data[i].ctrl;
      sim.warnings = reinterpret_cast<const char *>(&data[i].warnings[1]);
      sim.fields = {};
      sim.fields.qpos = sim.qpos;
      sim.fields.qvel = sim.qvel;
      sim.fields.ctrl = sim.ctrl;
    }
    Setup setup;
    setup.nq = kNq;
    setup.nv = kNv;
    setup.nu = kNu;
    setup.dt = 0.02;
    setup.v5 = true;
    const Rows rows{obs.data(), final_obs.data(), rewards.data(), terminated.data(), truncated.data(), returns.data(), lengths.data(),
                    finished_returns.data(), finished_lengths.data(), elapsed.data(), draws.data(), drawn.data(), used.data(),
                    terms.data(), warning_counts.data()};
    engine = std::make_unique<Engine>(config, make_task("InvertedPendulum", setup), simulations, rows);
  }

  void fill(int64_t i) {
    for (int64_t k = 0; k < kCapacity * (kNq + kNv); ++k) draws[i * kCapacity * (kNq + kNv) + k] = 0.001 * static_cast<double>(k);
    used[i] = 0;
    drawn[i] = kCapacity;
  }

  std::vector<Data> data;
  std::vector<double> obs, final_obs, rewards, returns, finished_returns;
  std::vector<uint8_t> terminated, truncated;
  std::vector<int64_t> lengths, finished_lengths, elapsed;
  std::vector<double> draws;
  std::vector<int64_t> drawn, used;
  std::vector<Terms> terms;
  std::vector<int64_t> warning_counts;
  std::unique_ptr<Engine> engine;
};

void reset_all(World &world) {
  Engine &engine = *world.engine;
  for (int64_t i = 0; i < engine.num_envs(); ++i) {
    world.fill(i);
    Guard guard(engine.api());
    CHECK(engine.reset_one(i) == Status::kDone);
  }
}

// Each env through many steps of its own without a barrier, and all of them step by step: the same, on any number of threads.
void order_does_not_matter() {
  constexpr int64_t kEnvs = 13, kSteps = 60;
  const auto action = [](int64_t i, int64_t t) { return static_cast<float>((i * 7 + t * 3) % 11 - 5) * 0.3f; };
  World together(kEnvs, 9);
  reset_all(together);
  xc::ThreadPool one(1);
  for (int64_t t = 0; t < kSteps; ++t)
    one.run(kEnvs, [&](int64_t i) {
      Guard guard(together.engine->api());
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
      Guard guard(apart.engine->api());
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

void episodes_end() {
  World world(1, 4);
  reset_all(world);
  Guard guard(world.engine->api());
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
      Guard guard(world.engine->api());
      const float a = i == 2 && round % 5 == 1 ? 99.f : i == 1 ? 5.f : 0.f;
      steps[i] = world.engine->step_one(i, &a);
    });
    for (int64_t i = 0; i < 4; ++i) {
      CHECK((steps[i].status == Status::kFailed) == (i == 2 && round % 5 == 1));
      const std::string message = world.engine->take_error(i);
      CHECK(message == (i == 2 && round % 5 == 1 ? "stack overflow" : ""));
      if (world.used[i] == world.drawn[i]) world.fill(i);
    }
    CHECK(log_handler == nullptr);  // the guard puts back what was there
  }
  CHECK(world.warning_counts[1 * kWarnings + 3] > 0 && world.warning_counts[0 * kWarnings + 3] == 0);
}

void arithmetic() {
  std::vector<double> x(1000);
  for (size_t k = 0; k < x.size(); ++k) x[k] = 1.0 / static_cast<double>(k + 1);
  for (const int64_t n : {0, 1, 7, 8, 9, 127, 128, 129, 1000}) {
    double plain = 0;
    for (int64_t k = 0; k < n; ++k) plain += x[k] * x[k];
    CHECK(std::fabs(sum_of_squares(x.data(), n) - plain) < 1e-12);
  }
  CHECK(std::isnan(clip(NAN, -1, 1)) && clip(3, -1, 1) == 1 && clip(-INFINITY, -1, 1) == -1 && clip(0.5, -1, 1) == 0.5);
  CHECK(pow2(3) == 9);
}

}  // namespace

int main() {
  order_does_not_matter();
  episodes_end();
  warnings_and_errors();
  arithmetic();
  std::puts("mujoco engine: ok");
}
