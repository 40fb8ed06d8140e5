// SPDX-License-Identifier: MIT
#include "preload/transfer_lock.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include "shm/raw_syscall.h"
#include "shm/stop_point.h"

namespace mpklink {
namespace {

constexpr unsigned kTriesBeforeDoubt = 1000;

// Killed, and perhaps not waited for yet.
bool is_dead(std::uint32_t thread) {
  if (raw_syscall(SYS_kill, static_cast<long>(thread), 0) == -ESRCH) return true;
  char path[32] = "";
  snprintf(path, sizeof path, "/proc/%u/stat", thread);
  const int file = quiet().open(path, O_RDONLY | O_CLOEXEC, 0);
  if (file < 0) return false;
  char text[64] = "";
  const ssize_t n = quiet().read(file, text, sizeof text - 1);  // "pid (name of 15 bytes at most) state …"
  quiet().close(file);
  const char* const name_end = n > 0 ? strrchr(text, ')') : nullptr;
  return name_end != nullptr && (name_end[1] == '\0' || name_end[2] == 'Z' || name_end[2] == 'X');
}

}  // namespace

void TransferLock::count_reentry() { process().counters.reentered.fetch_add(1); }

// Handlers may come here whatever call this is in the middle of: the other process may be stopped, and one of them be this one's end.
void TransferLock::await_other_process() {
  const std::uint32_t scopes = t_state.undisturbed.load_relaxed();  // relaxed: this thread's own, as are the next
  t_state.undisturbed.store_relaxed(0);
  if (sections_here() == 0 && t_state.after.load_relaxed() != 0) after_sections();
  sched_yield();
  t_state.undisturbed.store_relaxed(scopes);
}

// False: the other process has it. One that was killed inside has published nothing of its half-done operation, so the lock can be taken over.
bool TransferLock::lock_processes(Atomic<std::uint32_t>* owner, unsigned tries) {
  STOP_POINT("process-lock-wanted");
  const std::uint32_t me = thread_id();
  std::uint32_t seen = 0;
  {
    const Gate gate;
    if (owner->compare_exchange(seen, me)) {
      STOP_POINT("process-lock-held");
      return shared_owner_ = owner, true;
    }
  }
  if (tries % kTriesBeforeDoubt != 0) return false;
  const ErrnoSaver keep;
  if (!is_dead(seen)) return false;
  const Gate gate;
  if (!owner->compare_exchange(seen, me)) return false;
  return shared_owner_ = owner, true;
}

void TransferLock::unlock_processes() {
  const Gate gate;
  shared_owner_->store_release(0);  // SYNC: process lock
}

}  // namespace mpklink
