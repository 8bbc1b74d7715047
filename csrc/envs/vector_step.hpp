// Takes all environments through one step on the threads of a pool.
//
// Such a vector step lasts until the slowest thread is done, so the threads should end at the same time. Whole environments
// are too coarse for that: the first of two threads would wait for half the step of one on average, which is 3 % of both threads'
// time if each has eight. How long a step will take is not known either. So a thread steps the environments of its share one by one, except
// the last two, which it steps in turn, part by part. A thread without work takes over environments of the others: whole steps
// while there are any, then parts. In the end, threads differ by about one part.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "envs/engine.hpp"
#include "pool.hpp"

namespace xc::envs {

class VectorStep {
 public:
  VectorStep(const Sizes &sizes, int num_threads)
      : parts_(sizes.parts),
        chunk_(sizes.envs_per_task),
        shares_(size_t(std::clamp<int64_t>((sizes.num_envs + chunk_ - 1) / chunk_, 1, num_threads))),
        shared_(size_t(std::min(sizes.num_envs, threads() * shared_of_each()))) {
    size_t used = 0;
    for (int64_t t = 0; t < threads(); ++t) {
      Share &share = shares_[size_t(t)];
      const int64_t end = sizes.num_envs * (t + 1) / threads();
      share.begin = sizes.num_envs * t / threads();
      share.end = std::max(share.begin, end - shared_of_each());
      share.first = used;
      for (int64_t env = share.end; env < end; ++env) shared_[used++].env = env;
      share.last = used;
    }
  }

  struct Result {
    bool failed;     // whether a step failed
    bool ended;      // whether an episode ended
    bool exhausted;  // whether an episode ended and its environment has no initial state left
  };

  // actions: a row for each environment.
  Result run(Engine &engine, ThreadPool &pool, const float *actions, bool autoreset) {
    for (Share &share : shares_) share.next.store(share.begin, std::memory_order_relaxed);
    for (Shared &shared : shared_) shared.left.store(parts_, std::memory_order_relaxed);
    failed_ = ended_ = exhausted_ = false;
    pool.run(threads(), [&](int64_t self) {
      const Engine::Guard guard(engine);
      const auto step = [&](int64_t env, const Parts &parts) {
        const Step step = engine.step_parts(env, actions + env * engine.action_size(), parts, autoreset);
        if (step.status == Status::kFailed) failed_.store(true, std::memory_order_relaxed);
        if (step.status == Status::kDone || step.status == Status::kNeedsReset) {
          ended_.store(true, std::memory_order_relaxed);
          if (autoreset && !engine.has_draw(env)) exhausted_.store(true, std::memory_order_relaxed);
        }
        return step.status == Status::kUnfinished;
      };
      for (int64_t k = 0; k < threads(); ++k) {
        Share &share = shares_[size_t((self + k) % threads())];
        while (share.next.load(std::memory_order_relaxed) < share.end) {
          const int64_t begin = share.next.fetch_add(chunk_, std::memory_order_relaxed);
          for (int64_t env = begin; env < std::min(begin + chunk_, share.end); ++env) step(env, {0, parts_});
        }
      }
      Shared *taken = nullptr;
      for (int64_t left = 0; (taken = take(shares_[size_t(self)], taken, left));)
        if (step(taken->env, {parts_ - left, parts_ - left + 1})) taken->left.store(left - 1, std::memory_order_release);
    });
    return {failed_, ended_, exhausted_};
  }

 private:
  // A thread's share: the environments [begin, end), which are stepped as a whole, and entries [first, last) of shared_.
  struct alignas(128) Share {
    std::atomic<int64_t> next{0};
    int64_t begin = 0, end = 0;
    size_t first = 0, last = 0;
  };

  // An environment that is stepped part by part. `left` is how many parts are left, or 0 while a thread is at one.
  struct alignas(128) Shared {
    std::atomic<int64_t> left{0};
    int64_t env = 0;
  };

  int64_t threads() const { return static_cast<int64_t>(shares_.size()); }
  // How many environments of each share are stepped part by part.
  int64_t shared_of_each() const { return threads() > 1 && parts_ > 1 ? 2 : 0; }

  // Takes the free environment with the most parts left: one of the own share, if there is one, else that of the last call
  // rather than another with as many. `left` becomes its number of parts left. Returns null if none is free.
  Shared *take(const Share &own, Shared *last, int64_t &left) {
    for (;;) {
      Shared *best = nullptr;
      left = 0;
      const auto consider = [&](Shared &shared) {
        const int64_t parts = shared.left.load(std::memory_order_relaxed);
        if (parts > left) best = &shared, left = parts;
      };
      for (size_t k = own.first; k < own.last; ++k) consider(shared_[k]);
      if (!best) {
        if (last) consider(*last);
        for (Shared &shared : shared_) consider(shared);
      }
      if (!best || best->left.compare_exchange_strong(left, 0, std::memory_order_acquire, std::memory_order_relaxed)) return best;
    }
  }

  const int64_t parts_, chunk_;
  std::vector<Share> shares_;
  std::vector<Shared> shared_;
  std::atomic<bool> failed_{false}, ended_{false}, exhausted_{false};
};

}  // namespace xc::envs
