// An engine as a Python object, for the bindings that make one (bind_mujoco.cpp, bind_classic.cpp) or use it: of the native vector
// environments (bind_envs.cpp) and of the native collector.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "envs/engine.hpp"
#include "envs/numerics.hpp"
#include "pool.hpp"

namespace xc {

namespace py = pybind11;

// xcfast.envs.NativeVecEnv sees to it that one Python thread at a time comes here.
class EnvEngine {
 public:
  // config: max_episode_steps, draws_capacity and obs_size, the observations that the caller's arrays have room for. keep_alive: whatever
  // the dynamics point into, besides the arrays.
  EnvEngine(std::unique_ptr<envs::Dynamics> dynamics, const py::dict &config, const py::dict &arrays, std::shared_ptr<ThreadPool> pool,
            py::object keep_alive);

  envs::Engine &engine() { return *engine_; }
  ThreadPool &pool() { return *pool_; }

  int step(bool autoreset);
  void reset(const std::vector<int64_t> &indices);
  // Raises xcfast.envs.SimulationError with the engine's message, after a Status::kFailed.
  [[noreturn]] void raise_errors();

 private:
  std::shared_ptr<ThreadPool> pool_;
  py::object keep_alive_;
  py::dict arrays_;
  std::unique_ptr<envs::Engine> engine_;
  const float *actions_ = nullptr;
};

// The memory of a caller's array.
template <class T>
T *column(const py::dict &arrays, const char *name, py::ssize_t wanted_size) {
  auto array = arrays[name].cast<py::array>();
  const bool fits = py::dtype::of<T>().is(array.dtype()) && (array.flags() & py::array::c_style) && array.writeable();
  if (!fits || array.size() != wanted_size)
    throw std::invalid_argument(std::string(name) + " must be a writable C-contiguous array of its type with " +
                                std::to_string(wanted_size) + " elements; got " + std::to_string(array.size()));
  return static_cast<T *>(array.mutable_data());
}

// With the inner loops of numpy's functions.
envs::Numpy make_numpy();

}  // namespace xc
