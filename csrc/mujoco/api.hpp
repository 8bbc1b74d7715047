// MuJoCo's functions by their addresses, so that the extension neither needs MuJoCo's headers nor links to it; and handlers
// that catch its errors.
#pragma once

#include <setjmp.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>

namespace xc::mujoco {

struct Api {
  using Function = void (*)(const void *model, void *data);
  Function step = nullptr, forward = nullptr, reset_data = nullptr, rne_post_constraint = nullptr;
  void (*reset_data_keyframe)(const void *model, void *data, int key) = nullptr;

  // The functions that set the calling thread's handlers. They are private symbols, which MuJoCo's own Python bindings use.
  // Newer versions (from about 3.9) have one handler for all messages; older ones have one for errors and one for
  // warnings. A pointer is null where this version lacks the function.
  using LogHandler = void (*)(const void *);
  using TextHandler = void (*)(const char *);
  LogHandler (*set_log_handler)(LogHandler) = nullptr;
  void (*set_error_handler)(TextHandler) = nullptr;
  void (*set_warning_handler)(TextHandler) = nullptr;

  // Public functions and variables that errors_arrive needs; null where this version lacks them.
  void (*error)(const char *format, ...) = nullptr;                // mju_error
  LogHandler (*set_process_log_handler)(LogHandler) = nullptr;     // mju_setLogHandler
  TextHandler *process_error_handler = nullptr;                    // &mju_user_error
};

// What the handlers of one thread share.
//
// MuJoCo would end the process at an error. Between catch_errors and release_errors, an error on this thread jumps to the
// last XC_MUJOCO_CAUGHT that the thread passed instead. Warnings are neither printed nor written to MUJOCO_LOG.TXT; mjData
// counts them. Use it like this, with nothing in the second block that has a destructor:
//
//   if (XC_MUJOCO_CAUGHT) { ... message() ... } else { ... calls of MuJoCo ... }
struct Net {
  jmp_buf target;
  char message[512];
  Api::LogHandler previous;
  bool testing = false;  // whether errors_arrive is running on this thread
  bool missed = false;   // whether its error did not reach this thread's handlers
};

inline Net &net() {
  static thread_local Net here;
  return here;
}

// The text of the last error that this thread caught.
inline const char *message() { return net().message; }

[[noreturn]] inline void on_error(const char *message) {
  Net &here = net();
  std::snprintf(here.message, sizeof here.message, "MuJoCo raised an error: %s", message ? message : "");
  longjmp(here.target, 1);
}
inline void on_warning(const char *) {}
inline void on_log(const void *message) {
  struct Head {  // the first fields of mjLogMessage
    int level, topic;
    char subject[1024];
  };
  constexpr int kError = 3;
  const auto *head = static_cast<const Head *>(message);
  if (head->level >= kError || net().testing) on_error(head->subject);
}

inline void catch_errors(const Api &api) {
  if (api.set_log_handler) net().previous = api.set_log_handler(&on_log);
  if (api.set_error_handler) api.set_error_handler(&on_error);
  if (api.set_warning_handler) api.set_warning_handler(&on_warning);
}

inline void release_errors(const Api &api) {
  if (api.set_log_handler) api.set_log_handler(net().previous);
  if (api.set_error_handler) api.set_error_handler(nullptr);
  if (api.set_warning_handler) api.set_warning_handler(nullptr);
}

#define XC_MUJOCO_CAUGHT (_setjmp(::xc::mujoco::net().target) != 0)

// The handlers of the whole process while errors_arrive runs. They ignore messages of other threads.
inline void on_missed_error(const char *) {
  if (!net().testing) return;
  net().missed = true;
  longjmp(net().target, 1);
}
inline void on_missed_log(const void *) { on_missed_error(nullptr); }

// Makes MuJoCo raise an error, and returns whether the error reaches this thread's handlers with its text. This is a test,
// because the private symbols that set the handlers may mean something else in another version. An error that did not reach
// them would end the process, so the process's own handlers catch it during the test. Only one thread may call this at a
// time.
inline bool errors_arrive(const Api &api) {
  constexpr char kText[] = "a test of xcfast's error handler";
  const bool caught_anyway = api.set_process_log_handler || api.process_error_handler;
  if (!api.error || !caught_anyway || !(api.set_log_handler || api.set_error_handler)) return false;
  Net &here = net();
  const Api::LogHandler log_handler = api.set_process_log_handler ? api.set_process_log_handler(&on_missed_log) : nullptr;
  const Api::TextHandler error_handler = api.process_error_handler ? *api.process_error_handler : nullptr;
  if (api.process_error_handler) *api.process_error_handler = &on_missed_error;
  catch_errors(api);
  here.testing = true;
  here.missed = false;
  here.message[0] = '\0';
  bool arrived = false;
  if (XC_MUJOCO_CAUGHT)
    arrived = !net().missed && std::strstr(message(), kText);
  else
    api.error("%s", kText);
  net().testing = false;
  release_errors(api);
  if (api.set_process_log_handler) api.set_process_log_handler(log_handler);
  if (api.process_error_handler) *api.process_error_handler = error_handler;
  return arrived;
}

}  // namespace xc::mujoco
