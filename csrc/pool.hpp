// A pool of threads that divides a range of independent tasks among them. The calling thread works too.
//
// Each thread begins with its own share of the range, so that a task tends to run where its data are still in the cache.
// A thread that finishes early takes tasks from the shares of the others. Which thread runs a task is therefore not
// determined, and tasks must not depend on it. The pool does not wait for a thread that is late (asleep, or without a
// CPU): the others do its share, and it misses the run.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace xc {

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads) : num_threads_(std::max(1, num_threads)) {}
  ~ThreadPool() { stop(); }
  ThreadPool(const ThreadPool &) = delete;
  ThreadPool &operator=(const ThreadPool &) = delete;

  int num_threads() const { return num_threads_; }

  // Calls fn(task), or fn(task, thread) if it takes that, for each task in [0, num_tasks), and returns when all calls have
  // returned. thread, in [0, num_threads), is for memory that no other thread uses at the time. Only one run may be under
  // way at a time, and fn must not throw. The threads start at the first run. They start again at the first run after a
  // fork, because a fork copies no threads.
  template <class Fn>
  void run(int64_t num_tasks, Fn &&fn) {
    const int threads = static_cast<int>(std::min<int64_t>(num_threads_, num_tasks));
    if (threads <= 1) {
      for (int64_t task = 0; task < num_tasks; ++task) invoke(fn, task, 0);
      return;
    }
    Crew &crew = started();
    for (int t = 0; t < num_threads_; ++t) {
      crew.shares[t].next.store(num_tasks * t / num_threads_, std::memory_order_relaxed);
      crew.shares[t].end = num_tasks * (t + 1) / num_threads_;
    }
    using Function = std::remove_reference_t<Fn>;
    crew.context = const_cast<void *>(static_cast<const void *>(&fn));
    crew.call = [](void *context, int64_t task, int thread) { invoke(*static_cast<Function *>(context), task, thread); };
    crew.publish(Crew::kOpen);
    crew.work(0);
    crew.close();
  }

  // Ends the threads; the next run starts new ones.
  void stop() {
    if (!crew_) return;
    if (owner_ != getpid()) {
      // A fork copied this object but not its threads, and may have copied locks in any state: do not touch any of it.
      crew_.release();
      return;
    }
    crew_->quit.store(true, std::memory_order_relaxed);
    crew_->publish(0);
    for (std::thread &thread : crew_->threads) thread.join();
    crew_.reset();
  }

 private:
  template <class Fn>
  static void invoke(Fn &fn, int64_t task, int thread) {
    if constexpr (std::is_invocable_v<Fn &, int64_t, int>)
      fn(task, thread);
    else
      fn(task);
  }

  // One thread's share of the range, on cache lines of its own.
  struct alignas(128) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  // Everything that the threads use. It lives on the heap, so that the child of a fork can abandon it as a whole.
  struct Crew {
    explicit Crew(int num_threads) : shares(num_threads) {}

    // The upper half is the number of the run. The lower half says whether threads may still join it (kOpen) and how
    // many are at work in it, not counting the caller (kWorking). This is one word, so that a late thread cannot join a
    // run that has just ended.
    static constexpr uint64_t kRun = uint64_t(1) << 32, kOpen = uint64_t(1) << 31, kWorking = kOpen - 1;
    alignas(128) std::atomic<uint64_t> state{0};
    std::atomic<bool> quit{false};
    alignas(128) std::atomic<int> sleepers{0};
    std::atomic<bool> caller_sleeps{false};
    void *context = nullptr;
    void (*call)(void *, int64_t, int) = nullptr;
    std::vector<Share> shares;
    std::vector<std::thread> threads;
    std::mutex mutex;
    std::condition_variable wake, done;

    void publish(uint64_t open) {
      // No thread is at work now. The store and the load of `sleepers` are sequentially consistent: either this thread
      // sees the sleeper, or the sleeper sees the new state.
      state.store(((state.load(std::memory_order_relaxed) & ~(kOpen | kWorking)) + kRun) | open);
      if (sleepers.load() > 0) {
        std::lock_guard<std::mutex> lock(mutex);
        wake.notify_all();
      }
    }

    // Called by the caller when all tasks are taken: lets no further thread join, and waits for those at work.
    void close() {
      auto idle = [&] { return (state.load() & kWorking) == 0; };
      if ((state.fetch_and(~kOpen) & kWorking) == 0 || spin(idle)) return;
      std::unique_lock<std::mutex> lock(mutex);
      caller_sleeps.store(true);
      done.wait(lock, idle);
      caller_sleeps.store(false);
    }

    bool join(uint64_t seen) {
      while (seen & kOpen) {
        const uint64_t run = seen / kRun;
        if (state.compare_exchange_weak(seen, seen + 1)) return true;
        if (seen / kRun != run) return false;  // a later run has begun: await_run_after returns it next
      }
      return false;
    }

    void leave() {
      const uint64_t before = state.fetch_sub(1);
      if ((before & (kOpen | kWorking)) == 1 && caller_sleeps.load()) {
        std::lock_guard<std::mutex> lock(mutex);
        done.notify_one();
      }
    }

    void work(int self) {
      const int count = static_cast<int>(shares.size());
      for (int k = 0; k < count; ++k) {
        Share &share = shares[(self + k) % count];
        for (;;) {
          if (share.next.load(std::memory_order_relaxed) >= share.end) break;
          const int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
          if (task >= share.end) break;
          call(context, task, self);
        }
      }
    }

    void thread_main(int self) {
      for (uint64_t run = 0;;) {
        const uint64_t seen = await_run_after(run);
        run = seen / kRun;
        if (quit.load(std::memory_order_relaxed)) return;
        if (!join(seen)) continue;
        work(self);
        leave();
      }
    }

    uint64_t await_run_after(uint64_t run) {
      uint64_t seen = 0;
      auto published = [&] {
        seen = state.load();
        return seen / kRun != run;
      };
      if (spin(published)) return seen;
      std::unique_lock<std::mutex> lock(mutex);
      sleepers.fetch_add(1);
      wake.wait(lock, published);
      sleepers.fetch_sub(1);
      return seen;
    }

    // Polls for something that is likely to happen soon: the next of a series of vector steps, or the end of another
    // thread's last task. Yields between polls, since the thread that it waits for may need this CPU.
    template <class Ready>
    static bool spin(Ready &&ready) {
      for (int round = 0; round < kSpinRounds; ++round) {
        for (int k = 0; k < kSpinPauses; ++k) {
          if (ready()) return true;
#if defined(__x86_64__) || defined(__i386__)
          _mm_pause();
#endif
        }
        std::this_thread::yield();
      }
      return ready();
    }
  };

  static constexpr int kSpinRounds = 40;  // about 50 us in total
  static constexpr int kSpinPauses = 40;

  Crew &started() {
    if (crew_ && owner_ != getpid()) crew_.release();
    if (!crew_) {
      crew_ = std::make_unique<Crew>(num_threads_);
      owner_ = getpid();
      crew_->threads.reserve(size_t(num_threads_ - 1));
      try {
        for (int t = 1; t < num_threads_; ++t) crew_->threads.emplace_back([crew = crew_.get(), t] { crew->thread_main(t); });
      } catch (const std::system_error &) {
        // The system allows no more threads. Those that there are take the others' shares.
      }
    }
    return *crew_;
  }

  const int num_threads_;
  std::unique_ptr<Crew> crew_;
  pid_t owner_ = 0;
};

}  // namespace xc
