// N environments of one task on one model, each with its own mjData. An environment is stepped by any thread, one thread at a time, and
// touches nothing of the others: a caller may take them through a vector step together or each through many steps of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "mujoco/api.hpp"
#include "mujoco/task.hpp"

namespace xc::mujoco {

constexpr int kWarnings = 16;  // room for mjNWARNING of any version

// One environment's simulation.
struct Simulation {
  void *data = nullptr;
  Fields fields{};
  double *qpos = nullptr, *qvel = nullptr, *ctrl = nullptr;  // the writable ones
  const char *warnings = nullptr;                            // mjData.warning[0].number
};

// Memory of the caller, one row per environment.
struct Rows {
  double *obs, *final_obs;    // [N, D]
  double *rewards;            // [N]
  uint8_t *terminated, *truncated;
  double *episode_returns;    // [N], running
  int64_t *episode_lengths;
  double *finished_returns;   // [N], of the episode that ended last
  int64_t *finished_lengths;
  int64_t *elapsed;           // [N], steps against the time limit
  double *draws;              // [N, capacity, nq + nv]: initial states drawn ahead
  int64_t *drawn, *used;      // [N], rows of draws that are filled, and that are spent
  Terms *terms;               // [N]
  int64_t *warning_counts;    // [N, kWarnings], of past episodes
};

enum class Status : uint8_t {
  kRunning,     // obs is the next observation
  kDone,        // the episode ended: final_obs is its last observation, obs the first of the next
  kNeedsReset,  // the episode ended and no initial state is left: fill draws, then reset_one
  kFailed,      // MuJoCo raised an error: see take_error(i)
};

struct Step {
  double reward;
  bool terminated, truncated;
  Status status;
};

class Engine {
 public:
  struct Config {
    Api api;
    const void *model = nullptr;
    int64_t nq = 0, nv = 0, nu = 0;
    int64_t frame_skip = 1;
    int64_t max_episode_steps = 0;  // 0: no limit
    int64_t draws_capacity = 1;
    int64_t num_warnings = 0, warning_stride = 0;
  };

  Engine(const Config &config, std::unique_ptr<Task> task, std::vector<Simulation> simulations, const Rows &rows)
      : config_(config),
        task_(std::move(task)),
        simulations_(std::move(simulations)),
        rows_(rows),
        errors_(simulations_.size()),
        obs_size_(task_->obs_size()),
        wants_contact_forces_(task_->uses_contact_forces()) {}

  int64_t num_envs() const { return static_cast<int64_t>(simulations_.size()); }
  int64_t obs_size() const { return obs_size_; }
  int64_t action_size() const { return config_.nu; }
  const Api &api() const { return config_.api; }
  const Rows &rows() const { return rows_; }
  const double *obs(int64_t i) const { return rows_.obs + i * obs_size_; }
  const double *final_obs(int64_t i) const { return rows_.final_obs + i * obs_size_; }
  // MuJoCo's message where env i failed, else ""; asking clears it.
  std::string take_error(int64_t i) { return std::exchange(errors_[i], {}); }
  bool has_draw(int64_t i) const { return rows_.used[i] < rows_.drawn[i]; }

  // Steps env i, and resets it where its episode ends. The caller holds a Guard on this thread.
  Step step_one(int64_t i, const float *action) { return step_one(i, action, true); }

  // Likewise; leaves an env whose episode ended to reset_one, if `autoreset` is false.
  Step step_one(int64_t i, const float *action, bool autoreset) {
    if (XC_MUJOCO_CAUGHT) return failed(i);
    const Simulation &sim = simulations_[i];
    const Fields &f = sim.fields;
    Memo memo;
    task_->before(f, memo);
    for (int64_t k = 0; k < config_.nu; ++k) sim.ctrl[k] = action[k];
    for (int64_t k = 0; k < config_.frame_skip; ++k) config_.api.step(config_.model, sim.data);
    if (wants_contact_forces_) config_.api.rne_post_constraint(config_.model, sim.data);
    const Outcome outcome = task_->after(f, action, memo, rows_.terms[i]);

    const int64_t elapsed = ++rows_.elapsed[i];
    const bool truncated = config_.max_episode_steps > 0 && elapsed >= config_.max_episode_steps;
    rows_.rewards[i] = outcome.reward;
    rows_.terminated[i] = outcome.terminated;
    rows_.truncated[i] = truncated;
    rows_.episode_returns[i] += outcome.reward;
    ++rows_.episode_lengths[i];
    Step step{outcome.reward, outcome.terminated, truncated, Status::kRunning};
    if (!outcome.terminated && !truncated) {
      task_->observe(f, rows_.obs + i * obs_size_);
      return step;
    }
    task_->observe(f, rows_.final_obs + i * obs_size_);
    rows_.finished_returns[i] = rows_.episode_returns[i];
    rows_.finished_lengths[i] = rows_.episode_lengths[i];
    step.status = autoreset ? reset_caught(i) : Status::kNeedsReset;
    return step;
  }

  // Starts a new episode of env i from the next of its initial states: kDone, kNeedsReset (there is none) or kFailed. The caller holds
  // a Guard on this thread.
  Status reset_one(int64_t i) {
    if (XC_MUJOCO_CAUGHT) return failed(i).status;
    return reset_caught(i);
  }

 private:
  Status reset_caught(int64_t i) {
    if (!has_draw(i)) return Status::kNeedsReset;
    const Simulation &sim = simulations_[i];
    count_warnings(i);
    config_.api.reset_data(config_.model, sim.data);
    const double *draw = rows_.draws + (i * config_.draws_capacity + rows_.used[i]) * (config_.nq + config_.nv);
    for (int64_t k = 0; k < config_.nq; ++k) sim.qpos[k] = draw[k];
    for (int64_t k = 0; k < config_.nv; ++k) sim.qvel[k] = draw[config_.nq + k];
    config_.api.forward(config_.model, sim.data);
    ++rows_.used[i];
    rows_.elapsed[i] = 0;
    rows_.episode_returns[i] = 0;
    rows_.episode_lengths[i] = 0;
    task_->observe(sim.fields, rows_.obs + i * obs_size_);
    return Status::kDone;
  }

  // mj_resetData clears MuJoCo's counters.
  void count_warnings(int64_t i) {
    for (int64_t w = 0; w < config_.num_warnings; ++w) {
      int number;
      std::memcpy(&number, simulations_[i].warnings + w * config_.warning_stride, sizeof number);
      rows_.warning_counts[i * kWarnings + w] += number;
    }
  }

  Step failed(int64_t i) {
    errors_[i] = Guard::message();
    return {0.0, false, false, Status::kFailed};
  }

  const Config config_;
  const std::unique_ptr<Task> task_;
  const std::vector<Simulation> simulations_;
  const Rows rows_;
  std::vector<std::string> errors_;
  const int64_t obs_size_;
  const bool wants_contact_forces_;
};

}  // namespace xc::mujoco
