// What bind_mujoco.cpp offers to other bindings.
#pragma once

#include <pybind11/pybind11.h>

#include "mujoco/engine.hpp"
#include "pool.hpp"

namespace xc::mujoco {

struct EngineAndPool {
  Engine &engine;
  ThreadPool &pool;
};

// Of a MujocoEngine, which must outlive them.
EngineAndPool engine_of(const pybind11::handle &object);

// Raises xcfast.envs.SimulationError for the first env that failed.
[[noreturn]] void raise_simulation_error(Engine &engine);

}  // namespace xc::mujoco
