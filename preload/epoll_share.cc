// SPDX-License-Identifier: MIT
#include "preload/epoll_share.h"

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include "preload/epoll_tag.h"
#include "preload/fd_table.h"
#include "preload/pollers.h"
#include "preload/revoke.h"
#include "shm/raw_syscall.h"

namespace mpklink {
namespace {

constexpr std::uint32_t kSharedSetsMax = 8192;
constexpr std::uint64_t kPatienceNs = 50000000;  // with a process that sleeps in the instance and does not wake up, or died in between
constexpr long kNapNs = 200000;

SharedSet* g_shared;  // mapped before the first set is made, and so before any fork that has one

template <class Condition>
void nap_while(Condition condition) {
  const std::uint64_t start = now_ns();
  while (condition() && now_ns() - start < kPatienceNs) {
    const timespec nap = {0, kNapNs};
    raw_syscall(SYS_nanosleep, reinterpret_cast<long>(&nap), 0);  // not by way of libc: no cancellation point
  }
}

// Whoever sleeps in the instance returns from the kernel until all know that they are not alone. Level-triggered, so that none can take
// it from another.
void wake_others(EpollSet* set) {
  SharedSet* shared = set->shared;
  const auto unaware = [&] { return shared->seen.load_acquire() < shared->waiters.load_acquire() && shared->sleepers.load_acquire() != 0; };
  if (!unaware()) return;
  const ErrnoSaver keep;
  const int fd = hide_fd(static_cast<int>(raw_syscall(SYS_eventfd2, 1, EFD_CLOEXEC | EFD_NONBLOCK)));
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.u64 = kBellTag | tag_prefix();
  if (fd >= 0 && real().epoll_ctl(set->epfd, EPOLL_CTL_ADD, fd, &event) == 0) {
    nap_while(unaware);
    real().epoll_ctl(set->epfd, EPOLL_CTL_DEL, fd, nullptr);
  }
  close_hidden(fd);
}

// Streams that this process had registered, or that it has inherited the registration of, go back to TCP; which gives the program's
// registration back when it has come there. Until then they are looked at by time, as others may be told what our registrations say.
void leave_streams(EpollSet* set) {
  const bool shared = contested(set->shared);
  for (std::uint32_t i = 0; i < member_count(); ++i) {
    EpollMember* m = member_at(i);
    Stream* s = nullptr;
    if (m->set == set && m->managed) s = m->stream;
    if (s == nullptr || (!shared && ours(s))) continue;
    {
      const LockGuard guard(set->lock);
      if (m->set != set || !m->managed || m->stream != s) continue;
      look_by_time(set, m);
    }
    const int fd = fd_of(s);
    if (fd >= 0) leave_softly(fd, s);
  }
}

bool has_registrations(const EpollSet* set) {
  for (std::uint32_t i = 0; i < member_count(); ++i) {
    const EpollMember* m = member_at(i);
    if (m->set == set && m->managed && m->inner == nullptr && !m->copy) return true;
  }
  return false;
}

void notice(EpollSet* set, bool came_second) {
  SharedSet* shared = set->shared;
  shared->seen.fetch_add(1);                                              // SYNC: givers
  nap_while([shared] { return shared->givers.load_acquire() != 0; });     // SYNC: givers
  if (came_second) wake_others(set);
}

// The copies have done their service when each process that waited has put its own registrations into the kernel.
void settle(EpollSet* set) {
  SharedSet* shared = set->shared;
  {
    const LockGuard guard(set->lock);
    if (!has_registrations(set) && set->given.exchange(1) == 0) shared->given.fetch_add(1);  // SYNC: given
  }
  if (shared->given.load_acquire() < shared->waiters.load_acquire()) return;  // SYNC: given
  drop_copies(set);
}

}  // namespace

bool map_shared_sets() {
  void* at = ::mmap(nullptr, sizeof(SharedSet) * kSharedSetsMax, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return false;
  g_shared = static_cast<SharedSet*>(at);
  tag_prefix();  // all processes know each other's tags
  return true;
}

SharedSet* take_shared_set() {
  for (std::uint32_t i = 0; g_shared != nullptr && i < kSharedSetsMax; ++i) {
    SharedSet* shared = &g_shared[i];
    std::uint32_t free = 0;
    if (shared->refs.load_relaxed() != 0 || !shared->refs.compare_exchange(free, 1)) continue;  // relaxed: a look
    shared->waiters.store_relaxed(0);
    shared->sleepers.store_relaxed(0);
    shared->seen.store_relaxed(0);
    shared->givers.store_relaxed(0);
    shared->given.store_relaxed(0);
    return shared;
  }
  return nullptr;
}

void hold_shared_set(SharedSet* shared) {
  if (shared != nullptr) shared->refs.fetch_add(1);
}

void drop_shared_set(SharedSet* shared) {
  if (shared != nullptr) shared->refs.fetch_add(~0u);
}

bool begin_give(SharedSet* shared) {
  if (shared == nullptr) return true;
  shared->givers.fetch_add(1);                                                                         // SYNC: givers
  if (!contested(shared) || shared->seen.load_acquire() < shared->waiters.load_acquire()) return true;  // SYNC: givers
  end_give(shared);
  return false;
}

void end_give(SharedSet* shared) {
  if (shared != nullptr) shared->givers.fetch_add(~0u);
}

void enter_set_slowly(EpollSet* set) {
  SharedSet* shared = set->shared;
  bool came_second = false;
  if (set->entered.load_relaxed() == 0 && set->entered.exchange(1) == 0) {  // relaxed: a look
    if (shared != nullptr) came_second = shared->waiters.fetch_add(1) != 0;  // SYNC: contested
    if (!contested(shared)) leave_streams(set);                              // what a parent had that never waited here itself
  }
  if (!contested(shared)) return;
  if (set->noticed.exchange(1) == 0) notice(set, came_second);
  leave_streams(set);
  settle(set);
}

}  // namespace mpklink
