// What the randomized tests share: checks that count failures, and random data from a seed that repeats a failing run.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <random>
#include <vector>

inline int failures = 0;

#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) {                                                   \
      std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                         \
    }                                                                     \
  } while (0)

using Rng = std::mt19937_64;

// The seed of a run: its first argument, or a random one.
inline uint64_t seed_of(int argc, char **argv) {
  return argc > 1 ? std::strtoull(argv[1], nullptr, 10) : std::random_device{}();
}

inline int64_t pick(Rng &rng, std::initializer_list<int64_t> choices) { return choices.begin()[rng() % choices.size()]; }

template <class T>
std::vector<T> normal(Rng &rng, int64_t size, double scale = 1) {
  std::normal_distribution<double> d(0, scale);
  std::vector<T> x(static_cast<size_t>(size));
  for (T &v : x) v = T(d(rng));
  return x;
}

template <class T>
bool same_bits(const std::vector<T> &a, const std::vector<T> &b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}
