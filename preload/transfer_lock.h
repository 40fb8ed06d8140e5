// SPDX-License-Identifier: MIT
// The lock of one direction of a stream: against other threads, and, once the stream was inherited over a fork, against
// the other process. Never held over a call that can block.
#pragma once
#include <cstdint>

#include "preload/fd_table.h"
#include "preload/stream.h"
#include "shm/stop_point.h"

namespace mpklink {

class TransferLock {
 public:
  enum Side { kSend, kReceive };
  enum When { kInUse, kEnding };  // kEnding: the table has forgotten the stream, or may
  TransferLock(int fd, Stream* s, Side side, When when = kInUse) {
    SpinLock* const lock = side == kSend ? &s->send_lock : &s->receive_lock;
    if (__builtin_expect(lock->held_by_this_thread(), 0)) {
      reentered_ = true;
      count_reentry();
      return;
    }
    for (unsigned tries = 1;; ++tries) {
      lock->lock();
      if (__builtin_expect((when == kInUse && !fd_table().names(fd, s)) || !managed(state_of(s)), 0)) {
        lock->unlock();
        return;
      }
      lock_ = lock;
      STOP_POINT(side == kSend ? "send-locked" : "receive-locked");
      if (__builtin_expect(!s->forked.load_relaxed() || s->core == nullptr, 1)) return;  // relaxed: set with both locks held
      if (lock_processes(fd, s, side, tries)) return;
      // Not waited for with the lock in hand: the handlers of this thread may be what the other process waits for, or its end.
      lock_ = nullptr;
      lock->unlock();
      await_other_process();
    }
  }
  ~TransferLock() {
    if (lock_ == nullptr) return;
    if (__builtin_expect(shared_owner_ != nullptr, 0)) unlock_processes();
    lock_->unlock();
  }
  TransferLock(const TransferLock&) = delete;
  TransferLock& operator=(const TransferLock&) = delete;

  bool held() const { return lock_ != nullptr; }    // and `fd` still names the managed stream
  bool reentered() const { return reentered_; }     // a signal handler came into the middle of an operation of its thread

 private:
  static void count_reentry();
  bool lock_processes(int fd, Stream* s, Side side, unsigned tries);
  static void await_other_process();
  void unlock_processes();

  SpinLock* lock_ = nullptr;
  Atomic<std::uint32_t>* shared_owner_ = nullptr;
  bool reentered_ = false;
};

}  // namespace mpklink
