// SPDX-License-Identifier: MIT
// SIGSEGV and SIGBUS as the program sees them: our handler (preload/fault.h) looks like the default action.
#include <errno.h>

#include "preload/export.h"
#include "preload/fault.h"
#include "preload/process.h"

using namespace mpklink;

namespace {

bool concerns_us(int number) { return number == SIGSEGV || number == SIGBUS; }

// signal(2) and its kin. `call` sets the disposition, keeping errno's rules.
template <class Call>
sighandler_t signal_any(int number, sighandler_t handler, Call call) {
  if (!concerns_us(number)) return call(number, handler);
  struct sigaction before = {};
  if (const struct sigaction* ours = handler == SIG_DFL ? default_or_ours(number) : nullptr) {
    if (real().sigaction(number, ours, &before) != 0) return SIG_ERR;
    return is_fault_handler(before) ? SIG_DFL : before.sa_handler;
  }
  real().sigaction(number, nullptr, &before);
  const sighandler_t old = call(number, handler);
  return old != SIG_ERR && is_fault_handler(before) ? SIG_DFL : old;
}

}  // namespace

extern "C" {

int mpklink_sigaction(int number, const struct sigaction* action, struct sigaction* old) noexcept {
  if (!concerns_us(number)) return real().sigaction(number, action, old);
  if (action != nullptr && !(action->sa_flags & SA_SIGINFO) && action->sa_handler == SIG_DFL) {
    if (const struct sigaction* ours = default_or_ours(number)) action = ours;
  }
  const int result = real().sigaction(number, action, old);
  if (result == 0 && old != nullptr && is_fault_handler(*old)) *old = {};
  return result;
}

sighandler_t mpklink_signal(int number, sighandler_t handler) noexcept {
  return signal_any(number, handler, [](int n, sighandler_t h) { return real().signal(n, h); });
}
sighandler_t mpklink___sysv_signal(int number, sighandler_t handler) noexcept {
  return signal_any(number, handler, [](int n, sighandler_t h) { return real().__sysv_signal(n, h); });
}

}  // extern "C"

MPKLINK_EXPORT(sigaction)
MPKLINK_EXPORT_AS(__sigaction, sigaction)
MPKLINK_EXPORT(signal)
MPKLINK_EXPORT_AS(bsd_signal, signal)
MPKLINK_EXPORT_AS(ssignal, signal)
MPKLINK_EXPORT(__sysv_signal)
MPKLINK_EXPORT_AS(sysv_signal, __sysv_signal)
