// Hopper-v4 and -v5, Walker2d-v4 and -v5: planar runners that can fall. Walker2d has no healthy_state_range.
#pragma once

#include "mujoco/task.hpp"

namespace xc::mujoco {

class Hopper : public Task {
 public:
  explicit Hopper(const Setup &s)
      : Task(s, 3, 1),
        forward_weight_(s["forward_reward_weight"]),
        control_weight_(s["ctrl_cost_weight"]),
        healthy_reward_(s["healthy_reward"]),
        terminate_(s.flag("terminate_when_unhealthy")),
        has_state_range_(s.flag("has_healthy_state_range")),
        min_state_(s["healthy_state_min"]),
        max_state_(s["healthy_state_max"]),
        min_z_(s["healthy_z_min"]),
        max_z_(s["healthy_z_max"]),
        min_angle_(s["healthy_angle_min"]),
        max_angle_(s["healthy_angle_max"]),
        skip_(s.index("skipped_qpos")) {}

  int64_t obs_size() const override { return nq_ - skip_ + nv_; }
  void observe(const Fields &f, double *obs) const override {
    clipped(copy(obs, f.qpos + skip_, nq_ - skip_), f.qvel, nv_, -10, 10);
  }
  void before(const Fields &f, Memo &memo) const override { memo.value[0] = f.qpos[0]; }
  Outcome after(const Fields &f, const float *action, const Memo &memo, Terms &t) const override {
    const bool healthy = is_healthy(f);
    t.x_velocity = (f.qpos[0] - memo.value[0]) / dt_;
    t.forward = forward_weight_ * t.x_velocity;
    t.healthy = (healthy || (!v5_ && terminate_) ? 1.0 : 0.0) * healthy_reward_;
    t.control = control_cost(control_weight_, action);
    return {(t.forward + t.healthy) - t.control, !healthy && terminate_};
  }

 private:
  bool is_healthy(const Fields &f) const {
    const double z = f.qpos[1], angle = f.qpos[2];
    if (!(min_z_ < z && z < max_z_ && min_angle_ < angle && angle < max_angle_)) return false;
    return !has_state_range_ || (in_state_range(f.qpos + 2, nq_ - 2) && in_state_range(f.qvel, nv_));
  }
  bool in_state_range(const double *x, int64_t n) const {
    for (int64_t k = 0; k < n; ++k)
      if (!(min_state_ < x[k] && x[k] < max_state_)) return false;
    return true;
  }

  const double forward_weight_, control_weight_, healthy_reward_;
  const bool terminate_, has_state_range_;
  const double min_state_, max_state_, min_z_, max_z_, min_angle_, max_angle_;
  const int64_t skip_;
};

}  // namespace xc::mujoco
