// Binds sync.hpp, the lock-step with worker processes, and the thread in which a worker watches its parent.
#include "sync.hpp"

#include <pybind11/pybind11.h>

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <thread>

namespace py = pybind11;

namespace {

// A SyncBlock in a Python buffer, with the number of the last command that this process has seen.
class Sync {
 public:
  Sync(py::buffer buffer, double spin_seconds, bool yield) : info_(buffer.request(/*writable=*/true)) {
    const auto bytes = info_.size * info_.itemsize;
    if (bytes < static_cast<py::ssize_t>(sizeof(xcfast::SyncBlock)))
      throw std::invalid_argument("buffer must hold at least Sync.nbytes = " + std::to_string(sizeof(xcfast::SyncBlock)) +
                                  " bytes; got " + std::to_string(bytes));
    if (reinterpret_cast<std::uintptr_t>(info_.ptr) % alignof(xcfast::SyncBlock) != 0)
      throw std::invalid_argument("buffer must be aligned to 64 bytes");
    block_ = static_cast<xcfast::SyncBlock *>(info_.ptr);
    policy_.spin = nanoseconds(spin_seconds);
    policy_.yield = yield;
  }

  void publish(std::uint32_t opcode, std::uint32_t num_workers) {
    if (opcode == 0 || num_workers == 0) throw std::invalid_argument("opcode and num_workers must be positive");
    xcfast::publish(*block_, opcode, num_workers);
  }
  std::uint32_t wait_command(double timeout) {
    return xcfast::wait_command(*block_, seen_, policy_, nanoseconds(timeout));
  }
  void finish(bool failed) { xcfast::finish(*block_, failed); }
  int wait_finished(double timeout) {
    return static_cast<int>(xcfast::wait_finished(*block_, policy_, nanoseconds(timeout)));
  }

 private:
  static std::chrono::nanoseconds nanoseconds(double seconds) {
    const double bounded = std::isnan(seconds) ? 0.0 : std::clamp(seconds, 0.0, 1e6);
    return std::chrono::nanoseconds(static_cast<std::int64_t>(bounded * 1e9));
  }

  py::buffer_info info_;  // keeps the memory alive
  xcfast::SyncBlock *block_ = nullptr;
  xcfast::SpinPolicy policy_;
  std::uint32_t seen_ = 0;
};

// Starts a thread that ends this process as soon as the other end of `fd` is closed, or the parent is no longer
// `parent_pid`. If the process leads a process group, the thread ends the whole group, so that no child of an environment
// survives. The thread needs no GIL, so it works while the process hangs in C code or sleeps on a futex. It checks the
// parent's pid too, because a fork of the parent may keep the descriptor open.
void watch_parent(int fd, int parent_pid) {
  std::thread([fd, parent_pid] {
    for (;;) {
      pollfd watched{fd, 0, 0};  // POLLHUP is always reported
      const int ready = poll(&watched, 1, 500);
      if (!(ready > 0 && (watched.revents & (POLLHUP | POLLERR | POLLNVAL))) && getppid() == parent_pid) continue;
      if (getpgrp() == getpid()) kill(0, SIGKILL);
      _exit(1);
    }
  }).detach();
}

}  // namespace

void bind_sync(py::module_ &m) {
  using release = py::call_guard<py::gil_scoped_release>;
  py::class_<Sync>(m, "Sync", "Lock-step of one parent with worker processes over a block of shared memory.")
      .def(py::init<py::buffer, double, bool>(), py::arg("buffer"), py::arg("spin_seconds"), py::arg("spin_yields"))
      .def_property_readonly_static("nbytes", [](py::object) { return sizeof(xcfast::SyncBlock); })
      .def("publish", &Sync::publish, py::arg("opcode"), py::arg("num_workers"),
           "Parent: gives a command to all workers.")
      .def("wait_command", &Sync::wait_command, py::arg("timeout"), release(),
           "Worker: returns the next command, or 0 after `timeout` seconds. Releases the GIL.")
      .def("finish", &Sync::finish, py::arg("failed"), "Worker: reports the command as done; the last one wakes the parent.")
      .def("wait_finished", &Sync::wait_finished, py::arg("timeout"), release(),
           "Parent: returns 1 when all workers have reported, 2 when one of them failed, 0 after `timeout` seconds. Releases "
           "the GIL.");
  m.def("watch_parent", &watch_parent, py::arg("fd"), py::arg("parent_pid"),
        "Worker: ends this process, and the process group that it leads, when `fd` hangs up or the parent is gone.");
}
