// SPDX-License-Identifier: MIT
#include "preload/transfer_lock.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include "preload/eligibility.h"
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

// Bytes of which the kernel knows and the dead had no time to count: those that follow would go twice, or be looked for in vain.
void count_for_the_dead(int fd, Stream* s, TransferLock::Side side) {
  KernelBytes kernel = {};
  const bool known = kernel_bytes(fd, &kernel);
  const Gate gate;
  StreamCore& core = *s->core;
  if (side == TransferLock::kReceive) {
    consumer_of(s).take_over();
    const std::uint64_t received = kernel.received - (kernel.fin ? 1 : 0);
    if (known && core.uncounted.load_acquire() == 0) core.receive.tcp_received.store_relaxed(received);  // relaxed: as the next
    return;
  }
  const auto path = static_cast<Path>(core.send.path.load_relaxed());  // relaxed: both locks of the direction are held
  const std::uint64_t missing = kernel.sent - core.send.tcp_sent.load_relaxed();
  if (!known || missing == 0 || (path != Path::kDraining && path != Path::kReturning)) return;
  const std::uint64_t tail = core.producer.tail.load_relaxed();
  if (missing > (path == Path::kReturning ? tail - core.send.return_at.load_relaxed() : core.send.tcp_left.load_relaxed())) return;
  if (path == Path::kReturning) gave_back(&core.send, &outgoing(s).producer, missing, tail);
  tcp_sent(&core.send, missing);
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

// False: the other process has it. From one that was killed inside the lock is taken over.
bool TransferLock::lock_processes(int fd, Stream* s, Side side, unsigned tries) {
  Atomic<std::uint32_t>* const owner = side == kSend ? &s->core->send_owner : &s->core->receive_owner;
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
  {
    const Gate gate;
    if (!owner->compare_exchange(seen, me)) return false;
  }
  count_for_the_dead(fd, s, side);
  return shared_owner_ = owner, true;
}

void TransferLock::unlock_processes() {
  const Gate gate;
  shared_owner_->store_release(0);  // SYNC: process lock
}

}  // namespace mpklink
