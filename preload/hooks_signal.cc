// SPDX-License-Identifier: MIT
// Handlers as the program sees them: those of SIGSEGV and SIGBUS that are ours (preload/fault.h) look like the default action, and
// the one that stands before the program's (preload/signals.h) like the program's.
#include <errno.h>

#include "preload/export.h"
#include "preload/fault.h"
#include "preload/process.h"
#include "preload/signals.h"

using namespace mpklink;

namespace {

bool of_faults(int number) { return number == SIGSEGV || number == SIGBUS; }

// signal(2) and its kin. `call` sets the disposition, keeping errno's rules.
template <class Call>
sighandler_t signal_any(int number, sighandler_t handler, Call call) {
  if (!of_faults(number)) {
    const sighandler_t before = program_handler(number);
    return adopt_handler(number, handler, call(number, handler), before);
  }
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
  if (!of_faults(number)) return set_action(number, action, old);
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
sighandler_t mpklink_sigset(int number, sighandler_t handler) noexcept {
  return signal_any(number, handler, [](int n, sighandler_t h) { return real().sigset(n, h); });
}

int mpklink_siginterrupt(int number, int interrupts) noexcept {
  const int result = real().siginterrupt(number, interrupts);
  if (result == 0) note_interrupts(number, interrupts != 0);
  return result;
}

}  // extern "C"

MPKLINK_EXPORT(sigaction)
MPKLINK_EXPORT_AS(__sigaction, sigaction)
MPKLINK_EXPORT(signal)
MPKLINK_EXPORT_AS(bsd_signal, signal)
MPKLINK_EXPORT_AS(ssignal, signal)
MPKLINK_EXPORT(__sysv_signal)
MPKLINK_EXPORT_AS(sysv_signal, __sysv_signal)
MPKLINK_EXPORT(sigset)
MPKLINK_EXPORT(siginterrupt)
