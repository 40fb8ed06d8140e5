// SPDX-License-Identifier: MIT
// Waiting on an epoll set: rings and kernel, neither starving the other, with one bell to sleep on.
#include <errno.h>
#include <pthread.h>
#include <x86intrin.h>

#include "preload/epoll_set.h"
#include "preload/epoll_tag.h"
#include "preload/readiness.h"
#include "preload/spin.h"
#include "preload/wait.h"

namespace mpklink {
namespace {

constexpr std::uint32_t kCallsBeforeKernel = 16;
constexpr std::uint64_t kCyclesBeforeKernel = 200000;  // about 100 microseconds at 2 GHz
constexpr std::int64_t kSlowLookNs = 2000000;
constexpr std::int64_t kSpaceLookNs = 50000000;

// Bits of the peers' boards -> ready list. Gate open, set->lock held.
void take_bits(EpollSet* set) {
  for_each_pair(set, [&](Pair* pair) {
    ReadyBitmap& map = pair->board->side[pair->side].ready[set->poller];
    take_ready(&map, [&](std::uint32_t slot) {
      auto* s = reinterpret_cast<Stream*>(pair->stream_of_slot[slot].load_acquire());
      if (s == nullptr) return;
      const LockGuard guard(s->members_lock);
      for (EpollMember* m = s->members; m != nullptr; m = m->next_in_stream) {
        if (m->set == set && m->managed) push_ready(set, m);
      }
    });
  });
}

// Tells of one member and moves it where the kernel would: out of the list (edge, one-shot) or to its end (level).
bool tell(EpollSet* set, EpollMember* m, std::uint32_t events, epoll_event* out) {
  const std::uint32_t shown = events & (m->events | EPOLLERR | EPOLLHUP);
  if (shown == 0) return false;
  out->events = shown;
  out->data.u64 = m->data;
  if (m->events & EPOLLONESHOT) {
    m->disabled = true;
  } else if (!(m->events & EPOLLET)) {
    push_ready(set, m);
  }
  return true;
}

// Looks at the ready list. Members of which a direction is on TCP need the kernel's word and are looked at with the gate
// closed. set->lock held. Returns the events told.
int collect_locked(EpollSet* set, epoll_event* events, int max) {
  constexpr int kAskMax = 64;
  EpollMember* ask[kAskMax];
  Readiness known[kAskMax];
  int asked = 0;
  int n = 0;
  if (set->slow_members.load_relaxed() != 0) push_slow_members(set);  // relaxed: under set->lock
  {
    const Gate gate;
    if (set->poller != kNoPoller) {
      // Watched from outside: whoever does may never sleep in here, so it is armed after each look, before the bits are taken.
      if (set->nested.load_relaxed() != 0) {  // relaxed: set once
        for_each_pair(set, [&](Pair* pair) { arm(&pair->board->side[pair->side].armed[set->poller]); });
      }
      take_bits(set);
    }
    EpollMember* const last = set->ready_tail;
    for (EpollMember* m = set->ready_head; m != nullptr && n < max && asked < kAskMax;) {
      EpollMember* next = m->ready_next;
      if (m == last) next = nullptr;
      remove_ready(set, m);
      if (!m->disabled) {
        const Readiness r = ring_readiness(m->stream, m->events);
        if (r.give_back) defer(m->stream, kDeferredAnswer);  // behind set->lock
        const bool full = (m->events & EPOLLOUT) && !((r.events | r.ask_kernel) & EPOLLOUT);
        m->wants_space = full;
        if (full) set->wants_space = true;
        if (r.ask_kernel != 0) {
          known[asked] = r;
          ask[asked++] = m;
        } else if (tell(set, m, r.events, &events[n])) {
          ++n;
        }
      }
      m = next;
    }
  }
  for (int i = 0; i < asked; ++i) {
    EpollMember* m = ask[i];
    if (n == max) {
      push_ready(set, m);
      continue;
    }
    const std::uint32_t kernel = kernel_readiness(m->stream, m->fd, known[i].ask_kernel);
    if (tell(set, m, known[i].events | kernel, &events[n])) ++n;
  }
  return n;
}

int collect(EpollSet* set, epoll_event* events, int max) {
  if (max <= 0) return 0;
  const LockGuard guard(set->lock);
  set->calls_since_kernel = set->calls_since_kernel + 1;
  const int n = collect_locked(set, events, max);
  // A watched set must look readable from outside as long as something in it is.
  if (set->nested.load_relaxed() != 0 && set->ready_head != nullptr) nudge(set);  // relaxed: set once
  return n;
}

// Takes our own events out of what the kernel returned. Returns what is left for the program.
int filter(EpollSet* set, epoll_event* events, int n) {
  int kept = 0;
  const LockGuard guard(set->lock);
  for (int i = 0; i < n; ++i) {
    const std::uint64_t data = events[i].data.u64;
    if (!is_tag(data)) {
      events[kept++] = events[i];
      continue;
    }
    const std::uint64_t index = data & kTagIndexMask;
    if (index == kBellTag) continue;
    EpollMember* m = member_at(static_cast<std::uint32_t>(index));
    if (m == nullptr || m->set != set || !m->managed) continue;  // closed since, or the child's of a fork
    note_kernel_events(m->stream, events[i].events);
    push_ready(set, m);
  }
  return kept;
}

int kernel_wait(const EpollSet* set, epoll_event* events, int max, std::int64_t timeout_ns, const sigset_t* mask) {
  const RealCalls& r = real();
  if (timeout_ns > 0 && timeout_ns % 1000000 != 0 && r.epoll_pwait2 != nullptr) {
    const timespec timeout = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    const int n = r.epoll_pwait2(set->epfd, events, max, &timeout, mask);
    if (n >= 0 || errno != ENOSYS) return n;
  }
  const std::int64_t ms = timeout_ns < 0 ? -1 : (timeout_ns + 999999) / 1000000;
  return r.epoll_pwait(set->epfd, events, max, ms > 0x7fffffff ? 0x7fffffff : static_cast<int>(ms), mask);
}

// Asks the kernel without waiting. -1 with errno as epoll_wait(2).
int ask_kernel(EpollSet* set, epoll_event* events, int max, const sigset_t* mask) {
  const int n = kernel_wait(set, events, max, 0, mask);
  set->kernel_asked_tsc = __rdtsc();
  set->calls_since_kernel = 0;
  return n <= 0 ? n : filter(set, events, n);
}

bool kernel_due(const EpollSet* set) {
  return set->calls_since_kernel >= kCallsBeforeKernel || __rdtsc() - set->kernel_asked_tsc > kCyclesBeforeKernel;
}

bool bits_waiting(EpollSet* set) {
  bool any = false;
  for_each_pair(set, [&](Pair* pair) {
    any = any || anything_ready(pair->board->side[pair->side].ready[set->poller]);
  });
  return any;
}

// Whether spinning may pay with any of the set's peers; publishes where we run. set->lock keeps the boards mapped.
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
  for (;;) {
    {
      const LockGuard guard(set->lock);
      const Gate gate;
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

// The kernel's wait, counted among the set's sleepers, also when the thread is cancelled in it.
int counted_wait(EpollSet* set, epoll_event* events, int max, std::int64_t timeout_ns, const sigset_t* mask) {
  int n = 0;
  pthread_cleanup_push(end_sleep, set);
  n = kernel_wait(set, events, max, timeout_ns, mask);
  const ErrnoSaver keep;
  pthread_cleanup_pop(1);
  return n;
}

// Nothing came in time: looks at the full rings again.
void look_for_space(EpollSet* set) {
  const LockGuard guard(set->lock);
  set->wants_space = false;
  push_members_without_space(set);
}

// Arms, looks again, sleeps. Returns as epoll_wait(2); 0 with *again: nothing for the program yet.
int sleep(EpollSet* set, epoll_event* events, int max, std::int64_t timeout_ns, const sigset_t* mask, bool* again) {
  *again = true;
  set->sleepers.fetch_add(1);  // SYNC: sleepers. Before the look for boards and at the ready list
  arm_all(set);
  const int early = collect(set, events, max);
  if (early > 0) {
    end_sleep(set);
    return early;
  }
  process().counters.sleeps.fetch_add(1);
  const bool slow = set->slow_members.load_relaxed() != 0;  // relaxed: a change nudges
  // A full ring: the peer may have no descriptor left for our bell, or die after its FIN, of which the kernel says nothing.
  const std::int64_t cap = slow ? kSlowLookNs : set->wants_space ? kSpaceLookNs : -1;
  const std::int64_t patience = cap >= 0 && (timeout_ns < 0 || timeout_ns > cap) ? cap : timeout_ns;
  const int n = counted_wait(set, events, max, patience, mask);
  set->kernel_asked_tsc = __rdtsc();
  set->calls_since_kernel = 0;
  if (n < 0) {
    *again = false;
    return n;
  }
  if (n == 0 && set->wants_space) look_for_space(set);
  const int kept = filter(set, events, n);
  return kept + collect(set, events + kept, max - kept);
}

// More is ready than this call told, and other threads sleep in the set: the kernel wakes the next one, so do we.
void pass_on(EpollSet* set) {
  if (set->sleepers.load_relaxed() == 0 || set->ready_head == nullptr) return;  // relaxed: a new sleeper looks itself
  nudge(set);
}

}  // namespace

int epoll_wait_managed(EpollSet* set, epoll_event* events, int maxevents, std::int64_t timeout_ns,
                       const sigset_t* mask) {
  if (maxevents <= 0) return kernel_wait(set, events, maxevents, 0, mask);  // EINVAL
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

    std::uint32_t budget = spin_budget_ns(process().settings.spin_us, set->gap_ns.load_relaxed());  // relaxed: a mean
    if (timeout_ns > 0 && budget > timeout_ns) budget = static_cast<std::uint32_t>(timeout_ns);
    bool allowed = false;
    if (budget != 0) {
      const LockGuard guard(set->lock);
      const Gate gate;
      allowed = spin_allowed(set);
    }
    const bool came = allowed && spin(set, budget, now);
    const std::uint64_t spun = now_ns();
    if (came) {
      process().counters.spin_hits.fetch_add(1);
      set->gap_ns.store_relaxed(learn_gap_ns(set->gap_ns.load_relaxed(), spun - now));
      continue;
    }
    const std::int64_t left = timeout_ns < 0 ? -1 : timeout_ns - static_cast<std::int64_t>(spun - start);
    if (timeout_ns > 0 && left <= 0) {
      asked = true;
      timeout_ns = 0;  // one last look at both worlds
      continue;
    }
    bool again = false;
    n = sleep(set, events, maxevents, left, mask, &again);
    set->gap_ns.store_relaxed(learn_gap_ns(set->gap_ns.load_relaxed(), now_ns() - now));
    if (n != 0 || !again) {
      if (n > 0) pass_on(set);
      return n;
    }
    asked = false;
  }
}

int epoll_wait_kernel(EpollSet* set, epoll_event* events, int maxevents, std::int64_t timeout_ns, const sigset_t* mask) {
  const std::uint64_t start = timeout_ns > 0 ? now_ns() : 0;
  set->sleepers.fetch_add(1);  // SYNC: sleepers
  if (set->managed_members.load_acquire() != 0) {
    end_sleep(set);
    return epoll_wait_managed(set, events, maxevents, timeout_ns, mask);
  }
  const int n = counted_wait(set, events, maxevents, timeout_ns, mask);
  if (n <= 0 || set->poller == kNoPoller) return n;
  // A stream of the set was upgraded while we slept.
  const int kept = filter(set, events, n);
  if (kept > 0) return kept;
  std::int64_t left = timeout_ns;
  if (timeout_ns > 0) {
    left = timeout_ns - static_cast<std::int64_t>(now_ns() - start);
    if (left < 0) left = 0;
  }
  return epoll_wait_managed(set, events, maxevents, left, mask);
}

}  // namespace mpklink
