// The engine as a Python object. bind_mujoco.cpp and bind_classic.cpp make one; bind_envs.cpp (the native vector environments)
// and bind_collector.cpp (the native collector) use it.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "envs/engine.hpp"
#include "envs/numerics.hpp"
#include "envs/vector_step.hpp"
#include "pool.hpp"

namespace xc {

namespace py = pybind11;

// Only one Python thread may use it at a time, which xcfast.envs.NativeVecEnv makes sure of.
class EnvEngine {
 public:
  // config: max_episode_steps, draws_capacity, and obs_size, the size of an observation in the caller's arrays. keep_alive:
  // the objects that the dynamics point into, besides the arrays.
  EnvEngine(std::unique_ptr<envs::Dynamics> dynamics, const py::dict &config, const py::dict &arrays, std::shared_ptr<ThreadPool> pool,
            py::object keep_alive);

  envs::Engine &engine() { return *engine_; }
  ThreadPool &pool() { return *pool_; }

  int step(bool autoreset);
  void reset(const std::vector<int64_t> &indices);
  // Raises xcfast.errors.SimulationError with the engine's message, after a Status::kFailed.
  [[noreturn]] void raise_errors();

 private:
  std::shared_ptr<ThreadPool> pool_;
  py::object keep_alive_;
  py::dict arrays_;
  std::unique_ptr<envs::Engine> engine_;
  std::unique_ptr<envs::VectorStep> vector_step_;
  const float *actions_ = nullptr;
};

// Returns the memory of the caller's array, which must have the right type and size.
template <class T>
T *column(const py::dict &arrays, const char *name, py::ssize_t wanted_size) {
  auto array = arrays[name].cast<py::array>();
  const bool fits = py::dtype::of<T>().is(array.dtype()) && (array.flags() & py::array::c_style) && array.writeable();
  if (!fits || array.size() != wanted_size)
    throw std::invalid_argument(std::string(name) + " must be a writable C-contiguous array of its type with " +
                                std::to_string(wanted_size) + " elements; got " + std::to_string(array.size()));
  return static_cast<T *>(array.mutable_data());
}

// Looks up the inner loops of numpy's functions.
envs::Numpy make_numpy();

}  // namespace xc
