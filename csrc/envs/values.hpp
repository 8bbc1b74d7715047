// Numbers by name: the keyword arguments and the constants of a Gymnasium environment.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <unordered_map>

namespace xc::envs {

struct Values {
  std::unordered_map<std::string, double> numbers;

  double operator[](const char *name) const {
    const auto found = numbers.find(name);
    if (found == numbers.end()) throw std::invalid_argument("values must have " + std::string(name));
    return found->second;
  }
  bool flag(const char *name) const { return (*this)[name] != 0; }
  int64_t index(const char *name) const { return static_cast<int64_t>((*this)[name]); }
};

}  // namespace xc::envs
