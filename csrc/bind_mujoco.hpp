// The engine as a Python object, for the bindings that use it: of MujocoVecEnv (bind_mujoco.cpp) and of the native collector.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <vector>

#include "mujoco/engine.hpp"
#include "pool.hpp"

namespace xc {

// MujocoVecEnv sees to it that one Python thread at a time comes here.
class MujocoEngine {
 public:
  MujocoEngine(const std::string &task, const pybind11::dict &setup, const pybind11::dict &api, const pybind11::dict &config,
               const pybind11::list &simulations, const pybind11::dict &arrays, std::shared_ptr<ThreadPool> pool,
               pybind11::object keep_alive);

  mujoco::Engine &engine() { return *engine_; }
  ThreadPool &pool() { return *pool_; }

  int step(bool autoreset);
  void reset(const std::vector<int64_t> &indices);
  // Raises xcfast.envs.SimulationError with MuJoCo's message, after a Status::kFailed.
  [[noreturn]] void raise_errors();

 private:
  std::shared_ptr<ThreadPool> pool_;
  pybind11::object keep_alive_;  // the model, the data and whatever else the addresses point into
  pybind11::dict arrays_;
  std::unique_ptr<mujoco::Engine> engine_;
  const float *actions_ = nullptr;
};

}  // namespace xc
