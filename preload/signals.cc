// SPDX-License-Identifier: MIT
#include "preload/signals.h"

#include <sys/syscall.h>
#include <ucontext.h>

#include "preload/process.h"
#include "preload/stream.h"
#include "shm/raw_syscall.h"

namespace mpklink {
namespace {

// The program's handler of each signal, with the flags that ours does not hand on to the kernel. User addresses have 56 bits at most.
constexpr std::uint64_t kTakesInfo = std::uint64_t{1} << 63;  // SA_SIGINFO
constexpr std::uint64_t kOnce = std::uint64_t{1} << 62;       // SA_RESETHAND
constexpr std::uint64_t kBreaks = std::uint64_t{1} << 61;     // no SA_RESTART
constexpr std::uint64_t kAddress = (std::uint64_t{1} << 56) - 1;
Atomic<std::uint64_t> g_handlers[NSIG];

using Handler = void (*)(int, siginfo_t*, void*);

std::uint64_t bit_of(int number) { return std::uint64_t{1} << (number - 1); }

bool concerns_us(int number) {
  constexpr std::uint64_t left_alone = 1u << (SIGSEGV - 1) | 1u << (SIGBUS - 1) | 1u << (SIGFPE - 1) | 1u << (SIGILL - 1) |
                                       1u << (SIGTRAP - 1) | 1u << (SIGABRT - 1) | 1u << (SIGSYS - 1) | 1u << (SIGKILL - 1) |
                                       1u << (SIGSTOP - 1);
  return number > 0 && number < NSIG && !(left_alone & bit_of(number));
}

long queue_here(int number, const siginfo_t* info) {
  return raw_syscall(SYS_rt_tgsigqueueinfo, raw_syscall(SYS_getpid), raw_syscall(SYS_gettid), number, reinterpret_cast<long>(info));
}

// Blocks the signal until the section ends. False: that cannot be, now is the time.
bool put_off(int number, const siginfo_t* info, void* context) {
  // A thread made past libc may have another's thread-local words.
  if (t_state.id != 0 && static_cast<std::uint32_t>(raw_syscall(SYS_gettid)) != t_state.id) return false;
  const std::uint64_t bit = bit_of(number);
  std::uint64_t mask = 0;
  // Before it is queued: with SA_NODEFER it is not blocked.
  raw_syscall(SYS_rt_sigprocmask, SIG_BLOCK, reinterpret_cast<long>(&bit), reinterpret_cast<long>(&mask), sizeof mask);
  if (queue_here(number, info) != 0) {  // RLIMIT_SIGPENDING
    raw_syscall(SYS_rt_sigprocmask, SIG_SETMASK, reinterpret_cast<long>(&mask), 0, sizeof mask);
    return false;
  }
  sigaddset(&static_cast<ucontext_t*>(context)->uc_sigmask, number);
  t_state.held_signals.fetch_or(bit);
  t_state.after.store_relaxed(1);  // relaxed: this thread's own
  return true;
}

void on_signal(int number, siginfo_t* info, void* context) {
  if (sections_here() != 0 && put_off(number, info, context)) return;
  std::uint64_t word = g_handlers[number].load_acquire();  // SYNC: handlers
  if (word & kOnce) {
    word = g_handlers[number].exchange(0);
    struct sigaction plain = {};
    real().sigaction(number, &plain, nullptr);
    if (word == 0) {  // another thread was faster: this one is the default's
      queue_here(number, info);
      return;
    }
  }
  t_state.handlers.store_relaxed(t_state.handlers.load_relaxed() + 1);  // relaxed: this thread's own
  if (word & kBreaks) t_state.breaks.store_relaxed(t_state.breaks.load_relaxed() + 1);  // relaxed: as above
  reinterpret_cast<Handler>(word & kAddress)(number, info, context);  // one that takes the number alone ignores the rest
}

bool is_ours(const struct sigaction& action) { return (action.sa_flags & SA_SIGINFO) && action.sa_sigaction == on_signal; }

bool is_function(sighandler_t handler) {
  return handler != SIG_DFL && handler != SIG_IGN && handler != SIG_ERR && handler != SIG_HOLD;
}

std::uint64_t word_of(const struct sigaction& action) {
  std::uint64_t word = reinterpret_cast<std::uint64_t>(action.sa_handler);
  if (action.sa_flags & SA_SIGINFO) word |= kTakesInfo;
  if (action.sa_flags & SA_RESETHAND) word |= kOnce;
  if (!(action.sa_flags & SA_RESTART)) word |= kBreaks;
  return word;
}

sighandler_t address_in(std::uint64_t word) { return reinterpret_cast<sighandler_t>(word & kAddress); }

}  // namespace

int set_action(int number, const struct sigaction* action, struct sigaction* old) {
  if (!concerns_us(number)) return real().sigaction(number, action, old);
  std::uint64_t before = g_handlers[number].load_acquire();  // SYNC: handlers
  struct sigaction ours = {};
  // A vfork child has our memory, but handlers of its own.
  if (action != nullptr && is_function(action->sa_handler) && !is_ours(*action) && !in_foreign_child()) {
    ours = *action;
    ours.sa_sigaction = on_signal;
    ours.sa_flags = (ours.sa_flags | SA_SIGINFO) & ~static_cast<int>(SA_RESETHAND);
    before = g_handlers[number].exchange(word_of(*action));
    action = &ours;
  }
  const int result = real().sigaction(number, action, old);
  if (result == 0 && old != nullptr && is_ours(*old)) {
    old->sa_handler = address_in(before);
    if (!(before & kTakesInfo)) old->sa_flags &= ~SA_SIGINFO;
    if (before & kOnce) old->sa_flags |= static_cast<int>(SA_RESETHAND);
  }
  return result;
}

sighandler_t program_handler(int number) {
  return concerns_us(number) ? address_in(g_handlers[number].load_acquire()) : SIG_DFL;  // SYNC: handlers
}

sighandler_t adopt_handler(int number, sighandler_t handler, sighandler_t old, sighandler_t before) {
  if (!concerns_us(number) || old == SIG_ERR) return old;
  struct sigaction now = {};
  if (is_function(handler) && real().sigaction(number, nullptr, &now) == 0 && now.sa_handler == handler) set_action(number, &now, nullptr);
  return reinterpret_cast<std::uintptr_t>(old) == reinterpret_cast<std::uintptr_t>(on_signal) ? before : old;
}

void note_interrupts(int number, bool interrupts) {
  if (!concerns_us(number) || in_foreign_child()) return;
  if (interrupts) {
    g_handlers[number].fetch_or(kBreaks);
  } else {
    g_handlers[number].fetch_and(~kBreaks);
  }
}

void after_sections() {
  t_state.after.store_relaxed(0);  // relaxed: this thread's own, as are the next
  run_deferred();
  const std::uint64_t held = t_state.held_signals.exchange(0);
  // Here they come, one after the other; from one of them we may not come back.
  if (held != 0) raw_syscall(SYS_rt_sigprocmask, SIG_UNBLOCK, reinterpret_cast<long>(&held), 0, sizeof held);
}

}  // namespace mpklink
