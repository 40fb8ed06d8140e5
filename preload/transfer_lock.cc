// SPDX-License-Identifier: MIT
#include "preload/transfer_lock.h"

#include <errno.h>
#include <sched.h>
#include <sys/syscall.h>

#include "preload/fd_table.h"
#include "shm/raw_syscall.h"

namespace mpklink {
namespace {

constexpr unsigned kYieldsBeforeDoubt = 1000;

// The other process may have been killed inside: its half-done operation published nothing, so the lock can be taken over.
void lock_between_processes(Atomic<std::uint32_t>* owner) {
  const std::uint32_t me = thread_id();
  for (unsigned tries = 1;; ++tries) {
    std::uint32_t seen = 0;
    {
      const Gate gate;
      if (owner->compare_exchange(seen, me)) return;
    }
    sched_yield();
    if (tries % kYieldsBeforeDoubt != 0) continue;
    if (raw_syscall(SYS_kill, static_cast<long>(seen), 0) != -ESRCH) continue;
    const Gate gate;
    if (owner->compare_exchange(seen, me)) return;
  }
}

}  // namespace

TransferLock::TransferLock(int fd, Stream* s, Side side, When when) {
  SpinLock* lock = side == kSend ? &s->send_lock : &s->receive_lock;
  if (lock->held_by_this_thread()) {
    reentered_ = true;
    process().counters.reentered.fetch_add(1);
    return;
  }
  lock->lock();
  if ((when == kInUse && fd_table().stream(fd) != s) || !managed(state_of(s))) {
    lock->unlock();
    return;
  }
  lock_ = lock;
  if (!s->forked.load_relaxed() || s->core == nullptr) return;  // relaxed: set with both locks held
  shared_owner_ = side == kSend ? &s->core->send_owner : &s->core->receive_owner;
  lock_between_processes(shared_owner_);
}

TransferLock::~TransferLock() {
  if (lock_ == nullptr) return;
  if (shared_owner_ != nullptr) {
    const Gate gate;
    shared_owner_->store_release(0);  // SYNC: process lock
  }
  lock_->unlock();
}

}  // namespace mpklink
