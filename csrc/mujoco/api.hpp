// MuJoCo's functions by address, so that nothing here needs its headers or links to it, and a net below its errors.
#pragma once

#include <setjmp.h>

#include <atomic>
#include <cstdint>
#include <cstdio>

namespace xc::mujoco {

struct Api {
  using Function = void (*)(const void *model, void *data);
  Function step = nullptr, forward = nullptr, reset_data = nullptr, rne_post_constraint = nullptr;

  // This thread's handlers, as MuJoCo's own bindings set them: one for all messages (since 3.9 or so), or one each. Null where a
  // version does not have them.
  using LogHandler = void (*)(const void *);
  using TextHandler = void (*)(const char *);
  LogHandler (*set_log_handler)(LogHandler) = nullptr;
  void (*set_error_handler)(TextHandler) = nullptr;
  void (*set_warning_handler)(TextHandler) = nullptr;
};

// Between catch_errors and release_errors, errors of MuJoCo on this thread jump to where XC_MUJOCO_CAUGHT was asked last, instead of
// ending the process, and warnings are not printed and written into MUJOCO_LOG.TXT (they are counted in mjData).
//
//   if (XC_MUJOCO_CAUGHT) { ... message() ... } else { calls of MuJoCo, no destructors }
struct Net {
  jmp_buf target;
  char message[512];
  Api::LogHandler previous;
};

inline Net &net() {
  static thread_local Net here;
  return here;
}

// Of the error that was caught last on this thread.
inline const char *message() { return net().message; }

[[noreturn]] inline void on_error(const char *message) {
  Net &here = net();
  std::snprintf(here.message, sizeof here.message, "%s", message ? message : "");
  longjmp(here.target, 1);
}
inline void on_warning(const char *) {}
inline void on_log(const void *message) {
  struct Head {  // of mjLogMessage
    int level, topic;
    char subject[1024];
  };
  constexpr int kError = 3;
  const auto *head = static_cast<const Head *>(message);
  if (head->level >= kError) on_error(head->subject);
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

}  // namespace xc::mujoco
