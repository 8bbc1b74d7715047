// HalfCheetah-v4 and -v5, Swimmer-v4 and -v5: runners that cannot fall.
#pragma once

#include "mujoco/task.hpp"

namespace xc::mujoco {

class HalfCheetah : public Task {
 public:
  // swimmer: whether it moves in the plane of the ground.
  HalfCheetah(const Setup &s, bool swimmer)
      : Task(s, 2, 1), swimmer_(swimmer), forward_weight_(s["forward_reward_weight"]), control_weight_(s["ctrl_cost_weight"]), skip_(s.index("skipped_qpos")) {}

  int64_t obs_size() const override { return nq_ - skip_ + nv_; }
  void observe(const Fields &f, double *obs) const override { copy(copy(obs, f.qpos + skip_, nq_ - skip_), f.qvel, nv_); }
  void before(const Fields &f, Memo &memo) const override {
    memo.value[0] = f.qpos[0];
    memo.value[1] = f.qpos[1];
  }
  Outcome after(const Fields &f, const float *action, const Memo &memo, Terms &t) const override {
    t.x_velocity = (f.qpos[0] - memo.value[0]) / dt_;
    if (swimmer_) t.y_velocity = (f.qpos[1] - memo.value[1]) / dt_;
    t.forward = forward_weight_ * t.x_velocity;
    t.control = control_cost(control_weight_, action);
    return {t.forward - t.control, false};
  }

 private:
  const bool swimmer_;
  const double forward_weight_, control_weight_;
  const int64_t skip_;
};

}  // namespace xc::mujoco
