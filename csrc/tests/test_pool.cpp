// Tests of pool.hpp without Python, for the sanitizers:
//   g++ -std=c++17 -g -O1 -fsanitize=thread -I csrc csrc/tests/test_pool.cpp -o /tmp/test_pool -pthread && /tmp/test_pool
#include "pool.hpp"

#include <sys/wait.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) {                                                             \
      std::fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                 \
    }                                                                               \
  } while (0)

namespace {

// Every task runs exactly once, and what it wrote is seen after run().
void each_task_once() {
  for (const int threads : {1, 2, 3, 8}) {
    xc::ThreadPool pool(threads);
    for (const int64_t tasks : {0, 1, 2, 3, 7, 16, 1000})
      for (int repeat = 0; repeat < 200; ++repeat) {
        std::vector<int> counts(tasks, 0);
        pool.run(tasks, [&](int64_t task) { ++counts[task]; });
        for (const int count : counts) CHECK(count == 1);
      }
  }
}

// Runs far apart, so that threads have gone to sleep in between, and at once after a stop.
void sleeping_and_stopping() {
  xc::ThreadPool pool(4);
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::vector<int64_t> out(64, 0);
    pool.run(64, [&](int64_t task) { out[task] = task + repeat; });
    for (int64_t task = 0; task < 64; ++task) CHECK(out[task] == task + repeat);
    if (repeat % 3 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    if (repeat % 5 == 0) pool.stop();
  }
}

// A slow task does not keep free threads from taking the others.
void uneven_tasks() {
  xc::ThreadPool pool(3);
  std::vector<int> out(30, 0);
  for (int repeat = 0; repeat < 5; ++repeat)
    pool.run(30, [&](int64_t task) {
      if (task == 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
      ++out[task];
    });
  for (const int count : out) CHECK(count == 5);
}

void several_pools() {
  xc::ThreadPool a(2), b(3);
  std::vector<int> out(50, 0);
  std::thread other([&] {
    std::vector<int> own(50, 0);
    for (int repeat = 0; repeat < 100; ++repeat) b.run(50, [&](int64_t task) { ++own[task]; });
    for (const int count : own) CHECK(count == 100);
  });
  for (int repeat = 0; repeat < 100; ++repeat) a.run(50, [&](int64_t task) { ++out[task]; });
  other.join();
  for (const int count : out) CHECK(count == 100);
}

#if !defined(__SANITIZE_THREAD__)  // the thread sanitizer does not follow a fork of a process with threads
void after_a_fork() {
  auto pool = std::make_unique<xc::ThreadPool>(3);
  std::vector<int> out(40, 0);
  pool->run(40, [&](int64_t task) { ++out[task]; });
  const pid_t child = fork();
  if (child == 0) {
    for (int repeat = 0; repeat < 10; ++repeat) pool->run(40, [&](int64_t task) { ++out[task]; });
    bool fine = true;
    for (const int count : out) fine = fine && count == 11;
    pool.reset();
    _exit(fine ? 0 : 1);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  pool->run(40, [&](int64_t task) { ++out[task]; });
  for (const int count : out) CHECK(count == 2);

  const pid_t idle = fork();  // a child that only lets go of it
  if (idle == 0) {
    pool.reset();
    _exit(0);
  }
  CHECK(waitpid(idle, &status, 0) == idle && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif

}  // namespace

int main() {
  each_task_once();
  sleeping_and_stopping();
  uneven_tasks();
  several_pools();
#if !defined(__SANITIZE_THREAD__)
  after_a_fork();
#endif
  std::puts("pool: ok");
}
