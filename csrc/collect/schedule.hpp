// Divides environments among threads that take each environment through many steps without waiting for the others.
//
// Environments are grouped in blocks. A thread takes a block, advances it by one turn of a few steps, and puts it back. The
// block that is furthest behind is taken next, so that all threads stay busy until shortly before the end, however long the
// steps take. The result depends neither on which thread advances a block nor on how often the work pauses.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <vector>

#include "pool.hpp"

namespace xc::collect {

enum class Progress { kGoesOn, kWaits, kDone, kFailed };

class Schedule {
 public:
  struct Block {
    int64_t begin, end;  // the envs [begin, end)
  };

  Schedule(int64_t num_envs, int64_t envs_per_block) {
    for (int64_t env = 0; env < num_envs; env += envs_per_block) blocks_.push_back({env, std::min(env + envs_per_block, num_envs)});
    turns_.resize(blocks_.size());
  }

  // A compromise: many envs in a block make its matrix products efficient, many blocks keep the threads equally busy.
  static int64_t envs_per_block(int64_t num_envs, int num_threads) {
    constexpr int64_t kBlocksPerThread = 2, kMost = 8;
    return std::clamp<int64_t>(num_envs / (kBlocksPerThread * num_threads), 1, kMost);
  }

  int64_t size() const { return static_cast<int64_t>(blocks_.size()); }
  const Block &operator[](int64_t block) const { return blocks_[size_t(block)]; }

  using Clock = std::chrono::steady_clock;
  static constexpr auto kNoLimit = Clock::duration::max();

  // Calls advance(block, worker), which advances a block by one turn and returns its Progress, until every block is done or
  // waits, or one failed, or `limit` has passed. Returns whether all blocks are done.
  //
  // Blocks that waited before this call continue. `worker` is a number below the pool's number of threads; concurrent calls
  // of `advance` have different ones. Every run makes some progress, however short the limit.
  template <class Advance>
  bool run(ThreadPool &pool, Clock::duration limit, Advance &&advance) {
    deadline_ = limit == kNoLimit ? Clock::time_point::max() : Clock::now() + limit;
    for (Turn &turn : turns_)
      if (turn.state == State::kWaiting) turn.state = State::kReady;
    failed_ = false;
    const int64_t workers = std::min<int64_t>(pool.num_threads(), size());
    pool.run(workers, [&](int64_t worker) {
      int64_t block = take(worker * size() / workers);
      while (block >= 0) {
        put_back(block, advance(block, worker));
        block = late() ? -1 : take(block);
      }
    });
    return std::all_of(turns_.begin(), turns_.end(), [](const Turn &turn) { return turn.state == State::kDone; });
  }
  bool failed() const { return failed_; }
  // Whether the limit of this run has passed: threads then put their blocks back after the current step.
  bool late() const { return Clock::now() >= deadline_; }

 private:
  enum class State : uint8_t { kReady, kTaken, kWaiting, kDone };
  struct Turn {
    State state = State::kReady;
    int64_t taken = 0;  // number of turns so far
  };

  // Takes the ready block with the fewest turns; among several, the first from index `from` on. Returns -1 if no block is
  // ready or one failed.
  int64_t take(int64_t from) {
    const std::lock_guard<std::mutex> lock(mutex_);
    int64_t best = -1;
    if (failed_) return best;
    for (int64_t k = 0; k < size(); ++k) {
      const int64_t block = (from + k) % size();
      const Turn &turn = turns_[size_t(block)];
      if (turn.state == State::kReady && (best < 0 || turn.taken < turns_[size_t(best)].taken)) best = block;
    }
    if (best >= 0) turns_[size_t(best)].state = State::kTaken;
    return best;
  }

  void put_back(int64_t block, Progress progress) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Turn &turn = turns_[size_t(block)];
    ++turn.taken;
    turn.state = progress == Progress::kDone ? State::kDone : progress == Progress::kGoesOn ? State::kReady : State::kWaiting;
    failed_ |= progress == Progress::kFailed;
  }

  std::vector<Block> blocks_;
  std::vector<Turn> turns_;
  std::mutex mutex_;
  bool failed_ = false;
  Clock::time_point deadline_ = Clock::time_point::max();
};

}  // namespace xc::collect
