// Reacher-v4 and -v5, Pusher-v4 and -v5: arms. v4 computes the distances before the step, v5 after it.
#pragma once

#include "mujoco/task.hpp"

namespace xc::mujoco {

class Reacher : public Task {
 public:
  explicit Reacher(const Setup &s)
      : Task(s, 2, 2),
        distance_weight_(s["reward_dist_weight"]),
        control_weight_(s["reward_control_weight"]),
        fingertip_(3 * s.index("fingertip")),
        target_(3 * s.index("target")) {}

  int64_t obs_size() const override { return 4 + (nq_ - 2) + 2 + (v5_ ? 2 : 3); }
  void observe(const Fields &f, double *obs) const override {
    setup_.numpy.cos(f.qpos, 2, obs);
    setup_.numpy.sin(f.qpos, 2, obs + 2);
    obs = copy(copy(obs + 4, f.qpos + 2, nq_ - 2), f.qvel, 2);
    for (int k = 0; k < (v5_ ? 2 : 3); ++k) obs[k] = f.xpos[fingertip_ + k] - f.xpos[target_ + k];
  }
  void before(const Fields &f, Memo &memo) const override {
    if (!v5_) memo.value[0] = distance(f);
  }
  Outcome after(const Fields &f, const float *action, const Memo &memo, Terms &t) const override {
    t.forward = -(v5_ ? distance(f) : memo.value[0]) * distance_weight_;
    t.control = -sum_of_squares(action, nu_) * static_cast<float>(control_weight_);
    return {t.forward + t.control, false};
  }

 private:
  double distance(const Fields &f) const {
    double vec[3];
    for (int k = 0; k < 3; ++k) vec[k] = f.xpos[fingertip_ + k] - f.xpos[target_ + k];
    return setup_.numpy.norm(vec);
  }

  const double distance_weight_, control_weight_;
  const int64_t fingertip_, target_;
};

class Pusher : public Task {
 public:
  explicit Pusher(const Setup &s)
      : Task(s, 7, 7),
        near_weight_(s["reward_near_weight"]),
        distance_weight_(s["reward_dist_weight"]),
        control_weight_(s["reward_control_weight"]),
        tips_(3 * s.index("tips_arm")),
        object_(3 * s.index("object")),
        goal_(3 * s.index("goal")) {}

  int64_t obs_size() const override { return 7 + 7 + 9; }
  void observe(const Fields &f, double *obs) const override {
    obs = copy(copy(obs, f.qpos, 7), f.qvel, 7);
    copy(copy(copy(obs, f.xpos + tips_, 3), f.xpos + object_, 3), f.xpos + goal_, 3);
  }
  void before(const Fields &f, Memo &memo) const override {
    if (!v5_) distances(f, memo.value);
  }
  Outcome after(const Fields &f, const float *action, const Memo &memo, Terms &t) const override {
    double now[2];
    if (v5_) distances(f, now);
    const double *distance = v5_ ? now : memo.value;
    // Pusher reports its terms in fields with other names: `contact` holds reward_near, `forward` holds reward_dist.
    const double near = -distance[0], far = -distance[1];
    const float control = -sum_of_squares(action, nu_);
    if (!v5_) {
      t.forward = far;
      t.control = control;
      return {far + static_cast<float>(control_weight_) * control + near_weight_ * near, false};
    }
    t.contact = near * near_weight_;
    t.forward = far * distance_weight_;
    t.control = control * static_cast<float>(control_weight_);
    return {t.forward + t.control + t.contact, false};
  }

 private:
  void distances(const Fields &f, double *distance) const {
    double to_tips[3], to_goal[3];
    for (int k = 0; k < 3; ++k) {
      to_tips[k] = f.xpos[object_ + k] - f.xpos[tips_ + k];
      to_goal[k] = f.xpos[object_ + k] - f.xpos[goal_ + k];
    }
    distance[0] = setup_.numpy.norm(to_tips);
    distance[1] = setup_.numpy.norm(to_goal);
  }

  const double near_weight_, distance_weight_, control_weight_;
  const int64_t tips_, object_, goal_;
};

}  // namespace xc::mujoco
