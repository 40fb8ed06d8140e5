// SPDX-License-Identifier: MIT
// The guard of the shared memory in this process, and the gate: the window in which this thread may touch it.
//
// A gate is opened around index loads, copies and index stores, once per intercepted call or epoll scan. It is never open
// while the program's code runs; gates do not nest (a signal handler that comes between opens one of its own: the kernel
// starts it with the key closed and puts the interrupted PKRU back afterwards).
#pragma once
#include <cstddef>
#include <cstdint>

#include "shm/guarded_range.h"
#include "shm/pkru.h"

namespace mpklink {

enum class GuardMode : std::uint32_t { kOff, kPkey, kMprotect };
const char* guard_mode_name(GuardMode mode);

class Guard {
 public:
  // Chosen once, before the first mapping. Threads may be inside a gate meanwhile (poll has one before the first upgrade): each gate
  // ends in the mode it began in.
  void set_mode(GuardMode mode, int pkey) {
    pkey_ = pkey;
    mode_.store_release(mode);  // SYNC: guard mode
  }
  GuardMode mode() const { return mode_.load_acquire(); }  // SYNC: guard mode
  GuardedRange& range() { return range_; }
  const GuardedRange& range() const { return range_; }

  // Maps into the range and puts the guard over it: when this returns, only a gate can touch the memory.
  unsigned char* map(const SystemCalls& sys, std::size_t private_bytes, int fd, std::size_t bytes);
  void unmap(const SystemCalls& sys, unsigned char* address);

  // Never inlined: each copy of the two is one more WRPKRU for an attacker to jump to.
  __attribute__((noinline)) GuardMode open(const SystemCalls& sys);  // the mode, for close
  __attribute__((noinline)) void close(const SystemCalls& sys, GuardMode mode);

  std::uint64_t gates() const { return sum(gates_); }
  std::uint64_t found_open() const { return found_open_.load_relaxed(); }  // relaxed: a statistic
  void reset_counters();
  // In the child of a fork only the forking thread is left, and it was outside of any gate.
  void forked_child();

 private:
  // Threads count on different lines: one shared line would cost more than the gate.
  struct alignas(64) Stripe {
    Atomic<std::uint64_t> count;
  };
  static constexpr std::size_t kStripes = 16;
  static std::uint64_t sum(const Stripe (&stripes)[kStripes]);
  void count_gate();
  void open_pages(const SystemCalls& sys);
  void close_pages(const SystemCalls& sys);
  void lock_pages();
  void unlock_pages();

  Atomic<GuardMode> mode_;
  int pkey_ = 0;  // 0: none; also what keeps the object all zeros at load, out of the file
  Atomic<std::uint32_t> pages_lock_;
  std::uint64_t signals_ = 0;      // mask of the thread that holds pages_lock_
  std::uint32_t pages_open_ = 0;  // gates open now, in mprotect mode; under pages_lock_
  Atomic<std::uint64_t> found_open_;
  Stripe gates_[kStripes];
  GuardedRange range_;
};

class OpenGate {
 public:
  OpenGate(Guard& guard, const SystemCalls& sys) : guard_(guard), sys_(sys), mode_(guard.open(sys)) {}
  ~OpenGate() { guard_.close(sys_, mode_); }
  OpenGate(const OpenGate&) = delete;
  OpenGate& operator=(const OpenGate&) = delete;

 private:
  Guard& guard_;
  const SystemCalls& sys_;
  const GuardMode mode_;
};

}  // namespace mpklink
