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

// While it lives, errors of MuJoCo on this thread jump to where `caught` was asked last, instead of ending the process, and warnings
// are not printed and written into MUJOCO_LOG.TXT (they are counted in mjData).
//
//   Guard guard(api);
//   if (XC_MUJOCO_CAUGHT) { ... guard.message() ... } else { calls of MuJoCo, no destructors }
class Guard {
 public:
  explicit Guard(const Api &api) : api_(api) {
    if (api_.set_log_handler) previous_ = api_.set_log_handler(&on_log);
    if (api_.set_error_handler) api_.set_error_handler(&on_error);
    if (api_.set_warning_handler) api_.set_warning_handler(&on_warning);
  }
  ~Guard() {
    if (api_.set_log_handler) api_.set_log_handler(previous_);
    if (api_.set_error_handler) api_.set_error_handler(nullptr);
    if (api_.set_warning_handler) api_.set_warning_handler(nullptr);
  }
  Guard(const Guard &) = delete;
  Guard &operator=(const Guard &) = delete;

  static jmp_buf &target() { return here().target; }
  static const char *message() { return here().message; }

 private:
  struct Here {
    jmp_buf target;
    char message[512];
  };
  static Here &here() {
    static thread_local Here state;
    return state;
  }

  [[noreturn]] static void on_error(const char *message) {
    Here &state = here();
    std::snprintf(state.message, sizeof state.message, "%s", message ? message : "");
    longjmp(state.target, 1);
  }
  static void on_warning(const char *) {}
  static void on_log(const void *message) {
    struct Head {  // of mjLogMessage
      int level, topic;
      char subject[1024];
    };
    constexpr int kError = 3;
    const auto *head = static_cast<const Head *>(message);
    if (head->level >= kError) on_error(head->subject);
  }

  const Api &api_;
  Api::LogHandler previous_ = nullptr;
};

#define XC_MUJOCO_CAUGHT (_setjmp(::xc::mujoco::Guard::target()) != 0)

}  // namespace xc::mujoco
