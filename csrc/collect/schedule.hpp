// How threads share envs that each take many steps of their own: envs lie in blocks, a thread takes a block, advances it by a turn of a
// few steps and puts it back. The block that is furthest behind goes next, so that all threads are busy until shortly before the end,
// whatever the steps cost. Which thread advances a block does not matter to the block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <vector>

#include "pool.hpp"

namespace xc::collect {

enum class Progress { kGoesOn, kWaits, kDone, kFailed };

class Schedule {
 public:
  struct Block {
    int64_t begin, end;  // its envs
  };

  Schedule(int64_t num_envs, int64_t envs_per_block) {
    for (int64_t env = 0; env < num_envs; env += envs_per_block) blocks_.push_back({env, std::min(env + envs_per_block, num_envs)});
    turns_.resize(blocks_.size());
  }

  // Enough envs for one product of matrices to pay, enough blocks for the threads to share.
  static int64_t envs_per_block(int64_t num_envs, int num_threads) {
    constexpr int64_t kBlocksPerThread = 2, kMost = 8;
    return std::clamp<int64_t>(num_envs / (kBlocksPerThread * num_threads), 1, kMost);
  }

  int64_t size() const { return static_cast<int64_t>(blocks_.size()); }
  const Block &operator[](int64_t block) const { return blocks_[size_t(block)]; }

  // Calls advance(block, worker) -> Progress, by turns, until each block is done or waits, or one failed; those that waited before go on.
  // Two calls at a time have different workers, and workers are numbered below the pool's threads. Returns whether all blocks are done.
  template <class Advance>
  bool run(ThreadPool &pool, Advance &&advance) {
    for (Turn &turn : turns_)
      if (turn.state == State::kWaiting) turn.state = State::kReady;
    failed_ = false;
    const int64_t workers = std::min<int64_t>(pool.num_threads(), size());
    pool.run(workers, [&](int64_t worker) {
      for (int64_t block = take(worker * size() / workers); block >= 0; block = take(block))
        put_back(block, advance(block, worker));
    });
    return std::all_of(turns_.begin(), turns_.end(), [](const Turn &turn) { return turn.state == State::kDone; });
  }
  bool failed() const { return failed_; }

 private:
  enum class State : uint8_t { kReady, kTaken, kWaiting, kDone };
  struct Turn {
    State state = State::kReady;
    int64_t taken = 0;  // turns so far
  };

  // The ready block with the fewest turns, the first from `from` on; -1 if there is none, or if a block failed.
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
};

}  // namespace xc::collect
