// SPDX-License-Identifier: MIT
#include "shm/guard.h"

#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>

#include <cstdlib>

#include "shm/pkey.h"
#include "shm/raw_syscall.h"

namespace mpklink {

const char* guard_mode_name(GuardMode mode) {
  switch (mode) {
    case GuardMode::kPkey: return "pkey";
    case GuardMode::kMprotect: return "mprotect";
    case GuardMode::kOff: break;
  }
  return "off";
}

// With signals blocked: a handler that sends would wait for the lock of the very thread it interrupted. The slow mode can
// afford the two calls.
void Guard::lock_pages() {
  const std::uint64_t all = ~std::uint64_t{0};
  std::uint64_t old = 0;
  raw_syscall(SYS_rt_sigprocmask, SIG_SETMASK, reinterpret_cast<long>(&all), reinterpret_cast<long>(&old), sizeof old);
  std::uint32_t expected = 0;
  while (!pages_lock_.compare_exchange(expected, 1)) {
    expected = 0;
    sched_yield();
  }
  signals_ = old;
}

void Guard::unlock_pages() {
  const std::uint64_t old = signals_;
  pages_lock_.store_release(0);  // SYNC: pages_lock_
  raw_syscall(SYS_rt_sigprocmask, SIG_SETMASK, reinterpret_cast<long>(&old), 0, sizeof old);
}

unsigned char* Guard::map(const SystemCalls& sys, std::size_t private_bytes, int fd, std::size_t bytes) {
  const GuardMode mode = this->mode();
  if (mode == GuardMode::kMprotect) lock_pages();
  unsigned char* at = range_.map(sys, private_bytes, fd, bytes);
  if (at != nullptr) {
    const int access = PROT_READ | PROT_WRITE;
    // In every mode here, and not at the first touch: a peer's memory may be such that it cannot be written (F_SEAL_FUTURE_WRITE).
    int failed = mode == GuardMode::kPkey ? tag_pages(at, private_bytes + bytes, pkey_) : sys.mprotect(at, private_bytes + bytes, access);
    if (failed == 0 && mode == GuardMode::kMprotect && pages_open_ == 0) failed = sys.mprotect(at, private_bytes + bytes, PROT_NONE);
    if (failed != 0) {
      range_.unmap(sys, at);
      at = nullptr;
    }
  }
  if (mode == GuardMode::kMprotect) unlock_pages();
  return at;
}

void Guard::unmap(const SystemCalls& sys, unsigned char* address) {
  const GuardMode mode = this->mode();
  if (mode == GuardMode::kMprotect) lock_pages();
  range_.unmap(sys, address);
  if (mode == GuardMode::kMprotect) unlock_pages();
}

GuardMode Guard::open(const SystemCalls& sys) {
  count_gate();
  const GuardMode mode = this->mode();
  if (mode == GuardMode::kPkey) {
    const std::uint32_t pkru = read_pkru();
    // Open already: a thread born inside a gate, or a kernel that lost PKRU at a signal's return. Closing heals it.
    if ((pkru & pkru_mask(pkey_)) != pkru_closed_bits(pkey_)) found_open_.fetch_add(1);
    write_pkru(pkru & ~pkru_mask(pkey_));
  } else if (mode == GuardMode::kMprotect) {
    open_pages(sys);
  }
  return mode;
}

void Guard::close(const SystemCalls& sys, GuardMode mode) {
  if (mode == GuardMode::kPkey) {
    write_pkru((read_pkru() & ~pkru_mask(pkey_)) | pkru_closed_bits(pkey_));
    // Read back: a jump to the instruction above with a register of the attacker's making must not go on (ERIM's idiom).
    if ((read_pkru() & pkru_mask(pkey_)) != pkru_closed_bits(pkey_)) std::abort();
  } else if (mode == GuardMode::kMprotect) {
    close_pages(sys);
  }
}

void Guard::open_pages(const SystemCalls& sys) {
  lock_pages();
  if (pages_open_++ == 0) range_.protect_all(sys, PROT_READ | PROT_WRITE);
  unlock_pages();
}

void Guard::close_pages(const SystemCalls& sys) {
  lock_pages();
  if (--pages_open_ == 0) range_.protect_all(sys, PROT_NONE);
  unlock_pages();
}

void Guard::count_gate() {
  // Thread control blocks are pages apart: their addresses spread threads over the stripes without a thread-local word.
  const auto thread = reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer());
  gates_[(thread >> 12) % kStripes].count.fetch_add(1);
}

std::uint64_t Guard::sum(const Stripe (&stripes)[kStripes]) {
  std::uint64_t total = 0;
  for (const Stripe& stripe : stripes) total += stripe.count.load_relaxed();  // relaxed: a statistic
  return total;
}

void Guard::reset_counters() {
  for (Stripe& stripe : gates_) stripe.count.store_relaxed(0);  // relaxed: called where no other thread runs
  found_open_.store_relaxed(0);
}

void Guard::forked_child() {
  if (mode() != GuardMode::kMprotect) return;
  pages_lock_.store_relaxed(0);  // relaxed: the child has one thread
  pages_open_ = 0;               // pages another thread had open stay open in the child until its next gate closes them
}

}  // namespace mpklink
