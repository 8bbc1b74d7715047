// Arguments that several bindings take: arrays of a known size, and the shape of a network.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "nn/network.hpp"

namespace xc {

namespace py = pybind11;

// Returns the memory of a C-contiguous array of the given number of elements. `name` is the argument, for the message.
template <class T>
T *checked(const py::array &array, const char *name, int64_t size, bool writable = false) {
  const bool fits = py::isinstance<py::array_t<T>>(array) && (array.flags() & py::array::c_style) && array.size() == size;
  if (!fits || (writable && !array.writeable()))
    throw std::invalid_argument(std::string(name) + " must be " + (writable ? "a writable" : "a") + " C-contiguous array of " +
                                std::to_string(size) + " " + std::string(py::str(py::dtype::of<T>())) + "; got " +
                                std::string(py::str(array.dtype())) + " " + std::string(py::str(array.attr("shape"))));
  return static_cast<T *>(const_cast<void *>(array.data()));
}

using LayerTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, int, int>;

inline nn::Network make_network(const std::vector<LayerTuple> &layers, int actor_head, int critic_head, int64_t log_std, int64_t n_obs,
                         int64_t n_parameters) {
  nn::Network network{{}, actor_head, critic_head, log_std, n_obs, n_parameters};
  const int count = int(layers.size());
  auto require = [](bool ok, const char *what) {
    if (!ok) throw std::invalid_argument(std::string("layers: ") + what);
  };
  require(actor_head >= 0 && actor_head < count && critic_head >= 0 && critic_head < count, "a head is not one of them");
  for (const auto &[n_in, n_out, weight, bias, source, activation] : layers) {
    require(n_in > 0 && n_out > 0, "a size is not positive");
    require(weight >= 0 && weight + n_in * n_out <= n_parameters && bias >= 0 && bias + n_out <= n_parameters,
            "a weight lies outside the parameters");
    require(source >= nn::kObs && source < int(network.layers.size()), "a source is not an earlier layer");
    require(n_in == (source == nn::kObs ? n_obs : network.layers[size_t(source)].n_out), "an input does not fit its source");
    require(activation >= 0 && activation <= int(nn::Activation::softmax), "an activation is unknown");
    network.layers.push_back({n_in, n_out, weight, bias, source, nn::Activation(activation)});
  }
  require(network.layers[size_t(critic_head)].n_out == 1, "the critic has more than one output");
  require(log_std < 0 || log_std + network.action_size() <= n_parameters, "log_std lies outside the parameters");
  return network;
}

}  // namespace xc
