// SPDX-License-Identifier: MIT
// The lock of process-private tables and of a stream's two directions, and what each thread knows of the locks it holds.
// Inline: the data path takes one in every call.
#pragma once
#include <cstdint>

#include "shm/atomic.h"

namespace mpklink {

struct Stream;

// __thread, not thread_local: no wrapper that looks for an initialiser. Initial-exec, or the first touch in a signal handler could allocate.
struct ThreadState {
  std::uint32_t id = 0;           // this thread's number in the kernel; 0: not asked for yet
  Atomic<std::uint32_t> locks;    // SpinLocks it holds; a signal handler of this thread reads it
  Stream* deferred = nullptr;     // what its handlers have put off (stream.cc)
};
extern __thread ThreadState t_state __attribute__((tls_model("initial-exec")));

std::uint32_t ask_thread_id();
// Cached, renewed in the child of a fork.
inline std::uint32_t thread_id() {
  const std::uint32_t id = t_state.id;
  return __builtin_expect(id != 0, 1) ? id : ask_thread_id();
}

// How many SpinLocks this thread holds. In a signal handler: not 0 means that it interrupted the library, and that taking
// a lock may wait for ever for the very thread it runs on. Hooks that POSIX calls async-signal-safe then put off what needs one.
inline std::uint32_t locks_held_here() { return t_state.locks.load_relaxed(); }  // relaxed: this thread's own
// Called by the unlock that leaves the thread without locks, when handlers have put something off: does it.
void run_deferred();

// A short lock. No program code and no blocking call runs under it.
class SpinLock {
 public:
  void lock() {
    if (__builtin_expect(!try_lock(), 0)) wait_and_lock();
  }
  bool try_lock() {
    Atomic<std::uint32_t>& held = t_state.locks;
    std::uint32_t expected = 0;
    // Counted first: a handler between the two statements must not think that nothing is held. relaxed: this thread's own
    held.store_relaxed(held.load_relaxed() + 1);
    if (owner_.compare_exchange(expected, thread_id())) return true;
    held.store_relaxed(held.load_relaxed() - 1);  // relaxed: this thread's own
    return false;
  }
  void unlock() {
    owner_.store_release(0);  // SYNC: spin lock
    const std::uint32_t held = t_state.locks.load_relaxed() - 1;  // relaxed: this thread's own
    t_state.locks.store_relaxed(held);
    if (__builtin_expect(held == 0 && t_state.deferred != nullptr, 0)) run_deferred();
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
