// Ant-v4 and Ant-v5.
#pragma once

#include "mujoco/task.hpp"

namespace xc::mujoco {

class Ant : public Task {
 public:
  explicit Ant(const Setup &s)
      : Task(s, 3, 1),
        forward_weight_(s["forward_reward_weight"]),
        control_weight_(s["ctrl_cost_weight"]),
        contact_weight_(s["contact_cost_weight"]),
        healthy_reward_(s["healthy_reward"]),
        terminate_(s.flag("terminate_when_unhealthy")),
        min_z_(s["healthy_z_min"]),
        max_z_(s["healthy_z_max"]),
        min_force_(s["contact_force_min"]),
        max_force_(s["contact_force_max"]),
        torso_(3 * s.index("torso")),
        skip_(s.index("skipped_qpos")),
        observes_forces_(s.flag("include_cfrc_ext")),
        // v4 also observes the forces on the world body, which are zero.
        forces_from_(v5_ ? 6 : 0),
        num_forces_(6 * s.nbody),
        costs_forces_(v5_ || observes_forces_) {}

  int64_t obs_size() const override { return nq_ - skip_ + nv_ + (observes_forces_ ? num_forces_ - forces_from_ : 0); }
  bool uses_contact_forces() const override { return costs_forces_; }
  void observe(const Fields &f, double *obs) const override {
    obs = copy(copy(obs, f.qpos + skip_, nq_ - skip_), f.qvel, nv_);
    if (observes_forces_) clipped(obs, f.cfrc_ext + forces_from_, num_forces_ - forces_from_, min_force_, max_force_);
  }
  void before(const Fields &f, Memo &memo) const override {
    memo.value[0] = f.xpos[torso_];
    memo.value[1] = f.xpos[torso_ + 1];
  }
  Outcome after(const Fields &f, const float *action, const Memo &memo, Terms &t) const override {
    const bool healthy = is_healthy(f);
    t.x_velocity = (f.xpos[torso_] - memo.value[0]) / dt_;
    t.y_velocity = (f.xpos[torso_ + 1] - memo.value[1]) / dt_;
    t.forward = v5_ ? t.x_velocity * forward_weight_ : t.x_velocity;
    t.healthy = (healthy || (!v5_ && terminate_) ? 1.0 : 0.0) * healthy_reward_;
    t.control = control_cost(control_weight_, action);
    double costs = t.control;
    if (costs_forces_) {
      t.contact = contact_weight_ * squared_forces(f);
      costs += t.contact;
    }
    return {(t.forward + t.healthy) - costs, !healthy && terminate_};
  }

 private:
  bool is_healthy(const Fields &f) const {
    return all_finite(f.qpos, nq_) && all_finite(f.qvel, nv_) && min_z_ <= f.qpos[2] && f.qpos[2] <= max_z_;
  }
  double squared_forces(const Fields &f) const {
    const auto squared = [&](int64_t k) {
      const double force = clip(f.cfrc_ext[k], min_force_, max_force_);
      return force * force;
    };
    return pairwise_sum<double>(squared, 0, num_forces_);
  }

  const double forward_weight_, control_weight_, contact_weight_, healthy_reward_;
  const bool terminate_;
  const double min_z_, max_z_, min_force_, max_force_;
  const int64_t torso_, skip_;
  const bool observes_forces_;
  const int64_t forces_from_, num_forces_;
  const bool costs_forces_;
};

}  // namespace xc::mujoco
