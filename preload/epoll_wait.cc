// SPDX-License-Identifier: MIT
// Waiting on an epoll set: rings and kernel, neither starving the other, with one bell to sleep on.
#include <errno.h>
#include <pthread.h>
#include <x86intrin.h>

#include "preload/epoll_set.h"
#include "preload/epoll_tag.h"
#include "preload/on_unwind.h"
#include "preload/probes.h"
#include "preload/spin.h"
#include "preload/wait.h"
#include "shm/stop_point.h"

namespace mpklink {
namespace {

constexpr std::uint32_t kCallsBeforeKernel = 16;
constexpr std::uint64_t kCyclesBeforeKernel = 200000;  // about 100 microseconds at 2 GHz
constexpr std::uint64_t kCyclesBeforeQuiet = 100000000;   // about 50 milliseconds
constexpr int kOwnEventsRounds = 64;

int collect(EpollSet* set, epoll_event* events, int max) {
  if (max <= 0) return 0;
  const LockGuard guard(set->lock);
  set->calls_since_kernel = set->calls_since_kernel + 1;
  return collect_locked(set, events, max);
}

int kernel_wait(const EpollSet* set, epoll_event* events, int max, std::int64_t timeout_ns, const sigset_t* mask) {
  const RealCalls& r = real();
  if (timeout_ns == 0) return quiet().epoll_pwait(set->epfd, events, max, 0, mask);
  if (timeout_ns > 0 && timeout_ns % 1000000 != 0 && r.epoll_pwait2 != nullptr) {
    const timespec timeout = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    const int n = r.epoll_pwait2(set->epfd, events, max, &timeout, mask);
    if (n >= 0 || errno != ENOSYS) return n;
  }
  const std::int64_t ms = timeout_ns < 0 ? -1 : (timeout_ns + 999999) / 1000000;
  return r.epoll_pwait(set->epfd, events, max, ms > 0x7fffffff ? 0x7fffffff : static_cast<int>(ms), mask);
}

// Nothing comes of a full ring whose reader has died, nor of a set in this one: they are looked at by time, however busy others keep the set.
void look_at_quiet(EpollSet* set, bool now) {
  if (!set->wants_space && set->links.load_relaxed() == 0) return;  // relaxed: a hint
  const std::uint64_t tsc = __rdtsc();
  if (!now && tsc - set->quiet_look_tsc < kCyclesBeforeQuiet) return;
  set->quiet_look_tsc = tsc;
  const LockGuard guard(set->lock);
  set->wants_space = false;
  push_members_without_space(set);
  push_links(set);
}

// Asks the kernel without waiting. -1 with errno as epoll_wait(2).
int ask_kernel(EpollSet* set, epoll_event* events, int max, const sigset_t* mask) {
  int kept = 0;
  int n = 0;
  // A small array may have been filled by events of our own alone. Not asked again when something is kept: it would be told twice.
  for (int round = 0; round < kOwnEventsRounds; ++round) {
    n = kernel_wait(set, events, max, 0, mask);
    if (n > 0) kept = filter(set, events, n);
    if (n < max || kept > 0) break;
  }
  set->kernel_asked_tsc = __rdtsc();
  set->calls_since_kernel = 0;
  look_at_quiet(set, false);
  return n < 0 ? n : kept;
}

bool kernel_due(const EpollSet* set) {
  return set->kernel_has_more || set->calls_since_kernel >= kCallsBeforeKernel || __rdtsc() - set->kernel_asked_tsc > kCyclesBeforeKernel;
}

bool bits_waiting(EpollSet* set) {
  bool any = false;
  for_each_pair(set, [&](Pair* pair) {
    any = any || anything_ready(pair->board->side[pair->side].ready[set->poller]);
  });
  return any;
}

// Whether spinning may pay with any of the set's peers; publishes where we run. Gate open, set->lock held: it keeps the boards mapped.
bool spin_allowed(EpollSet* set) {
  bool allowed = false;
  for_each_pair(set, [&](Pair* pair) {
    publish_cpu(pair, pair->side);
    allowed = allowed || may_spin(pair, pair->side);
  });
  return allowed;
}

// Looks at the boards for `budget_ns`. True: something came. set->lock is not held over the whole time: a thread that
// wants to change the set gets in between two rounds.
bool spin(EpollSet* set, std::uint32_t budget_ns, std::uint64_t start_ns) {
  constexpr int kLooksPerRound = 32;
  bool allowed = false;
  for (;;) {
    {
      const LockGuard guard(set->lock);
      const Gate gate;
      if (!allowed && !spin_allowed(set)) return false;
      allowed = true;
      for (int i = 0; i < kLooksPerRound; ++i) {
        if (set->poller == kNoPoller) return false;
        if (bits_waiting(set)) return true;
        cpu_relax();
      }
    }
    if (set->ready_head != nullptr) return true;
    if (now_ns() - start_ns > budget_ns) return false;
  }
}

void arm_all(EpollSet* set) {
  const LockGuard guard(set->lock);
  const Gate gate;
  if (set->poller == kNoPoller) return;
  for_each_pair(set, [&](Pair* pair) { arm(&pair->board->side[pair->side].armed[set->poller]); });
  STOP_POINT("set-armed");
}

void disarm_all(EpollSet* set) {
  const LockGuard guard(set->lock);
  // Asked again under the lock: a sleeper counts itself before it takes the lock to arm (tests/model/sleep_test.cc, "last
  // asked outside the lock").
  if (set->poller == kNoPoller || set->sleepers.load_relaxed() != 0) return;
  const Gate gate;
  for_each_pair(set, [&](Pair* pair) { disarm(&pair->board->side[pair->side].armed[set->poller]); });
}

// One thread less asleep. The last one disarms; otherwise one bell has been used up and the others still sleep behind it.
void end_sleep(void* argument) {
  auto* set = static_cast<EpollSet*>(argument);
  const bool last = set->sleepers.fetch_add(~0u) == 1;
  if (set->nested.load_relaxed() != 0 || !last) {  // relaxed: set once
    arm_all(set);
  } else if (set->managed_members.load_relaxed() != 0) {  // relaxed: nothing to disarm for a set without streams
    disarm_all(set);
  }
}

bool any_tag(const epoll_event* events, int n) {
  for (int i = 0; i < n; ++i) {
    if (is_tag(events[i].data.u64)) return true;
  }
  return false;
}

// The kernel's wait, counted among the set's sleepers, also when the thread never comes back from it. A handler that has run since the program's
// call began interrupts it, but events come first.
int counted_wait(EpollSet* set, epoll_event* events, int max, std::int64_t timeout_ns, const sigset_t* mask, const HandlersSince& call,
                 Undisturbed* undisturbed) {
  int n = 0;
  {
    const OnUnwind owed(end_sleep, set);
    undisturbed->allow();
    const bool interrupted = timeout_ns != 0 && call.any();
    n = kernel_wait(set, events, max, interrupted ? 0 : timeout_ns, mask);
    if (n == 0 && interrupted) {
      errno = EINTR;
      n = -1;
    }
    undisturbed->again();
  }
  const ErrnoSaver keep;
  end_sleep(set);
  return n;
}

// Arms, looks again, sleeps. Returns as epoll_wait(2); 0 with *again: nothing for the program yet.
int sleep(EpollSet* set, epoll_event* events, int max, std::int64_t timeout_ns, const sigset_t* mask, const HandlersSince& call, bool* again) {
  *again = true;
  Undisturbed undisturbed;
  set->sleepers.fetch_add(1);  // SYNC: sleepers. Before the look for boards and at the ready list
  arm_all(set);
  const int early = collect(set, events, max);
  if (early > 0) {
    end_sleep(set);
    return early;
  }
  process().counters.sleeps.fetch_add(1);
  PROBE0(sleep);
  const std::int64_t cap = look_again_ns(set);
  const std::int64_t patience = cap >= 0 && (timeout_ns < 0 || timeout_ns > cap) ? cap : timeout_ns;
  const int n = counted_wait(set, events, max, patience, mask, call, &undisturbed);
  PROBE0(wake);
  set->kernel_asked_tsc = __rdtsc();
  set->calls_since_kernel = 0;
  if (n < 0) {
    *again = false;
    return n;
  }
  look_at_quiet(set, n == 0);
  const int kept = filter(set, events, n);
  const int told = kept + collect(set, events + kept, max - kept);
  set->rings_first = kept == max;
  set->kernel_has_more = kept > 0 && told == max;
  return told;
}

// More is ready than this call told, and other threads sleep in the set: the kernel wakes the next one, so do we.
void pass_on(EpollSet* set) {
  if (set->sleepers.load_relaxed() == 0 || set->ready_head == nullptr) return;  // relaxed: a new sleeper looks itself
  nudge(set);
}

}  // namespace

int epoll_wait_managed(EpollSet* set, epoll_event* events, int maxevents, std::int64_t timeout_ns, const sigset_t* mask) {
  if (maxevents <= 0) return kernel_wait(set, events, maxevents, 0, mask);  // EINVAL
  pthread_testcancel();  // the kernel's call is a cancellation point also when it need not wait
  if (set->inherited.load_relaxed() != 0) leave_inherited_streams(set);  // relaxed: set at a fork, with one thread
  const HandlersSince call;
  std::uint64_t start = 0;
  bool asked = false;
  for (;;) {
    const bool due = asked || timeout_ns == 0 || kernel_due(set);
    // Whichever filled the whole array last time goes second now: neither the kernel's descriptors nor the rings starve.
    int n = due && set->rings_first ? collect(set, events, maxevents) : 0;
    const bool rings_went_first = n > 0;
    if (due && n < maxevents) {
      const int of_kernel = ask_kernel(set, events + n, maxevents - n, mask);
      if (of_kernel < 0 && n == 0) return of_kernel;
      if (of_kernel > 0) n += of_kernel;
      set->kernel_has_more = of_kernel > 0 && n == maxevents;
      asked = true;
    }
    if (due) set->rings_first = n == maxevents && !rings_went_first;
    if (!rings_went_first) n += collect(set, events + n, maxevents - n);
    if (n > 0) {
      pass_on(set);
      return n;
    }
    if (timeout_ns == 0) return 0;
    const std::uint64_t now = now_ns();
    if (start == 0) start = now;
    if (timeout_ns > 0 && now - start >= static_cast<std::uint64_t>(timeout_ns)) return 0;

    std::uint32_t budget = spin_budget_ns(process().settings.spin_us, &set->spin);
    if (timeout_ns > 0 && budget > timeout_ns) budget = static_cast<std::uint32_t>(timeout_ns);
    const bool came = budget != 0 && spin(set, budget, now);
    const std::uint64_t spun = now_ns();
    if (came) {
      process().counters.spin_hits.fetch_add(1);
      learn_wait(&set->spin, spun - now, true);
      continue;
    }
    const std::int64_t left = timeout_ns < 0 ? -1 : timeout_ns - static_cast<std::int64_t>(spun - start);
    if (timeout_ns > 0 && left <= 0) {
      asked = true;
      timeout_ns = 0;  // one last look at both worlds
      continue;
    }
    bool again = false;
    n = sleep(set, events, maxevents, left, mask, call, &again);
    learn_wait(&set->spin, now_ns() - now, false);
    if (n != 0 || !again) {
      if (n > 0) pass_on(set);
      return n;
    }
    asked = false;
  }
}

int epoll_wait_kernel(EpollSet* set, epoll_event* events, int maxevents, std::int64_t timeout_ns, const sigset_t* mask) {
  const std::uint64_t start = timeout_ns > 0 ? now_ns() : 0;
  const HandlersSince call;
  Undisturbed undisturbed;
  set->sleepers.fetch_add(1);  // SYNC: sleepers
  if (set->managed_members.load_acquire() != 0) {
    end_sleep(set);
    undisturbed.allow();
    return epoll_wait_managed(set, events, maxevents, timeout_ns, mask);
  }
  const int n = counted_wait(set, events, maxevents, timeout_ns, mask, call, &undisturbed);
  // Nothing of ours in it: the usual case of a program whose peers run without the library.
  if (n <= 0 || !any_tag(events, n)) return n;
  // A stream of the set was upgraded while we slept, or a bell is still in it: a forked child's set is its parent's, bells and all.
  const int kept = filter(set, events, n);
  if (kept > 0) return kept;
  std::int64_t left = timeout_ns;
  if (timeout_ns > 0) {
    left = timeout_ns - static_cast<std::int64_t>(now_ns() - start);
    if (left < 0) left = 0;
  }
  undisturbed.allow();  // or this thread would hear of no signal while it sleeps there
  return epoll_wait_managed(set, events, maxevents, left, mask);
}

}  // namespace mpklink
