// All MuJoCo tasks, by the name in their Gymnasium id, without the version.
#pragma once

#include <memory>
#include <string>

#include "mujoco/ant.hpp"
#include "mujoco/half_cheetah.hpp"
#include "mujoco/hopper.hpp"
#include "mujoco/humanoid.hpp"
#include "mujoco/pendulum.hpp"
#include "mujoco/reacher.hpp"

namespace xc::mujoco {

inline std::unique_ptr<Task> make_task(const std::string &name, const Setup &setup) {
  if (name == "Ant") return std::make_unique<Ant>(setup);
  if (name == "HalfCheetah" || name == "Swimmer") return std::make_unique<HalfCheetah>(setup, name == "Swimmer");
  if (name == "Hopper" || name == "Walker2d") return std::make_unique<Hopper>(setup);
  if (name == "Humanoid") return std::make_unique<Humanoid>(setup);
  if (name == "HumanoidStandup") return std::make_unique<HumanoidStandup>(setup);
  if (name == "Reacher") return std::make_unique<Reacher>(setup);
  if (name == "Pusher") return std::make_unique<Pusher>(setup);
  if (name == "InvertedPendulum") return std::make_unique<InvertedPendulum>(setup);
  if (name == "InvertedDoublePendulum") return std::make_unique<InvertedDoublePendulum>(setup);
  throw std::invalid_argument("task must be the name of a known task; got " + name);
}

}  // namespace xc::mujoco
