// Humanoid-v4 and -v5, HumanoidStandup-v4 and -v5.
#pragma once

#include "mujoco/task.hpp"

namespace xc::mujoco {

// The observation of both tasks. v5 leaves out the world body and the actuator forces of the root, and lets the user choose
// the parts.
class HumanoidBase : public Task {
 public:
  explicit HumanoidBase(const Setup &s)
      : Task(s, 3, 6),
        nbody_(s.nbody),
        skip_(s.index("skipped_qpos")),
        first_body_(v5_ ? 1 : 0),
        first_actuator_(v5_ ? 6 : 0),
        observes_inertia_(s.flag("include_cinert")),
        observes_velocity_(s.flag("include_cvel")),
        observes_actuators_(s.flag("include_qfrc_actuator")),
        observes_forces_(s.flag("include_cfrc_ext")) {}

  int64_t obs_size() const override {
    const int64_t bodies = nbody_ - first_body_;
    return nq_ - skip_ + nv_ + bodies * (10 * observes_inertia_ + 6 * observes_velocity_ + 6 * observes_forces_) +
           (nv_ - first_actuator_) * observes_actuators_;
  }
  void observe(const Fields &f, double *obs) const override {
    const int64_t bodies = nbody_ - first_body_;
    obs = copy(copy(obs, f.qpos + skip_, nq_ - skip_), f.qvel, nv_);
    if (observes_inertia_) obs = copy(obs, f.cinert + 10 * first_body_, 10 * bodies);
    if (observes_velocity_) obs = copy(obs, f.cvel + 6 * first_body_, 6 * bodies);
    if (observes_actuators_) obs = copy(obs, f.qfrc_actuator + first_actuator_, nv_ - first_actuator_);
    if (observes_forces_) copy(obs, f.cfrc_ext + 6 * first_body_, 6 * bodies);
  }

 protected:
  const int64_t nbody_, skip_, first_body_, first_actuator_;
  const bool observes_inertia_, observes_velocity_, observes_actuators_, observes_forces_;
};

class Humanoid : public HumanoidBase {
 public:
  explicit Humanoid(const Setup &s)
      : HumanoidBase(s),
        forward_weight_(s["forward_reward_weight"]),
        control_weight_(s["ctrl_cost_weight"]),
        contact_weight_(s["contact_cost_weight"]),
        min_contact_(s["contact_cost_min"]),
        max_contact_(s["contact_cost_max"]),
        healthy_reward_(s["healthy_reward"]),
        terminate_(s.flag("terminate_when_unhealthy")),
        min_z_(s["healthy_z_min"]),
        max_z_(s["healthy_z_max"]) {}

  bool uses_contact_forces() const override { return observes_forces_ || v5_; }
  void before(const Fields &f, Memo &memo) const override { mass_center(f, memo.value); }
  Outcome after(const Fields &f, const float *, const Memo &memo, Terms &t) const override {
    double center[2];
    mass_center(f, center);
    const bool healthy = min_z_ < f.qpos[2] && f.qpos[2] < max_z_;
    t.x_velocity = (center[0] - memo.value[0]) / dt_;
    t.y_velocity = (center[1] - memo.value[1]) / dt_;
    t.forward = forward_weight_ * t.x_velocity;
    t.healthy = (healthy || (!v5_ && terminate_) ? 1.0 : 0.0) * healthy_reward_;
    t.control = control_weight_ * sum_of_squares(f.ctrl, nu_);
    double costs = t.control;
    if (v5_) {
      t.contact = clip(contact_weight_ * sum_of_squares(f.cfrc_ext, 6 * nbody_), min_contact_, max_contact_);
      costs += t.contact;
    }
    return {(t.forward + t.healthy) - costs, !healthy && terminate_};
  }

 private:
  void mass_center(const Fields &f, double *center) const {
    for (int axis = 0; axis < 2; ++axis) {
      double sum = 0;
      for (int64_t b = 0; b < nbody_; ++b)
        sum = Numpy::multiply_add(setup_.numpy.fused_einsum, setup_.body_mass[b], f.xipos[3 * b + axis], sum);
      center[axis] = sum / setup_.body_mass_sum;
    }
  }

  const double forward_weight_, control_weight_, contact_weight_, min_contact_, max_contact_, healthy_reward_;
  const bool terminate_;
  const double min_z_, max_z_;
};

class HumanoidStandup : public HumanoidBase {
 public:
  explicit HumanoidStandup(const Setup &s)
      : HumanoidBase(s),
        timestep_(s["timestep"]),
        control_weight_(s["ctrl_cost_weight"]),
        impact_weight_(s["impact_cost_weight"]),
        min_impact_(s["impact_cost_min"]),
        max_impact_(s["impact_cost_max"]) {}

  bool uses_contact_forces() const override { return true; }
  Outcome after(const Fields &f, const float *, const Memo &, Terms &t) const override {
    t.forward = f.qpos[2] / timestep_;
    t.control = control_weight_ * sum_of_squares(f.ctrl, nu_);
    t.contact = clip(impact_weight_ * sum_of_squares(f.cfrc_ext, 6 * nbody_), min_impact_, max_impact_);
    return {t.forward - t.control - t.contact + 1, false};
  }

 private:
  const double timestep_, control_weight_, impact_weight_, min_impact_, max_impact_;
};

}  // namespace xc::mujoco
