// Tests of mujoco/own_task.hpp with functions written in C++ where a user's are compiled from Python, for the sanitizers.
//   g++ -std=c++17 -g -O1 -fsanitize=thread -I csrc csrc/tests/test_own_task.cpp -o /tmp/test_own -pthread && /tmp/test_own
#include <cmath>
#include <string>
#include <vector>

#include "pool.hpp"
#include "tests/mujoco_stand_in.hpp"

namespace {

using namespace xc::testing;

// memory: the position before the step, and a counter. constants: a gain.
int before_step(const void *const *fields, const void *, void *memory, double *, const double *, double *) {
  static_cast<double *>(memory)[0] = static_cast<const double *>(fields[0])[0];
  return 0;
}
int control(const void *const *fields, const void *constants, void *memory, double *, const double *action, double *) {
  if (action[0] == 6) return 1;
  const double gain = *static_cast<const double *>(constants);
  *static_cast<double *>(const_cast<void *>(fields[1])) = gain * action[0] + action[1];
  static_cast<double *>(memory)[1] += 1;
  return 0;
}
int step(const void *const *fields, const void *, void *memory, double *terms, const double *action, double *out) {
  if (action[0] == 7) return 1;
  terms[0] = static_cast<const double *>(fields[0])[0] - static_cast<double *>(memory)[0];
  terms[1] = action[0] == 8 ? std::nan("") : 1;
  out[0] = terms[0] + terms[1];
  out[1] = static_cast<double *>(memory)[1] >= 14;
  return 0;
}
int observe(const void *const *fields, const void *, void *memory, double *, const double *, double *out) {
  const auto *qpos = static_cast<const double *>(fields[0]);
  if (qpos[0] > 100) return 2;
  out[0] = qpos[0];
  out[1] = qpos[1];
  out[2] = static_cast<double *>(memory)[0];
  out[3] = static_cast<double *>(memory)[1];
  return 0;
}

constexpr int64_t kMemory = 2, kActions = 2, kTerms = 2;

// Has two actions for one actuator.
struct OwnWorld : World {
  OwnWorld(int64_t n, int64_t limit)
      : World(n, 4 + kMemory, true), fields(n), memory(n * kMemory), own_terms(n * kTerms), sums(n * (1 + kTerms)), actions(n * kActions),
        own_obs(n * 4) {
    OwnFunctions functions;
    functions.before_step = &before_step;
    functions.control = &control;
    functions.step = &step;
    functions.observe = &observe;
    functions.constants = &gain;
    functions.obs_size = 4;
    functions.action_size = kActions;
    functions.memory_size = kMemory;
    functions.terms = {"gain", "alive"};
    std::vector<Own> envs;
    for (int64_t i = 0; i < n; ++i) {
      fields[size_t(i)] = {data[size_t(i)].qpos, data[size_t(i)].ctrl};
      envs.push_back({fields[size_t(i)].data(), &memory[size_t(i * kMemory)], &own_terms[size_t(i * kTerms)], &sums[size_t(i * (1 + kTerms))],
                      &actions[size_t(i * kActions)], &own_obs[size_t(i * 4)], nullptr});
    }
    std::vector<Simulation> sims = simulations();
    for (int64_t i = 0; i < n; ++i) sims[size_t(i)].fields.own = &envs[size_t(i)];
    auto task = std::make_unique<OwnTask>(setup(), functions, nullptr);
    auto dynamics = std::make_unique<Simulations>(config(), std::move(task), std::move(sims), std::move(envs));
    engine = std::make_unique<Engine>(Engine::Config{limit, kCapacity}, std::move(dynamics), rows());
  }

  const double gain = 3;
  std::vector<std::vector<const void *>> fields;
  std::vector<double> memory, own_terms, sums, actions, own_obs;
};

void functions_are_called_in_order() {
  OwnWorld world(1, 0);
  reset_all(world);
  CHECK(world.engine->action_size() == kActions && world.obs[2] == 0.004 && world.obs[3] == 0.005);  // the memory that was drawn
  Guard guard(*world.engine);
  const float action[2] = {1, 0.5};
  const double before = world.obs[0];
  const Step first = world.engine->step_one(0, action);
  // Twice 0.01 * (3 * 1 + 0.5), by two calls of control.
  CHECK(std::fabs(first.reward - 1.07) < 1e-12 && !first.terminated && world.memory[0] == before);
  CHECK(std::fabs(world.memory[1] - 2.005) < 1e-12 && world.obs[3] == world.memory[1]);
  int steps = 1;
  while (world.engine->step_one(0, action).status == Status::kRunning) ++steps;
  CHECK(steps == 6 && world.terminated[0] && world.sums[0] == 7 && world.sums[2] == 7);
  CHECK(world.obs[2] > 0.004 && world.obs[3] < 1);  // the memory of the next initial state
}

void failures_say_what_failed() {
  OwnWorld world(3, 0);
  reset_all(world);
  Guard guard(*world.engine);
  const float raises[2] = {7, 0}, nan[2] = {8, 0}, far[2] = {9, 1e6f}, good[2] = {0, 0};
  CHECK(world.engine->step_one(0, raises).status == Status::kFailed);
  CHECK(world.engine->take_error(0) == "step raised an exception");
  CHECK(world.engine->step_one(1, nan).status == Status::kFailed);
  CHECK(world.engine->take_error(1) == "step returned the reward nan; of its terms, alive is nan");
  CHECK(world.engine->step_one(2, far).status == Status::kFailed);
  CHECK(world.engine->take_error(2) == "observe returned another number of values than the observation space has");
  CHECK(world.engine->step_one(0, good).status == Status::kRunning && world.engine->take_error(0).empty());
}

// The reason of a failure outlives that of another env on the same thread, since another thread may do the rest of the step.
void failures_belong_to_their_env() {
  OwnWorld world(2, 0);
  reset_all(world);
  Guard guard(*world.engine);
  const float fails[2] = {6, 0}, raises[2] = {7, 0};
  CHECK(world.engine->step_parts(0, fails, {0, 1}, true).status == Status::kUnfinished);
  CHECK(world.engine->step_one(1, raises).status == Status::kFailed);
  CHECK(world.engine->step_parts(0, fails, {1, 2}, true).status == Status::kFailed);
  CHECK(world.engine->take_error(0) == "control raised an exception" && world.engine->take_error(1) == "step raised an exception");
}

// As test_env_engine's: on any number of threads, together or apart, the same numbers.
void threads_do_not_matter() {
  constexpr int64_t kEnvs = 11, kSteps = 50;
  const auto run = [&](OwnWorld &world, int threads) {
    reset_all(world);
    xc::ThreadPool pool(threads);
    pool.run(kEnvs, [&](int64_t i) {
      Guard guard(*world.engine);
      for (int64_t t = 0; t < kSteps; ++t) {
        const float action[2] = {0.1f * float(i), 0.01f * float(t)};
        if (world.engine->step_one(i, action).status == Status::kNeedsReset) {
          world.fill(i);
          CHECK(world.engine->reset_one(i) == Status::kDone);
        }
      }
    });
  };
  OwnWorld one(kEnvs, 5), many(kEnvs, 5);
  run(one, 1);
  run(many, 5);
  CHECK(one.obs == many.obs && one.rewards == many.rewards && one.sums == many.sums && one.memory == many.memory);
}

}  // namespace

int main() {
  functions_are_called_in_order();
  failures_say_what_failed();
  failures_belong_to_their_env();
  threads_do_not_matter();
}
