// Lock-step between one parent and several worker processes over shared memory.
//
// The parent publishes a command, every worker runs it and reports, and the last report lets the parent continue. Both
// sides spin for a bounded time and then sleep on a futex. The words may lie in memory shared between processes, so the
// futex calls do not use the PRIVATE flag. Every wait ends after a given time, so that the caller can handle signals and
// check that the other side is alive before it waits again.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include <sched.h>

#if defined(__linux__)
#include <cerrno>
#include <climits>
#include <ctime>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace xcfast {

using SyncClock = std::chrono::steady_clock;
using SyncWord = std::atomic<std::uint32_t>;
static_assert(SyncWord::is_always_lock_free && sizeof(SyncWord) == 4, "a futex word must be a plain 32-bit integer");

// All zero is the valid initial state, so a fresh shared mapping needs no construction.
struct SyncBlock {
  alignas(64) SyncWord sequence;  // number of commands published
  SyncWord sleeping_workers;      // how many workers are (about to be) asleep on `sequence`
  SyncWord opcode;                // the command; written before `sequence`, and read after it
  alignas(64) SyncWord remaining;  // workers that have not reported yet
  SyncWord parent_sleeping;        // 1 while the parent is (about to be) asleep on `remaining`
  SyncWord failures;               // workers that reported a failure of this command
};

// How to wait: poll for at most `spin`, then sleep. `yield`: whether to give the core away between two polls, for
// machines whose cores are scarce.
struct SpinPolicy {
  std::chrono::nanoseconds spin{20'000};
  bool yield = true;
};

enum class Finished : int { timeout = 0, ok = 1, failed = 2 };

namespace detail {

inline void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Sleeps while `word` holds `seen`, for at most `limit`. Returns early on a signal, and may return spuriously.
inline void sleep_on(SyncWord &word, std::uint32_t seen, std::chrono::nanoseconds limit) {
#if defined(__linux__)
  timespec relative;
  relative.tv_sec = static_cast<time_t>(limit.count() / 1'000'000'000);
  relative.tv_nsec = static_cast<long>(limit.count() % 1'000'000'000);
  syscall(SYS_futex, reinterpret_cast<std::uint32_t *>(&word), FUTEX_WAIT, seen, &relative, nullptr, 0);
#else
  // There is no futex: return after a short sleep, and the caller checks again. The waker has nothing to do.
  if (word.load() == seen) std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(limit, std::chrono::microseconds(50)));
#endif
}

inline void wake_all(SyncWord &word) {
#if defined(__linux__)
  syscall(SYS_futex, reinterpret_cast<std::uint32_t *>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
#else
  (void)word;
#endif
}

// Waits until ready(word) is true, for at most `timeout`. `sleepers` tells the waker that a wake-up call is needed. Both
// sides use sequentially consistent order, so either the waker sees the sleeper or the sleeper sees the new word.
template <class Ready>
bool wait_until(SyncWord &word, SyncWord &sleepers, Ready ready, SpinPolicy policy, std::chrono::nanoseconds timeout) {
  if (ready(word.load())) return true;
  const auto start = SyncClock::now();
  const auto deadline = start + timeout;
  const auto spin_end = std::min(start + policy.spin, deadline);
  while (SyncClock::now() < spin_end) {
    if (policy.yield) {
      sched_yield();
    } else {
      for (int i = 0; i < 16; ++i) pause_cpu();
    }
    if (ready(word.load())) return true;
  }
  sleepers.fetch_add(1);
  bool done = false;
  for (;;) {
    const std::uint32_t seen = word.load();
    done = ready(seen);
    const auto left = deadline - SyncClock::now();
    if (done || left <= SyncClock::duration::zero()) break;
    sleep_on(word, seen, left);
  }
  sleepers.fetch_sub(1);
  return done;
}

}  // namespace detail

// Parent: gives `opcode` to all `num_workers` workers. Everything that was written before is visible to them.
inline void publish(SyncBlock &block, std::uint32_t opcode, std::uint32_t num_workers) {
  block.failures.store(0);
  block.remaining.store(num_workers);
  block.opcode.store(opcode);  // atomic, because a parent that gives up replaces a command that not all workers have read
  block.sequence.fetch_add(1);
  if (block.sleeping_workers.load() > 0) detail::wake_all(block.sequence);
}

// Worker: waits for the command after number `seen`, and advances `seen`. Returns 0 if none came within `timeout`.
inline std::uint32_t wait_command(SyncBlock &block, std::uint32_t &seen, SpinPolicy policy,
                                  std::chrono::nanoseconds timeout) {
  const std::uint32_t last = seen;
  const auto is_new = [last](std::uint32_t value) { return value != last; };
  if (!detail::wait_until(block.sequence, block.sleeping_workers, is_new, policy, timeout)) return 0;
  ++seen;
  return block.opcode.load();
}

// Worker: reports that it has finished the command. The last worker to report wakes the parent.
inline void finish(SyncBlock &block, bool failed) {
  if (failed) block.failures.fetch_add(1);
  if (block.remaining.fetch_sub(1) == 1 && block.parent_sleeping.load() > 0) detail::wake_all(block.remaining);
}

// Parent: waits until every worker has reported. Everything that they wrote is visible afterwards.
inline Finished wait_finished(SyncBlock &block, SpinPolicy policy, std::chrono::nanoseconds timeout) {
  const auto is_zero = [](std::uint32_t value) { return value == 0; };
  if (!detail::wait_until(block.remaining, block.parent_sleeping, is_zero, policy, timeout)) return Finished::timeout;
  return block.failures.load() > 0 ? Finished::failed : Finished::ok;
}

}  // namespace xcfast
