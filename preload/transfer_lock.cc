// SPDX-License-Identifier: MIT
#include "preload/transfer_lock.h"

#include <errno.h>
#include <sched.h>
#include <sys/syscall.h>

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

void TransferLock::count_reentry() { process().counters.reentered.fetch_add(1); }

void TransferLock::lock_processes(Atomic<std::uint32_t>* owner) {
  shared_owner_ = owner;
  lock_between_processes(owner);
}

void TransferLock::unlock_processes() {
  const Gate gate;
  shared_owner_->store_release(0);  // SYNC: process lock
}

}  // namespace mpklink
