// CartPole-v0 and CartPole-v1.
#pragma once

#include <algorithm>

#include "classic/control.hpp"

namespace xc::classic {

class CartPole {
 public:
  static constexpr int64_t kObs = 4, kState = 4, kDraw = 4, kNumActions = 2;

  CartPole(const Values &v, const Numpy &numpy)
      : numpy_(numpy),
        gravity_(v["gravity"]),
        pole_mass_(v["masspole"]),
        total_mass_(v["total_mass"]),
        length_(v["length"]),
        pole_mass_length_(v["polemass_length"]),
        force_(v["force_mag"]),
        tau_(v["tau"]),
        euler_(v.flag("euler")),
        max_angle_(v["theta_threshold_radians"]),
        max_x_(v["x_threshold"]),
        sutton_barto_(v.flag("sutton_barto_reward")) {}

  void start(const double *draw, double *state) const { std::copy_n(draw, kState, state); }
  void observe(const double *state, double *obs) const {
    for (int64_t k = 0; k < kObs; ++k) obs[k] = float(state[k]);
  }

  Outcome step(double *state, float action) const {
    double x = state[0], x_dot = state[1], theta = state[2], theta_dot = state[3];
    const double force = action == 1 ? force_ : -force_;
    const double cosine = numpy_.cos(theta), sine = numpy_.sin(theta);
    const double temp = (force + pole_mass_length_ * (theta_dot * theta_dot) * sine) / total_mass_;
    const double theta_acc =
        (gravity_ * sine - cosine * temp) / (length_ * (4.0 / 3.0 - pole_mass_ * (cosine * cosine) / total_mass_));
    const double x_acc = temp - pole_mass_length_ * theta_acc * cosine / total_mass_;
    if (euler_) {
      x = x + tau_ * x_dot;
      x_dot = x_dot + tau_ * x_acc;
      theta = theta + tau_ * theta_dot;
      theta_dot = theta_dot + tau_ * theta_acc;
    } else {
      x_dot = x_dot + tau_ * x_acc;
      x = x + tau_ * x_dot;
      theta_dot = theta_dot + tau_ * theta_acc;
      theta = theta + tau_ * theta_dot;
    }
    state[0] = x;
    state[1] = x_dot;
    state[2] = theta;
    state[3] = theta_dot;
    const bool fell = x < -max_x_ || x > max_x_ || theta < -max_angle_ || theta > max_angle_;
    return {sutton_barto_ ? (fell ? -1.0 : 0.0) : 1.0, fell};
  }

 private:
  const Numpy numpy_;
  const double gravity_, pole_mass_, total_mass_, length_, pole_mass_length_, force_, tau_;
  const bool euler_;
  const double max_angle_, max_x_;
  const bool sutton_barto_;
};

}  // namespace xc::classic
