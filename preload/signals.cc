// SPDX-License-Identifier: MIT
#include "preload/signals.h"

#include <sys/syscall.h>
#include <ucontext.h>

#include "preload/fault.h"
#include "preload/process.h"
#include "preload/stream.h"
#include "shm/raw_syscall.h"
#include "shm/user_copy.h"

namespace mpklink {
namespace {

// The program's handler of each signal, and its flags of which the kernel has others. User addresses have 56 bits at most.
constexpr std::uint64_t kTakesInfo = std::uint64_t{1} << 63;  // SA_SIGINFO
constexpr std::uint64_t kOnce = std::uint64_t{1} << 62;       // SA_RESETHAND
constexpr std::uint64_t kBreaks = std::uint64_t{1} << 61;     // no SA_RESTART
constexpr std::uint64_t kAddress = (std::uint64_t{1} << 56) - 1;
Atomic<std::uint64_t> g_handlers[NSIG];

using Handler = void (*)(int, siginfo_t*, void*);

std::uint64_t bit_of(int number) { return std::uint64_t{1} << (number - 1); }

// Not those of a crash, which must be answered where they happen; of these only faults are looked at. Nor those of job control: to queue one
// takes back another.
bool concerns_us(int number) {
  constexpr std::uint64_t left_alone = 1u << (SIGFPE - 1) | 1u << (SIGILL - 1) | 1u << (SIGTRAP - 1) | 1u << (SIGABRT - 1) | 1u << (SIGSYS - 1) |
                                       1u << (SIGKILL - 1) | 1u << (SIGSTOP - 1) | 1u << (SIGCONT - 1) | 1u << (SIGTSTP - 1) |
                                       1u << (SIGTTIN - 1) | 1u << (SIGTTOU - 1);
  return number > 0 && number < NSIG && !(left_alone & bit_of(number));
}

bool is_fault(int number) { return number == SIGSEGV || number == SIGBUS; }

void change_mask(int how, std::uint64_t signals, std::uint64_t* before = nullptr) {
  raw_syscall(SYS_rt_sigprocmask, how, reinterpret_cast<long>(&signals), reinterpret_cast<long>(before), sizeof signals);
}

void on_signal(int number, siginfo_t* info, void* context);
bool is_ours(const struct sigaction& action) { return (action.sa_flags & SA_SIGINFO) && action.sa_sigaction == on_signal; }

bool is_spent(const struct sigaction& action) {
  return action.sa_handler == SIG_DFL && (action.sa_flags & static_cast<int>(SA_RESETHAND));
}

// The kernel has made it the default action for the one delivery that is put off.
void set_once_more(int number) {
  struct sigaction action = {};
  if (real().sigaction(number, nullptr, &action) != 0 || !is_spent(action)) return;
  action.sa_sigaction = on_signal;
  real().sigaction(number, &action, nullptr);
}

// A thread made past libc may have another's thread-local words. (In the child of a fork the number is the parent's, at first.)
bool words_are_anothers() {
  return t_state.id != 0 && static_cast<std::uint32_t>(raw_syscall(SYS_gettid)) != t_state.id &&
         static_cast<std::uint32_t>(raw_syscall(SYS_getpid)) == process().pid.load_relaxed();  // relaxed: changes by fork only
}

// Blocks the signal until the section ends. False: that cannot be, now is the time.
bool put_off(int number, const siginfo_t* info, void* context) {
  // Blocked already: it was let in by the mask of a ppoll or the like, and its handler is to run before that call returns.
  if (sigismember(&static_cast<ucontext_t*>(context)->uc_sigmask, number) == 1 || words_are_anothers()) return false;
  std::uint64_t mask = 0;
  change_mask(SIG_BLOCK, bit_of(number), &mask);  // before it is queued: with SA_NODEFER it is not blocked
  if (g_handlers[number].load_acquire() & kOnce) set_once_more(number);  // SYNC: handlers
  if (raw_syscall(SYS_rt_tgsigqueueinfo, raw_syscall(SYS_getpid), raw_syscall(SYS_gettid), number, reinterpret_cast<long>(info)) != 0) {
    change_mask(SIG_SETMASK, mask);  // RLIMIT_SIGPENDING
    return false;
  }
  sigaddset(&static_cast<ucontext_t*>(context)->uc_sigmask, number);
  t_state.held_signals.fetch_or(bit_of(number));
  t_state.after.store_relaxed(1);  // relaxed: this thread's own
  return true;
}

// A bad pointer of the program's, which the kernel would answer with EFAULT.
bool resume_copy(const siginfo_t* info, void* context) {
  greg_t& pc = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP];
  const std::uintptr_t there = info->si_code > 0 ? user_copy_continuation(static_cast<std::uintptr_t>(pc)) : 0;
  if (there != 0) pc = static_cast<greg_t>(there);
  return there != 0;
}

void on_signal(int number, siginfo_t* info, void* context) {
  if (is_fault(number)) {
    if (resume_copy(info, context)) return;
  } else if ((sections_here() != 0 || t_state.undisturbed.load_relaxed() != 0) && put_off(number, info, context)) {  // relaxed: own
    return;
  }
  const std::uint64_t word = g_handlers[number].load_acquire();  // SYNC: handlers
  t_state.handlers.store_relaxed(t_state.handlers.load_relaxed() + 1);  // relaxed: this thread's own
  if (word & kBreaks) t_state.breaks.store_relaxed(t_state.breaks.load_relaxed() + 1);  // relaxed: as above
  reinterpret_cast<Handler>(word & kAddress)(number, info, context);  // one that takes the number alone ignores the rest
}

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
  if (!concerns_us(number) || process().settings.disabled) return real().sigaction(number, action, old);
  std::uint64_t before = g_handlers[number].load_acquire();  // SYNC: handlers
  struct sigaction ours = {};
  // A vfork child has our memory, but handlers of its own.
  if (action != nullptr && is_function(action->sa_handler) && !is_ours(*action) && !is_fault_handler(*action) && !in_foreign_child()) {
    ours = *action;
    ours.sa_sigaction = on_signal;
    ours.sa_flags |= SA_SIGINFO;
    before = g_handlers[number].exchange(word_of(*action));
    action = &ours;
  }
  const int result = real().sigaction(number, action, old);
  if (result != 0 || old == nullptr) return result;
  const bool shows_ours = is_ours(*old);
  if ((shows_ours || is_spent(*old)) && !(before & kTakesInfo)) old->sa_flags &= ~SA_SIGINFO;
  if (shows_ours) old->sa_handler = address_in(before);
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

bool breaking_handler_past_libc() {
  std::uint64_t blocked = 0;
  change_mask(SIG_BLOCK, 0, &blocked);
  for (int number = 1; number < NSIG; ++number) {
    struct sigaction action = {};
    if (!concerns_us(number) || is_fault(number) || (blocked & bit_of(number)) || real().sigaction(number, nullptr, &action) != 0) continue;
    if (is_function(action.sa_handler) && !is_ours(action) && !(action.sa_flags & SA_RESTART)) return true;
  }
  return false;
}

void after_sections() {
  if (t_state.deferred != nullptr) {
    const Undisturbed alone;  // or the rest would be left undone by a handler that jumps
    const ErrnoSaver keep;
    run_deferred();
  }
  if (t_state.undisturbed.load_relaxed() != 0) return;  // relaxed: this thread's own. Later
  std::uint64_t mask = 0;
  change_mask(SIG_BLOCK, ~std::uint64_t{0}, &mask);  // or one that jumps in between would leave others blocked
  const std::uint64_t held = t_state.held_signals.exchange(0);
  t_state.after.store_relaxed(0);  // relaxed: this thread's own
  change_mask(SIG_SETMASK, mask & ~held);  // here they come, one after the other
}

}  // namespace mpklink
