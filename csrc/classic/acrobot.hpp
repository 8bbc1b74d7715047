// Acrobot-v1, with torque_noise_max = 0.
#pragma once

#include <algorithm>

#include "classic/control.hpp"

namespace xc::classic {

class Acrobot {
 public:
  static constexpr int64_t kObs = 6, kState = 5, kDraw = 4, kNumActions = 3;  // state[4]: whether the others are float32

  Acrobot(const Values &v, const Numpy &numpy)
      : numpy_(numpy),
        dt_(v["dt"]),
        l1_(v["LINK_LENGTH_1"]),
        m1_(v["LINK_MASS_1"]),
        m2_(v["LINK_MASS_2"]),
        c1_(v["LINK_COM_POS_1"]),
        c2_(v["LINK_COM_POS_2"]),
        inertia_(v["LINK_MOI"]),
        max_speed_1_(v["MAX_VEL_1"]),
        max_speed_2_(v["MAX_VEL_2"]),
        torques_{v["torque_0"], v["torque_1"], v["torque_2"]},
        nips_(v.flag("nips")) {}

  // After a reset, the state is float32. So is the draw.
  void start(const double *draw, double *state) const {
    std::copy_n(draw, 4, state);
    state[4] = 1;
  }

  void observe(const double *state, double *obs) const {
    for (int64_t link = 0; link < 2; ++link) {
      const double angle = state[link];
      obs[2 * link] = state[4] != 0 ? numpy_.cosf(float(angle)) : float(numpy_.cos(angle));
      obs[2 * link + 1] = state[4] != 0 ? numpy_.sinf(float(angle)) : float(numpy_.sin(angle));
    }
    obs[4] = float(state[2]);
    obs[5] = float(state[3]);
  }

  Outcome step(double *state, float action) const {
    const double torque = torques_[int(action)];
    integrate(state, torque);
    state[0] = wrap(state[0]);
    state[1] = wrap(state[1]);
    state[2] = bound(state[2], max_speed_1_);
    state[3] = bound(state[3], max_speed_2_);
    state[4] = 0;
    const bool terminated = -numpy_.cos(state[0]) - numpy_.cos(state[1] + state[0]) > 1.0;
    return {terminated ? 0.0 : -1.0, terminated};
  }

 private:
  static constexpr double kPi = 3.141592653589793;

  // One step of the fourth-order Runge-Kutta method.
  void integrate(double *s, double torque) const {
    double k1[4], k2[4], k3[4], k4[4], y[4];
    const double half = dt_ / 2.0, sixth = dt_ / 6.0;
    derivatives(s, torque, k1);
    for (int k = 0; k < 4; ++k) y[k] = s[k] + half * k1[k];
    derivatives(y, torque, k2);
    for (int k = 0; k < 4; ++k) y[k] = s[k] + half * k2[k];
    derivatives(y, torque, k3);
    for (int k = 0; k < 4; ++k) y[k] = s[k] + dt_ * k3[k];
    derivatives(y, torque, k4);
    for (int k = 0; k < 4; ++k) s[k] = s[k] + sixth * (((k1[k] + 2 * k2[k]) + 2 * k3[k]) + k4[k]);
  }

  void derivatives(const double *s, double a, double *out) const {
    constexpr double g = 9.8;
    const double theta1 = s[0], theta2 = s[1], dtheta1 = s[2], dtheta2 = s[3];
    const double cos2 = numpy_.cos(theta2), sin2 = numpy_.sin(theta2);
    const double d1 = m1_ * pow2(c1_) + m2_ * (pow2(l1_) + pow2(c2_) + 2 * l1_ * c2_ * cos2) + inertia_ + inertia_;
    const double d2 = m2_ * (pow2(c2_) + l1_ * c2_ * cos2) + inertia_;
    const double phi2 = m2_ * c2_ * g * numpy_.cos(theta1 + theta2 - kPi / 2.0);
    const double phi1 = -m2_ * l1_ * c2_ * pow2(dtheta2) * sin2 - 2 * m2_ * l1_ * c2_ * dtheta2 * dtheta1 * sin2 +
                        (m1_ * c1_ + m2_ * l1_) * g * numpy_.cos(theta1 - kPi / 2) + phi2;
    const double divisor = m2_ * pow2(c2_) + inertia_ - pow2(d2) / d1;
    const double ddtheta2 = nips_ ? (a + d2 / d1 * phi1 - phi2) / divisor
                                  : (a + d2 / d1 * phi1 - m2_ * l1_ * c2_ * pow2(dtheta1) * sin2 - phi2) / divisor;
    out[0] = dtheta1;
    out[1] = dtheta2;
    out[2] = -(d2 * ddtheta2 + phi1) / d1;
    out[3] = ddtheta2;
  }

  static double wrap(double x) {
    const double turn = kPi - -kPi;
    while (x > kPi) x = x - turn;
    while (x < -kPi) x = x + turn;
    return x;
  }
  static double bound(double x, double most) {
    x = -most > x ? -most : x;
    return most < x ? most : x;
  }

  const Numpy numpy_;
  const double dt_, l1_, m1_, m2_, c1_, c2_, inertia_, max_speed_1_, max_speed_2_;
  const double torques_[3];
  const bool nips_;
};

}  // namespace xc::classic
