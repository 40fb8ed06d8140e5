// SPDX-License-Identifier: MIT
// Handlers as the program sees them: those of SIGSEGV and SIGBUS that are ours (preload/fault.h) look like the default action, and
// the one that stands before the program's (preload/signals.h) like the program's.
#include <errno.h>

#include "preload/export.h"
#include "preload/fault.h"
#include "preload/process.h"
#include "preload/signals.h"

using namespace mpklink;

extern "C" int mpklink_sigaction(int number, const struct sigaction* action, struct sigaction* old) noexcept;

namespace {

bool of_faults(int number) { return number == SIGSEGV || number == SIGBUS; }

// signal(2) and its kin. `call` sets the disposition, keeping errno's rules.
template <class Call>
sighandler_t signal_any(int number, sighandler_t handler, Call call) {
  struct sigaction before = {};
  struct sigaction ours = {};
  if (handler == SIG_DFL && of_faults(number) && stands_for_default(number, &ours)) {
    return mpklink_sigaction(number, &before, &before) == 0 ? before.sa_handler : SIG_ERR;
  }
  const sighandler_t was = program_handler(number);
  const sighandler_t old = adopt_handler(number, handler, call(number, handler), was);
  before.sa_handler = old;
  before.sa_flags = SA_SIGINFO;
  return of_faults(number) && is_fault_handler(before) ? SIG_DFL : old;
}

}  // namespace

extern "C" {

int mpklink_sigaction(int number, const struct sigaction* action, struct sigaction* old) noexcept {
  struct sigaction ours = {};
  if (of_faults(number) && action != nullptr && !(action->sa_flags & SA_SIGINFO) && action->sa_handler == SIG_DFL) {
    if (stands_for_default(number, &ours)) action = &ours;
  }
  const int result = set_action(number, action, old);
  if (of_faults(number) && result == 0 && old != nullptr && is_fault_handler(*old)) *old = {};
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
