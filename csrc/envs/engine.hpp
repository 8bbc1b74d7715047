// N environments in the caller's memory: initial states drawn ahead, time limits, autoreset, episode statistics. What happens in a step is
// their Dynamics. An environment is stepped by any thread, one thread at a time, and touches nothing of the others: a caller may take them
// through a vector step together or each through many steps of its own.
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
  const char *error = nullptr;  // why the step failed, until the thread's next call; null: it did not
};

struct Sizes {
  int64_t num_envs, obs, action, draw;  // draw: numbers of an initial state
  int64_t num_actions = 0;              // of a choice among so many, whose index is the action; 0: actions are numbers
  int64_t envs_per_task = 1;            // as many as are worth another thread in a single step
};

// How N environments of one kind move. Calls for different envs may come from different threads; the caller holds an Engine's Guard.
class Dynamics {
 public:
  explicit Dynamics(const Sizes &sizes) : sizes_(sizes) {}
  virtual ~Dynamics() = default;

  const Sizes &sizes() const { return sizes_; }
  virtual Outcome step(int64_t i, const float *action) = 0;
  // Starts env i from an initial state; returns as Outcome::error.
  virtual const char *reset(int64_t i, const double *draw) = 0;
  virtual void observe(int64_t i, double *obs) const = 0;

  // Around a thread's calls.
  virtual void enter() const {}
  virtual void leave() const {}

 private:
  const Sizes sizes_;
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
  double *draws;              // [N, capacity, draw]: initial states drawn ahead
  int64_t *drawn, *used;      // [N], rows of draws that are filled, and that are spent
};

enum class Status : uint8_t {
  kRunning,     // obs is the next observation
  kDone,        // the episode ended: final_obs is its last observation, obs the first of the next
  kNeedsReset,  // the episode ended and no initial state is left: fill draws, then reset_one
  kFailed,      // see take_error(i)
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

  // A thread holds one while it steps or resets envs.
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
  int64_t envs_per_task() const { return sizes_.envs_per_task; }
  const Rows &rows() const { return rows_; }
  const double *obs(int64_t i) const { return rows_.obs + i * sizes_.obs; }
  const double *final_obs(int64_t i) const { return rows_.final_obs + i * sizes_.obs; }
  // What went wrong in env i, else ""; asking clears it.
  std::string take_error(int64_t i) { return std::exchange(errors_[size_t(i)], {}); }
  bool has_draw(int64_t i) const { return rows_.used[i] < rows_.drawn[i]; }

  // Steps env i. One whose episode ends is reset, or left to reset_one if `autoreset` is false.
  Step step_one(int64_t i, const float *action, bool autoreset = true) {
    const Outcome outcome = dynamics_->step(i, action);
    if (outcome.error) return {0.0, false, false, failed(i, outcome.error)};
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

  // Starts a new episode of env i from the next of its initial states: kDone, kNeedsReset (there is none) or kFailed.
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
