// SPDX-License-Identifier: MIT
#include "preload/fork.h"

#include "preload/epoll_set.h"
#include "preload/pair.h"
#include "preload/pollers.h"
#include "preload/process.h"
#include "preload/status.h"
#include "preload/stream.h"
#include "preload/tap.h"

namespace mpklink {
namespace {

// The locks of the tables, in the order in which they nest. Held over the fork, so that the child finds them consistent.
constexpr unsigned kLocks = 4;

SpinLock& table_lock(unsigned i) {
  switch (i) {
    case 0: return pairs_lock();
    case 1: return epoll_sets_lock();
    case 2: return epoll_members_lock();
    default: return slab_lock();
  }
}

Atomic<std::uint32_t> g_forks;
unsigned g_locked;  // bits: which of them before_fork took; under the fork itself

}  // namespace

bool fork_under_way() { return g_forks.load_relaxed() != 0; }  // relaxed: behind the stream's locks, as before_fork's look is

void before_fork() {
  unsigned locked = 0;
  g_forks.fetch_add(1);
  streams_before_fork();
  for (unsigned i = 0; i < kLocks; ++i) {
    // A fork in a signal handler may find a lock in its own thread's hands.
    if (table_lock(i).held_by_this_thread()) continue;
    table_lock(i).lock();
    locked |= 1u << i;
  }
  g_locked = locked;
  pairs_before_fork();
}

void after_fork_in_parent() {
  g_forks.fetch_add(~std::uint32_t{0});
  const unsigned locked = g_locked;
  for (unsigned i = kLocks; i-- > 0;) {
    if (locked & (1u << i)) table_lock(i).unlock();
  }
}

namespace {

void put_child_in_order(bool prepared) {
  t_state.undisturbed.store_relaxed(1);  // relaxed: the only thread's own
  for (unsigned i = 0; i < kLocks; ++i) table_lock(i).reset();
  g_forks.store_relaxed(0);  // relaxed: one thread here
  forked_child();
  status_forked_child();
  tap_forked_child();
  epoll_sets_forked_child();
  pairs_forked_child();
  streams_forked_child(prepared);
  pollers_forked_child();
  t_state.undisturbed.store_relaxed(0);  // relaxed: the only thread's own, as is the next
  if (t_state.after.load_relaxed() != 0) after_sections();
}

}  // namespace

void after_fork_in_child() { put_child_in_order(true); }
void after_fork_in_child_unprepared() { put_child_in_order(false); }

}  // namespace mpklink
