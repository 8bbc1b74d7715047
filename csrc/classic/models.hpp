// All classic control models, by the name in their Gymnasium id, without the version.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>

#include "classic/acrobot.hpp"
#include "classic/cart_pole.hpp"
#include "classic/mountain_car.hpp"
#include "classic/pendulum.hpp"

namespace xc::classic {

// Calls make(model) with the Model of that name.
template <class Make>
auto with_model(const std::string &name, const Values &values, const Numpy &numpy, Make &&make) {
  if (name == "Acrobot") return make(Acrobot(values, numpy));
  if (name == "CartPole") return make(CartPole(values, numpy));
  if (name == "MountainCar") return make(MountainCar(values, numpy));
  if (name == "MountainCarContinuous") return make(MountainCarContinuous(values, numpy));
  if (name == "Pendulum") return make(Pendulum(values, numpy));
  throw std::invalid_argument("task must be the name of a known task; got " + name);
}

}  // namespace xc::classic
