// Standalone test of sync.hpp, meant to run under the thread sanitizer: threads take the part of the workers.
//   g++ -std=c++17 -g -O1 -fsanitize=thread -Icsrc csrc/tests/test_sync.cpp -o test_sync -pthread && ./test_sync
// The data words are plain memory, so a missing happens-before edge is a reported race. Ends with status 0 or says what
// failed.
#include "sync.hpp"

#include <cstdio>
#include <cstdlib>
#include <vector>

using namespace std::chrono_literals;

namespace {

constexpr std::uint32_t kStep = 1, kStop = 2;

void check(bool condition, const char *what, long where) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: %s (at %ld)\n", what, where);
  std::exit(1);
}

// `rounds` commands to `workers` threads that square a number each; every seventh command fails in worker 0.
void run(std::uint32_t workers, long rounds, xcfast::SpinPolicy policy, bool pauses) {
  xcfast::SyncBlock block{};
  std::vector<long> input(workers), output(workers);
  std::vector<std::thread> threads;
  for (std::uint32_t w = 0; w < workers; ++w)
    threads.emplace_back([&, w] {
      std::uint32_t seen = 0;
      for (;;) {
        const std::uint32_t opcode = xcfast::wait_command(block, seen, policy, 20s);
        if (opcode == kStop) return xcfast::finish(block, false);
        if (pauses && w == 0 && input[w] % 3 == 0) std::this_thread::sleep_for(200us);
        output[w] = input[w] * input[w];
        xcfast::finish(block, w == 0 && input[w] % 7 == 0);
      }
    });
  // One long wait: a lost wake-up would let it sleep to its end.
  const auto wait = [&](long where) {
    const auto start = xcfast::SyncClock::now();
    const xcfast::Finished finished = xcfast::wait_finished(block, policy, 20s);
    check(xcfast::SyncClock::now() - start < 10s, "a wake-up was lost", where);
    return finished;
  };
  for (long round = 1; round <= rounds; ++round) {
    for (std::uint32_t w = 0; w < workers; ++w) input[w] = round + 1000 * w;
    if (pauses && round % 5 == 0) std::this_thread::sleep_for(200us);  // so that workers fall asleep
    xcfast::publish(block, kStep, workers);
    const xcfast::Finished finished = wait(round);
    check((finished == xcfast::Finished::failed) == (round % 7 == 0), "the failure of a worker is reported", round);
    for (std::uint32_t w = 0; w < workers; ++w) check(output[w] == input[w] * input[w], "results are complete", round);
  }
  xcfast::publish(block, kStop, workers);
  check(wait(-1) == xcfast::Finished::ok, "stopping succeeds", -1);
  for (auto &thread : threads) thread.join();
}

void timeouts() {
  xcfast::SyncBlock block{};
  std::uint32_t seen = 0;
  const auto start = xcfast::SyncClock::now();
  check(xcfast::wait_command(block, seen, {}, 30ms) == 0, "no command, no opcode", 0);
  xcfast::publish(block, kStep, 1);
  check(xcfast::wait_finished(block, {}, 30ms) == xcfast::Finished::timeout, "no report, no end", 1);
  const auto waited = xcfast::SyncClock::now() - start;
  check(waited >= 60ms && waited < 10s, "waits last as long as asked", 2);
  check(xcfast::wait_command(block, seen, {}, 0ms) == kStep, "a published command is found without waiting", 3);
  xcfast::finish(block, false);
  check(xcfast::wait_finished(block, {}, 0ms) == xcfast::Finished::ok, "a reported end is found without waiting", 4);
}

}  // namespace

int main() {
  timeouts();
  for (const std::uint32_t workers : {1u, 2u, 5u}) {
    run(workers, 2000, {0us, true}, false);    // sleeps at once
    run(workers, 2000, {50us, true}, false);   // yields, then sleeps
    run(workers, 300, {20us, false}, true);    // spins, then sleeps; both sides late by turns
  }
  std::puts("sync: ok");
}
