// Pendulum-v1.
#pragma once

#include <algorithm>

#include "classic/control.hpp"

namespace xc::classic {

class Pendulum {
 public:
  static constexpr int64_t kObs = 3, kState = 2, kDraw = 2, kNumActions = 0;

  Pendulum(const Values &v, const Numpy &numpy)
      : numpy_(numpy),
        max_speed_(v["max_speed"]),
        max_torque_(float(v["max_torque"])),
        dt_(v["dt"]),
        fall_(3 * v["g"] / (2 * v["l"])),
        push_(float(3.0 / (v["m"] * pow2(v["l"])))) {}

  void start(const double *draw, double *state) const { std::copy_n(draw, kState, state); }
  void observe(const double *state, double *obs) const {
    obs[0] = float(numpy_.cos(state[0]));
    obs[1] = float(numpy_.sin(state[0]));
    obs[2] = float(state[1]);
  }

  Outcome step(double *state, float action) const {
    const double angle = state[0], speed = state[1];
    const float torque = clip(action, -max_torque_, max_torque_);  // float32, and so are its products
    const double normal = modulo(angle + kPi, 2 * kPi) - kPi;
    const double cost = pow2(normal) + 0.1 * pow2(speed) + 0.001f * pow2(torque);
    const double faster = speed + (fall_ * numpy_.sin(angle) + push_ * torque) * dt_;
    state[1] = clip(faster, -max_speed_, max_speed_);
    state[0] = angle + state[1] * dt_;
    return {-cost, false};
  }

 private:
  static constexpr double kPi = 3.141592653589793;

  const Numpy numpy_;
  const double max_speed_;
  const float max_torque_;
  const double dt_, fall_;
  const float push_;
};

}  // namespace xc::classic
