// A stand-in for MuJoCo's functions, for tests without Python and without MuJoCo. It simulates a cart whose speed is its
// control, and warns or fails on demand. A World is an engine with N of them, as inverted pendulums with a time limit. A
// ClassicWorld is an engine with N cart poles.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "classic/models.hpp"
#include "mujoco/simulations.hpp"
#include "mujoco/tasks.hpp"

#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) {                                                             \
      std::fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                 \
    }                                                                               \
  } while (0)

namespace xc::testing {

using namespace xc::mujoco;
using envs::Engine, envs::Rows, envs::Status, envs::Step;
using Guard = envs::Engine::Guard;

constexpr int64_t kNq = 2, kNv = 2, kNu = 1, kCapacity = 3;

struct Data {
  double qpos[kNq], qvel[kNv], ctrl[kNu];
  int warnings[8];
};

inline thread_local Api::LogHandler log_handler = nullptr;

struct Message {
  int level, topic;
  char subject[1024];
};

inline Api::LogHandler set_log_handler(Api::LogHandler handler) {
  return std::exchange(log_handler, handler);
}

// The handlers of the process, and a function that raises an error: it tries the thread's handler, then these, like MuJoCo.
inline Api::LogHandler process_log_handler = nullptr;
inline Api::TextHandler process_error_handler = nullptr;
inline Api::LogHandler set_process_log_handler(Api::LogHandler handler) { return std::exchange(process_log_handler, handler); }
inline void stand_in_error(const char *, ...) {
  const Message message{3, 0, "a test of xcfast's error handler"};
  if (log_handler) log_handler(&message);
  if (process_log_handler) process_log_handler(&message);
  if (process_error_handler) process_error_handler(message.subject);
  std::abort();
}
inline void stand_in_step(const void *, void *d) {
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
inline void stand_in_forward(const void *, void *) {}
inline void stand_in_reset(const void *, void *d) { *static_cast<Data *>(d) = Data{}; }

// The arrays of an engine of n envs, whose observations have four numbers each, and whose draws have four unless `draw` says otherwise.
struct Memory {
  explicit Memory(int64_t n, int64_t draw = 4)
      : draw_size(draw), obs(4 * n), final_obs(4 * n), rewards(n), returns(n), finished_returns(n), terminated(n), truncated(n), lengths(n),
        finished_lengths(n), elapsed(n), draws(n * kCapacity * draw), drawn(n), used(n) {}

  Rows rows() {
    return {obs.data(),    final_obs.data(),        rewards.data(),          terminated.data(), truncated.data(), returns.data(),
            lengths.data(), finished_returns.data(), finished_lengths.data(), elapsed.data(),    draws.data(),     drawn.data(),
            used.data()};
  }

  void fill(int64_t i) {
    const int64_t size = kCapacity * draw_size;
    for (int64_t k = 0; k < size; ++k) draws[i * size + k] = 0.001 * static_cast<double>(k);
    used[i] = 0;
    drawn[i] = kCapacity;
  }

  const int64_t draw_size;
  std::vector<double> obs, final_obs, rewards, returns, finished_returns;
  std::vector<uint8_t> terminated, truncated;
  std::vector<int64_t> lengths, finished_lengths, elapsed;
  std::vector<double> draws;
  std::vector<int64_t> drawn, used;
  std::unique_ptr<Engine> engine;
};

struct World : Memory {
  World(int64_t n, int64_t limit) : Memory(n), data(n), terms(n), warning_counts(n * kWarnings) {
    static_assert(kNq + kNv == 4);
    auto dynamics = std::make_unique<Simulations>(config(), make_task("InvertedPendulum", setup()), simulations());
    engine = std::make_unique<Engine>(Engine::Config{limit, kCapacity}, std::move(dynamics), rows());
  }

  std::vector<Data> data;
  std::vector<Terms> terms;
  std::vector<int64_t> warning_counts;

 protected:
  World(int64_t n, int64_t draw, bool) : Memory(n, draw), data(n), terms(n), warning_counts(n * kWarnings) {}  // without an engine

  Simulations::Config config() {
    Simulations::Config config;
    config.api.step = &stand_in_step;
    config.api.forward = &stand_in_forward;
    config.api.reset_data = &stand_in_reset;
    config.api.rne_post_constraint = &stand_in_forward;
    config.api.set_log_handler = &set_log_handler;
    config.nq = kNq;
    config.nv = kNv;
    config.nu = kNu;
    config.frame_skip = 2;
    config.num_warnings = 4;
    config.warning_stride = 2 * sizeof(int);
    config.terms = terms.data();
    config.warning_counts = warning_counts.data();
    return config;
  }

  std::vector<Simulation> simulations() {
    std::vector<Simulation> simulations(data.size());
    for (size_t i = 0; i < data.size(); ++i) {
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
    return simulations;
  }

  static Setup setup() {
    Setup setup;
    setup.nq = kNq;
    setup.nv = kNv;
    setup.nu = kNu;
    setup.dt = 0.02;
    setup.v5 = true;
    return setup;
  }
};

struct ClassicWorld : Memory {
  ClassicWorld(int64_t n, int64_t limit) : Memory(n), states(4 * n) {
    const envs::Values values{{{"gravity", 9.8}, {"masspole", 0.1}, {"total_mass", 1.1}, {"length", 0.5}, {"polemass_length", 0.05},
                               {"force_mag", 10}, {"tau", 0.02}, {"euler", 1}, {"theta_threshold_radians", 0.2}, {"x_threshold", 2.4},
                               {"sutton_barto_reward", 0}}};
    engine = classic::with_model("CartPole", values, envs::Numpy{}, [&](const auto &model) {
      using Model = std::decay_t<decltype(model)>;
      auto dynamics = std::make_unique<classic::Control<Model>>(model, states.data(), n);
      return std::make_unique<Engine>(Engine::Config{limit, kCapacity}, std::move(dynamics), rows());
    });
  }

  std::vector<double> states;
};

inline void reset_all(Memory &world) {
  Engine &engine = *world.engine;
  for (int64_t i = 0; i < engine.num_envs(); ++i) {
    world.fill(i);
    Guard guard(engine);
    CHECK(engine.reset_one(i) == Status::kDone);
  }
}

}  // namespace xc::testing
