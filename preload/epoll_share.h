// SPDX-License-Identifier: MIT
// An epoll instance that several processes have since a fork: who waits in it. Its kernel half is everybody's, and the kernel tells an
// edge to one of the waiting processes, whichever it likes: a bell or a registration of ours would be told to one that knows nothing of
// it. So as soon as a second process waits, the instance is plain again for all of them: whoever has registrations of ours in it gives
// its streams back to TCP, and then the kernel the program's own registrations; nothing is upgraded in it any more. A child that does not
// wait in it (redis' BGSAVE) changes nothing.
//
// Invariant: a process that sleeps in the instance with a registration of ours in it has counted itself in `sleepers` before it looked at
// `waiters`; one that comes counts itself in `waiters` before it looks at `sleepers`: one of them sees the other (SYNC: contested).
// What a child has inherited of its parent's registrations are copies, of the time of the fork: it looks at their streams by time, and what
// the parent changes meanwhile it does not know until the streams are on TCP. It puts
// one into the kernel only while some process that has waited has not noticed it yet, and that one, when it notices, waits for the end of it
// and puts in what is true now (SYNC: givers). If all have noticed, the owners do, and the copies go when they all have.
#pragma once
#include "preload/epoll_set.h"
#include "shm/atomic.h"

namespace mpklink {

// In memory that a fork shares. Processes of one program only, and counts only: a wrong one costs acceleration.
struct SharedSet {
  Atomic<std::uint32_t> refs;      // processes that have the instance; 0: free
  Atomic<std::uint32_t> waiters;   // that have ever waited in it; 2 or more: contested
  Atomic<std::uint32_t> sleepers;  // threads in the kernel's wait
  Atomic<std::uint32_t> seen;      // waiters that know that it is contested
  Atomic<std::uint32_t> givers;    // copies that are just being put into the kernel
  Atomic<std::uint32_t> given;     // waiters that have no registration of their own left
};

bool map_shared_sets();
SharedSet* take_shared_set();  // null: none to be had; the set is treated as one process' alone
void hold_shared_set(SharedSet* shared);
void drop_shared_set(SharedSet* shared);

inline bool contested(const SharedSet* shared) { return shared != nullptr && shared->waiters.load_relaxed() > 1; }  // relaxed: behind the count

// Before each wait in the set, and when one has slept. No lock held.
void enter_set_slowly(EpollSet* set);
inline void enter_set(EpollSet* set) {
  if (set->entered.load_relaxed() == 0 || contested(set->shared)) enter_set_slowly(set);  // relaxed: its own thread's, or looked at again
}

// Around putting a copy into the kernel. False: whoever owns it will.
bool begin_give(SharedSet* shared);
void end_give(SharedSet* shared);

}  // namespace mpklink
