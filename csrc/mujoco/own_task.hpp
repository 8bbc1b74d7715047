// A task whose arithmetic is a user's: functions that were compiled from Python (xcfast/tasks/compiled.py), on the physics of its own model
// or on top of a task that is built in.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "mujoco/task.hpp"

namespace xc::mujoco {

// What an own task keeps for each environment, in memory of the caller.
struct Own {
  const void *const *fields;  // addresses of the arrays of mjData that its functions read
  void *memory;               // [memory_size doubles], a record
  double *terms;              // [terms.size()] of the last step
  double *sums;               // [1 + terms.size()]: steps, and the terms summed over them
  double *action;             // [action_size]
  double *obs;                // [obs_size]
  const char *error;          // why this step failed, until it ends; null: it did not
  std::string text{};         // of the error
};

struct OwnFunctions {
  // Arguments: fields, constants, memory, terms, action, out. They return 0, or 1 if an exception was raised, 2 if an observation has
  // another size than the space. Any but step may be null.
  using Function = int (*)(const void *const *, const void *, void *, double *, const double *, double *);
  Function before_step = nullptr, control = nullptr, step = nullptr, observe = nullptr;

  const void *constants = nullptr;
  int64_t obs_size = 0, action_size = 0, memory_size = 0;
  bool contact_forces = false;     // whether the functions read what mj_rnePostConstraint computes
  std::vector<std::string> terms;  // names; the first of an own task on a built-in one are that one's, see kBuiltInTerms
};

// Terms, then reward and terminated, as an own task gets them from the one that is built in.
constexpr int64_t kBuiltInTerms = int64_t(sizeof(Terms) / sizeof(double)) + 2;

class OwnTask final : public Task {
 public:
  // built_in: the task below, or null.
  OwnTask(const Setup &setup, OwnFunctions functions, std::unique_ptr<Task> built_in)
      : Task(setup, 0, 0), own_(std::move(functions)), built_in_(std::move(built_in)) {
    const int64_t least = built_in_ ? kBuiltInTerms : 0;
    if (!own_.step || (!own_.observe && !built_in_) || int64_t(own_.terms.size()) < least)
      throw std::invalid_argument("an own task must have step and observe, and the terms of the task below it");
    if (built_in_ && !own_.observe) own_.obs_size = built_in_->obs_size();
  }

  int64_t obs_size() const override { return own_.obs_size; }
  int64_t action_size() const override { return own_.action_size; }
  int64_t num_extra() const override { return own_.memory_size; }
  bool uses_contact_forces() const override { return own_.contact_forces || (built_in_ && built_in_->uses_contact_forces()); }
  void observe(const Fields &f, double *obs) const override { std::memcpy(obs, f.own->obs, size_t(own_.obs_size) * sizeof(double)); }

  const char *started(const Fields &f, const double *memory) const override {
    Own &own = *f.own;
    own.error = nullptr;
    std::memcpy(own.memory, memory, size_t(own_.memory_size) * sizeof(double));
    return observation(f);
  }

  void before(const Fields &f, Memo &memo) const override {
    if (built_in_) built_in_->before(f, memo);
  }

  void act(const Fields &f, const float *action, double *ctrl) const override {
    Own &own = *f.own;
    own.error = nullptr;
    for (int64_t k = 0; k < own_.action_size; ++k) own.action[k] = action[k];
    call(own_.before_step, own, "before_step");
    if (!own_.control)
      for (int64_t k = 0; k < nu_; ++k) ctrl[k] = action[k];
  }
  bool controls() const override { return own_.control; }
  void control(const Fields &f) const override { call(own_.control, *f.own, "control"); }

  Outcome after(const Fields &f, const float *action, const Memo &memo, Terms &) const override {
    Own &own = *f.own;
    if (own.error) return {0.0, false, own.error};
    std::memset(own.terms, 0, own_.terms.size() * sizeof(double));
    if (built_in_) {
      Terms below{};
      const Outcome outcome = built_in_->after(f, action, memo, below);
      std::memcpy(own.terms, &below, sizeof below);
      own.terms[kBuiltInTerms - 2] = outcome.reward;
      own.terms[kBuiltInTerms - 1] = outcome.terminated;
    }
    double out[2];  // reward, terminated
    call(own_.step, own, "step", out);
    if (!own.error && !std::isfinite(out[0])) own.error = not_finite(own, out[0]);
    if (own.error || (own.error = observation(f))) return {0.0, false, own.error};
    own.sums[0] += 1;
    for (size_t k = 0; k < own_.terms.size(); ++k) own.sums[1 + k] += own.terms[k];
    return {out[0], out[1] != 0};
  }

 private:
  const char *observation(const Fields &f) const {
    Own &own = *f.own;
    if (!own_.observe) {
      built_in_->observe(f, own.obs);
      return nullptr;
    }
    call(own_.observe, own, "observe", own.obs);
    for (int64_t k = 0; !own.error && k < own_.obs_size; ++k)
      if (!std::isfinite(own.obs[k])) own.error = said(own, "observe returned " + text_of(own.obs[k]) + " as number " + std::to_string(k));
    return own.error;
  }

  void call(OwnFunctions::Function function, Own &own, const char *name, double *out = nullptr) const {
    if (!function || own.error) return;
    const int status = function(own.fields, own_.constants, own.memory, own.terms, own.action, out);
    if (status == 0) return;
    const char *what = status == 2 ? " returned another number of values than the observation space has" : " raised an exception";
    own.error = said(own, std::string(name) + what);
  }

  const char *not_finite(Own &own, double reward) const {
    std::string text = "step returned the reward " + text_of(reward);
    const char *sep = "; of its terms, ";
    for (size_t k = 0; k < own_.terms.size(); ++k) {
      if (std::isfinite(own.terms[k])) continue;
      text += sep + own_.terms[k] + " is " + text_of(own.terms[k]);
      sep = ", ";
    }
    return said(own, std::move(text));
  }

  static std::string text_of(double x) { return std::isnan(x) ? "nan" : x > 0 ? "inf" : "-inf"; }

  // Keeps the text until the environment's next error: another thread may do the rest of the step.
  static const char *said(Own &own, std::string text) {
    own.text = std::move(text);
    return own.text.c_str();
  }

  OwnFunctions own_;
  const std::unique_ptr<Task> built_in_;
};

}  // namespace xc::mujoco
