// SPDX-License-Identifier: MIT
// The lock of process-private tables and of a stream's two directions.
// Inline: the data path takes one in every call.
#pragma once
#include <cstdint>

#include "preload/section.h"

namespace mpklink {

// A short lock. No program code and no blocking call runs under it.
class SpinLock {
 public:
  void lock() {
    if (__builtin_expect(!try_lock(), 0)) wait_and_lock();
  }
  bool try_lock() {
    std::uint32_t expected = 0;
    enter_section();
    if (owner_.compare_exchange(expected, thread_id())) return true;
    leave_section();
    return false;
  }
  void unlock() {
    owner_.store_release(0);  // SYNC: spin lock
    leave_section();
  }
  bool held_by_this_thread() const { return owner_.load_relaxed() == thread_id(); }  // relaxed: own value or not
  void reset() { owner_.store_relaxed(0); }   // in the child of a fork

 private:
  void wait_and_lock();

  Atomic<std::uint32_t> owner_;
};

class LockGuard {
 public:
  explicit LockGuard(SpinLock& lock) : lock_(lock) { lock_.lock(); }
  ~LockGuard() { lock_.unlock(); }
  LockGuard(const LockGuard&) = delete;
  LockGuard& operator=(const LockGuard&) = delete;

 private:
  SpinLock& lock_;
};

}  // namespace mpklink
