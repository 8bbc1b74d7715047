// InvertedPendulum-v4 and -v5, InvertedDoublePendulum-v4 and -v5.
#pragma once

#include "mujoco/task.hpp"

namespace xc::mujoco {

class InvertedPendulum : public Task {
 public:
  explicit InvertedPendulum(const Setup &s) : Task(s, 2, 1) {}

  int64_t obs_size() const override { return nq_ + nv_; }
  void observe(const Fields &f, double *obs) const override { copy(copy(obs, f.qpos, nq_), f.qvel, nv_); }
  Outcome after(const Fields &f, const float *, const Memo &, Terms &t) const override {
    const bool finite = all_finite(f.qpos, nq_) && all_finite(f.qvel, nv_);
    const bool terminated = !finite || std::fabs(f.qpos[1]) > 0.2;
    t.healthy = v5_ && terminated ? 0 : 1;
    return {t.healthy, terminated};
  }
};

class InvertedDoublePendulum : public Task {
 public:
  explicit InvertedDoublePendulum(const Setup &s) : Task(s, 1, 3), healthy_reward_(s["healthy_reward"]) {}

  int64_t obs_size() const override { return 1 + 2 * (nq_ - 1) + nv_ + (v5_ ? 1 : nv_); }
  void observe(const Fields &f, double *obs) const override {
    obs = copy(obs, f.qpos, 1);
    setup_.numpy.sin(f.qpos + 1, nq_ - 1, obs);
    setup_.numpy.cos(f.qpos + 1, nq_ - 1, obs + (nq_ - 1));
    obs = clipped(obs + 2 * (nq_ - 1), f.qvel, nv_, -10, 10);
    clipped(obs, f.qfrc_constraint, v5_ ? 1 : nv_, -10, 10);
  }
  Outcome after(const Fields &f, const float *, const Memo &, Terms &t) const override {
    const double x = f.site_xpos[0], y = f.site_xpos[2];
    const bool terminated = y <= 1;
    const double distance = 0.01 * pow2(x) + pow2(y - 2);
    const double velocity = 0.001 * pow2(f.qvel[1]) + 0.005 * pow2(f.qvel[2]);
    t.healthy = healthy_reward_ * (v5_ && terminated ? 0 : 1);
    t.forward = -distance;
    t.control = -velocity;
    return {t.healthy - distance - velocity, terminated};
  }

 private:
  const double healthy_reward_;
};

}  // namespace xc::mujoco
