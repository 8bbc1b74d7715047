// A task: observation, reward and termination, as Gymnasium's class of the same name computes them.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "envs/engine.hpp"
#include "envs/numerics.hpp"
#include "envs/values.hpp"

namespace xc::mujoco {

using envs::all_finite, envs::clip, envs::Numpy, envs::Outcome, envs::pairwise_sum, envs::pow2, envs::sum_of_squares;

struct Own;  // of own_task.hpp

// The arrays of one mjData that tasks read, and what an own task keeps (null for the tasks built in).
struct Fields {
  const double *qpos, *qvel, *ctrl, *xpos, *xipos, *site_xpos, *cinert, *cvel, *qfrc_actuator, *qfrc_constraint, *cfrc_ext;
  Own *own;
};

// The sizes and constants of the model, and the keyword arguments of the environment.
struct Setup {
  int64_t nq = 0, nv = 0, nu = 0, nbody = 0;
  const double *body_mass = nullptr;
  double body_mass_sum = 0;  // np.sum(body_mass)
  double dt = 0;             // seconds per environment step
  bool v5 = false;
  Numpy numpy;
  envs::Values values;

  double operator[](const char *name) const { return values[name]; }
  bool flag(const char *name) const { return values.flag(name); }
  int64_t index(const char *name) const { return values.index(name); }
};

// The parts of a reward, for the infos. A task writes only those that it has.
struct Terms {
  double x_velocity, y_velocity, forward, healthy, control, contact;
};

// Values that a task computes before the physics step and needs after it.
struct Memo {
  double value[4];
};

class Task {
 public:
  // min_nq, min_nv: how many positions and velocities the model must have, because the task reads them by their indices.
  Task(const Setup &setup, int64_t min_nq, int64_t min_nv)
      : setup_(setup), nq_(setup.nq), nv_(setup.nv), nu_(setup.nu), dt_(setup.dt), v5_(setup.v5) {
    if (nq_ < min_nq || nv_ < min_nv)
      throw std::invalid_argument("the model must have nq >= " + std::to_string(min_nq) + " and nv >= " + std::to_string(min_nv) +
                                  "; got " + std::to_string(nq_) + " and " + std::to_string(nv_));
  }
  virtual ~Task() = default;

  virtual int64_t obs_size() const = 0;
  virtual void observe(const Fields &f, double *obs) const = 0;
  virtual int64_t action_size() const { return nu_; }
  // Numbers of an initial state besides positions and velocities.
  virtual int64_t num_extra() const { return 0; }
  // Called when an episode has been set to its initial state; returns as Outcome::error.
  virtual const char *started(const Fields &, const double *) const { return nullptr; }
  // Gives the action to the actuators, before the physics step.
  virtual void act(const Fields &, const float *action, double *ctrl) const {
    for (int64_t k = 0; k < nu_; ++k) ctrl[k] = action[k];
  }
  // Called then, before the physics step.
  virtual void before(const Fields &, Memo &) const {}
  // Whether `control` is to be called before each mj_step of a step.
  virtual bool controls() const { return false; }
  virtual void control(const Fields &) const {}
  // Called after the physics step; returns its outcome.
  virtual Outcome after(const Fields &f, const float *action, const Memo &memo, Terms &terms) const = 0;
  // Whether the task needs the contact forces (cfrc_ext), which cost another pass over the model.
  virtual bool uses_contact_forces() const { return false; }

 protected:
  static double *copy(double *out, const double *x, int64_t n) {
    std::memcpy(out, x, static_cast<size_t>(n) * sizeof(double));
    return out + n;
  }
  static double *clipped(double *out, const double *x, int64_t n, double low, double high) {
    for (int64_t k = 0; k < n; ++k) out[k] = clip(x[k], low, high);
    return out + n;
  }
  // weight * np.sum(np.square(action)), in float32 as in numpy, since the weight is a Python number.
  float control_cost(double weight, const float *action) const { return static_cast<float>(weight) * sum_of_squares(action, nu_); }

  const Setup setup_;
  const int64_t nq_, nv_, nu_;
  const double dt_;
  const bool v5_;
};

}  // namespace xc::mujoco
