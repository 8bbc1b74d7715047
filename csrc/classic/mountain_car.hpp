// MountainCar-v0 and MountainCarContinuous-v0.
#pragma once

#include <cmath>

#include "classic/control.hpp"

namespace xc::classic {

class MountainCar {
 public:
  static constexpr int64_t kObs = 2, kState = 2, kDraw = 1, kNumActions = 3;

  MountainCar(const Values &v, const Numpy &)
      : min_position_(v["min_position"]),
        max_position_(v["max_position"]),
        max_speed_(v["max_speed"]),
        goal_position_(v["goal_position"]),
        goal_velocity_(v["goal_velocity"]),
        force_(v["force"]),
        gravity_(v["gravity"]) {}

  void start(const double *draw, double *state) const {
    state[0] = draw[0];
    state[1] = 0;
  }
  void observe(const double *state, double *obs) const {
    obs[0] = float(state[0]);
    obs[1] = float(state[1]);
  }

  Outcome step(double *state, float action) const {
    double position = state[0], velocity = state[1];
    velocity += (double(action) - 1) * force_ + std::cos(3 * position) * -gravity_;  // Python's cosine, which is libm's
    velocity = clip(velocity, -max_speed_, max_speed_);
    position = clip(position + velocity, min_position_, max_position_);
    if (position == min_position_ && velocity < 0) velocity = 0;
    state[0] = position;
    state[1] = velocity;
    return {-1.0, position >= goal_position_ && velocity >= goal_velocity_};
  }

 private:
  const double min_position_, max_position_, max_speed_, goal_position_, goal_velocity_, force_, gravity_;
};

// The state is float64 after a reset and float32 after a step, so the first step of an episode has another precision than
// the following ones.
class MountainCarContinuous {
 public:
  static constexpr int64_t kObs = 2, kState = 3, kDraw = 1, kNumActions = 0;  // state[2]: whether the others are float32

  MountainCarContinuous(const Values &v, const Numpy &)
      : min_action_(v["min_action"]),
        max_action_(v["max_action"]),
        min_position_(v["min_position"]),
        max_position_(v["max_position"]),
        max_speed_(v["max_speed"]),
        goal_position_(v["goal_position"]),
        goal_velocity_(v["goal_velocity"]),
        power_(v["power"]) {}

  void start(const double *draw, double *state) const {
    state[0] = draw[0];
    state[1] = 0;
    state[2] = 0;
  }
  void observe(const double *state, double *obs) const {
    obs[0] = float(state[0]);
    obs[1] = float(state[1]);
  }

  Outcome step(double *state, float action) const { return state[2] != 0 ? advance<float>(state, action) : advance<double>(state, action); }

 private:
  // One step from a state of precision T.
  template <class T>
  Outcome advance(double *state, float action) const {
    T position = T(state[0]), velocity = T(state[1]);
    const double slope = 0.0025 * std::cos(double(3 * position));
    // A clipped action becomes a Python number; otherwise it stays float32.
    if (action < float(min_action_))
      velocity += T(min_action_ * power_ - slope);
    else if (action > float(max_action_))
      velocity += T(max_action_ * power_ - slope);
    else
      velocity += T(action * float(power_) - float(slope));
    // Where Gymnasium assigns a limit to the velocity, it becomes a Python number. `exact` is that number before rounding,
    // which is compared with the goal.
    double exact = velocity;
    bool set = false;
    const auto set_velocity = [&](double value) {
      velocity = T(value);
      exact = value;
      set = true;
    };
    if (velocity > T(max_speed_)) set_velocity(max_speed_);
    if (velocity < T(-max_speed_)) set_velocity(-max_speed_);
    position += velocity;
    if (position > T(max_position_)) position = T(max_position_);
    if (position < T(min_position_)) position = T(min_position_);
    if (position == T(min_position_) && velocity < 0) set_velocity(0);
    const bool fast = set ? exact >= goal_velocity_ : velocity >= T(goal_velocity_);
    const bool terminated = position >= T(goal_position_) && fast;
    state[0] = float(position);
    state[1] = float(velocity);
    state[2] = 1;
    return {(terminated ? 100.0 : 0.0) - pow2(double(action)) * 0.1, terminated};
  }

  const double min_action_, max_action_, min_position_, max_position_, max_speed_, goal_position_, goal_velocity_, power_;
};

}  // namespace xc::classic
