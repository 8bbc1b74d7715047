// The engine of N environments. It has everything that environments need whatever they simulate: initial states that are
// drawn in advance, time limits, autoreset and episode statistics. A Dynamics simulates them. All arrays belong to the
// caller.
//
// Any thread may step an environment, one thread at a time, and another thread may do the next part of a step. Environments
// do not touch each other's memory, so a caller may take all of them through a vector step together (vector_step.hpp), or take
// each through many steps by itself.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace xc::envs {

struct Outcome {
  double reward;
  bool terminated;
  const char *error = nullptr;  // why the step failed, valid until the thread's next call; null if it did not fail
};

struct Sizes {
  int64_t num_envs;
  int64_t obs, action, draw;  // how many numbers an observation, an action and an initial state have
  int64_t num_actions = 0;    // for discrete actions, how many there are: an action is one index; 0: actions are numbers
  int64_t envs_per_task = 1;  // how many environments one thread should step at least, so that a thread is worth its cost
  int64_t parts = 1;          // how many parts a step has
};

// The parts [begin, end) of a step.
struct Parts {
  int64_t begin, end;
};

// Simulates N environments of one kind. Different threads may call it for different environments. A thread that does so
// holds an Engine::Guard.
class Dynamics {
 public:
  explicit Dynamics(const Sizes &sizes) : sizes_(sizes) {}
  virtual ~Dynamics() = default;

  const Sizes &sizes() const { return sizes_; }
  // Does these parts of a step of env i, which follow those done before. The outcome is that of the step with the last part;
  // before, it only says whether the step failed.
  virtual Outcome step(int64_t i, const float *action, const Parts &parts) = 0;
  // Starts env i from an initial state. Returns the reason of a failure, as Outcome::error does, or null.
  virtual const char *reset(int64_t i, const double *draw) = 0;
  virtual void observe(int64_t i, double *obs) const = 0;

  // Called before and after the calls of a thread.
  virtual void enter() const {}
  virtual void leave() const {}

 private:
  const Sizes sizes_;
};

// The caller's arrays, with one row for each environment.
struct Rows {
  double *obs, *final_obs;    // [N, D]
  double *rewards;            // [N]
  uint8_t *terminated, *truncated;
  double *episode_returns;    // [N], of the running episode
  int64_t *episode_lengths;
  double *finished_returns;   // [N], of the last episode that ended
  int64_t *finished_lengths;
  int64_t *elapsed;           // [N], the steps that count towards the time limit
  double *draws;              // [N, capacity, draw], initial states that were drawn in advance
  int64_t *drawn, *used;      // [N], how many rows of `draws` have been filled, and how many have been used
};

enum class Status : uint8_t {
  kRunning,     // obs is the next observation
  kDone,        // the episode ended: final_obs is its last observation, obs the first one of the next episode
  kNeedsReset,  // the episode ended, and no initial state is left: the caller fills `draws`, then calls reset_one
  kFailed,      // the step failed: take_error(i) returns the reason
  kUnfinished,  // parts of the step are left
};

struct Step {
  double reward;
  bool terminated, truncated;
  Status status;
};

class Engine {
 public:
  struct Config {
    int64_t max_episode_steps = 0;  // 0: no limit
    int64_t draws_capacity = 1;
  };

  Engine(const Config &config, std::unique_ptr<Dynamics> dynamics, const Rows &rows)
      : config_(config), dynamics_(std::move(dynamics)), sizes_(dynamics_->sizes()), rows_(rows), errors_(size_t(sizes_.num_envs)) {}

  // A thread holds a Guard while it steps or resets environments.
  class Guard {
   public:
    explicit Guard(const Engine &engine) : dynamics_(*engine.dynamics_) { dynamics_.enter(); }
    ~Guard() { dynamics_.leave(); }
    Guard(const Guard &) = delete;
    Guard &operator=(const Guard &) = delete;

   private:
    const Dynamics &dynamics_;
  };

  int64_t num_envs() const { return sizes_.num_envs; }
  int64_t obs_size() const { return sizes_.obs; }
  int64_t action_size() const { return sizes_.action; }
  int64_t num_actions() const { return sizes_.num_actions; }
  const Sizes &sizes() const { return sizes_; }
  const Rows &rows() const { return rows_; }
  const double *obs(int64_t i) const { return rows_.obs + i * sizes_.obs; }
  const double *final_obs(int64_t i) const { return rows_.final_obs + i * sizes_.obs; }
  // Returns the error of env i, or "" if there was none, and clears it.
  std::string take_error(int64_t i) { return std::exchange(errors_[size_t(i)], {}); }
  bool has_draw(int64_t i) const { return rows_.used[i] < rows_.drawn[i]; }

  // Steps env i. If its episode ends, resets it, unless `autoreset` is false: then the caller calls reset_one.
  Step step_one(int64_t i, const float *action, bool autoreset = true) { return step_parts(i, action, {0, sizes_.parts}, autoreset); }

  // Does these parts of a step of env i, with the same action for all parts.
  Step step_parts(int64_t i, const float *action, const Parts &parts, bool autoreset) {
    const Outcome outcome = dynamics_->step(i, action, parts);
    if (outcome.error) return {0.0, false, false, failed(i, outcome.error)};
    if (parts.end < sizes_.parts) return {0.0, false, false, Status::kUnfinished};
    const int64_t elapsed = ++rows_.elapsed[i];
    const bool truncated = config_.max_episode_steps > 0 && elapsed >= config_.max_episode_steps;
    rows_.rewards[i] = outcome.reward;
    rows_.terminated[i] = outcome.terminated;
    rows_.truncated[i] = truncated;
    rows_.episode_returns[i] += outcome.reward;
    ++rows_.episode_lengths[i];
    Step step{outcome.reward, outcome.terminated, truncated, Status::kRunning};
    if (!outcome.terminated && !truncated) {
      dynamics_->observe(i, rows_.obs + i * sizes_.obs);
      return step;
    }
    dynamics_->observe(i, rows_.final_obs + i * sizes_.obs);
    rows_.finished_returns[i] = rows_.episode_returns[i];
    rows_.finished_lengths[i] = rows_.episode_lengths[i];
    step.status = autoreset ? reset_one(i) : Status::kNeedsReset;
    return step;
  }

  // Starts a new episode of env i from its next initial state. Returns kDone, kNeedsReset if no initial state is left, or
  // kFailed.
  Status reset_one(int64_t i) {
    if (!has_draw(i)) return Status::kNeedsReset;
    const double *draw = rows_.draws + (i * config_.draws_capacity + rows_.used[i]) * sizes_.draw;
    if (const char *error = dynamics_->reset(i, draw)) return failed(i, error);
    ++rows_.used[i];
    rows_.elapsed[i] = 0;
    rows_.episode_returns[i] = 0;
    rows_.episode_lengths[i] = 0;
    dynamics_->observe(i, rows_.obs + i * sizes_.obs);
    return Status::kDone;
  }

 private:
  Status failed(int64_t i, const char *error) {
    errors_[size_t(i)] = error;
    return Status::kFailed;
  }

  const Config config_;
  const std::unique_ptr<Dynamics> dynamics_;
  const Sizes sizes_;
  const Rows rows_;
  std::vector<std::string> errors_;
};

}  // namespace xc::envs
