// The dynamics of N environments of one MuJoCo task. They share a model, and each has an mjData of its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "envs/engine.hpp"
#include "mujoco/api.hpp"
#include "mujoco/own_task.hpp"
#include "mujoco/task.hpp"

namespace xc::mujoco {

constexpr int kWarnings = 16;  // more than mjNWARNING of any known version

// One environment's simulation.
struct Simulation {
  void *data = nullptr;
  Fields fields{};
  double *qpos = nullptr, *qvel = nullptr, *ctrl = nullptr;  // for writing
  const char *warnings = nullptr;                            // mjData.warning[0].number
};

class Simulations final : public envs::Dynamics {
 public:
  struct Config {
    Api api;
    const void *model = nullptr;
    int64_t nq = 0, nv = 0, nu = 0;
    int64_t frame_skip = 1;
    int64_t num_warnings = 0, warning_stride = 0;
    int keyframe = -1;                  // where resets start from; -1: the initial state of the model
    Terms *terms = nullptr;             // [N], the caller's array
    int64_t *warning_counts = nullptr;  // [N, kWarnings], the caller's array: MuJoCo's warnings in past episodes
  };

  // own: what the simulations' fields point to, of an own task.
  Simulations(const Config &config, std::unique_ptr<Task> task, std::vector<Simulation> simulations, std::vector<Own> own = {})
      : Dynamics({int64_t(simulations.size()), task->obs_size(), task->action_size(), config.nq + config.nv + task->num_extra(), 0, 1,
                  std::max<int64_t>(1, config.frame_skip)}),
        config_(config),
        task_(std::move(task)),
        simulations_(std::move(simulations)),
        own_(std::move(own)),
        memos_(simulations_.size()),
        controls_(task_->controls()),
        wants_contact_forces_(task_->uses_contact_forces()) {}

  // A part is one call of mj_step.
  Outcome step(int64_t i, const float *action, const envs::Parts &parts) override {
    if (XC_MUJOCO_CAUGHT) return {0.0, false, message()};
    const Simulation &sim = simulations_[i];
    const Fields &f = sim.fields;
    Memo &memo = memos_[i];
    if (parts.begin == 0) {
      task_->act(f, action, sim.ctrl);
      task_->before(f, memo);
    }
    for (int64_t k = parts.begin; k < std::min(parts.end, config_.frame_skip); ++k) {
      if (controls_) task_->control(f);
      config_.api.step(config_.model, sim.data);
    }
    if (parts.end < config_.frame_skip) return {0.0, false};
    if (wants_contact_forces_) config_.api.rne_post_constraint(config_.model, sim.data);
    return task_->after(f, action, memo, config_.terms[i]);
  }

  const char *reset(int64_t i, const double *draw) override {
    if (XC_MUJOCO_CAUGHT) return message();
    const Simulation &sim = simulations_[i];
    count_warnings(i);
    if (config_.keyframe < 0)
      config_.api.reset_data(config_.model, sim.data);
    else
      config_.api.reset_data_keyframe(config_.model, sim.data, config_.keyframe);
    for (int64_t k = 0; k < config_.nq; ++k) sim.qpos[k] = draw[k];
    for (int64_t k = 0; k < config_.nv; ++k) sim.qvel[k] = draw[config_.nq + k];
    config_.api.forward(config_.model, sim.data);
    return task_->started(sim.fields, draw + config_.nq + config_.nv);
  }

  void observe(int64_t i, double *obs) const override { task_->observe(simulations_[i].fields, obs); }

  void enter() const override { catch_errors(config_.api); }
  void leave() const override { release_errors(config_.api); }

 private:
  // Adds MuJoCo's warning counters to warning_counts, because mj_resetData clears them.
  void count_warnings(int64_t i) {
    for (int64_t w = 0; w < config_.num_warnings; ++w) {
      int number;
      std::memcpy(&number, simulations_[i].warnings + w * config_.warning_stride, sizeof number);
      config_.warning_counts[i * kWarnings + w] += number;
    }
  }

  const Config config_;
  const std::unique_ptr<Task> task_;
  const std::vector<Simulation> simulations_;
  std::vector<Own> own_;
  std::vector<Memo> memos_;
  const bool controls_, wants_contact_forces_;
};

}  // namespace xc::mujoco
