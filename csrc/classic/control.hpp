// The dynamics of N environments of one of Gymnasium's classic control classes.
//
// A Model repeats the operations of the class one by one. The class computes with numpy scalars and Python numbers: an
// operation between the two has the scalar's precision. That is float64 where no comment says otherwise.
#pragma once

#include <cstdint>

#include "envs/engine.hpp"
#include "envs/numerics.hpp"
#include "envs/values.hpp"

namespace xc::classic {

using envs::clip, envs::modulo, envs::Numpy, envs::Outcome, envs::pow2, envs::Values;

// A Model has the constants kObs, kState, kDraw and kNumActions (0 if the action is one number), and these functions:
//   void start(const double *draw, double *state);   // makes an initial state from a draw
//   void observe(const double *state, double *obs);  // rounds to float32, as the class does
//   Outcome step(double *state, float action);
template <class Model>
class Control final : public envs::Dynamics {
 public:
  // states: [N, kState], the caller's array.
  Control(const Model &model, double *states, int64_t num_envs)
      : Dynamics({num_envs, Model::kObs, 1, Model::kDraw, Model::kNumActions, kEnvsPerTask}), model_(model), states_(states) {}

  Outcome step(int64_t i, const float *action, const envs::Parts &) override { return model_.step(states_ + i * Model::kState, *action); }
  const char *reset(int64_t i, const double *draw) override {
    model_.start(draw, states_ + i * Model::kState);
    return nullptr;
  }
  void observe(int64_t i, double *obs) const override { model_.observe(states_ + i * Model::kState, obs); }

 private:
  static constexpr int64_t kEnvsPerTask = 256;  // they take some tens of microseconds

  const Model model_;
  double *const states_;
};

}  // namespace xc::classic
