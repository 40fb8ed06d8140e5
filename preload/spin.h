// SPDX-License-Identifier: MIT
// How long to look at shared memory before going to sleep in the kernel. Pure.
//
// A wait that ends within what a sleep and a wake-up cost (kWorthNs, measured) is cheaper spun; a longer one costs more CPU than it gives
// time. So each waiter learns how long its short waits are, and spins a little longer than that. After waits that were too long it leaves
// out none, then one, then three, up to kSkipMax, and then looks for longer (kSpinMaxNs): a peer that is idle, or slow, costs next to
// nothing, and two that had put each other to sleep (each sees the other's wake-up, not how fast it could be) find back, as whoever is met
// on such a try gets another at once. Never when the peer last ran on this very CPU: it cannot run while we spin. (Nor sched_yield() then,
// half as dear as a sleep while nobody else wants the CPU, and a hundred times as dear when somebody does: tests/bench/sleeps.cc.)
#pragma once
#include <cstdint>

#include "preload/settings.h"
#include "shm/atomic.h"

namespace mpklink {

constexpr std::uint32_t kSpinMaxNs = kSpinMaxUs * 1000;
constexpr std::uint32_t kWorthNs = 20000;
constexpr std::uint32_t kFirstSpinNs = 10000;  // before anything is learnt
constexpr std::uint32_t kMissesMax = 7;
constexpr std::uint32_t kSkipMax = (1u << (kMissesMax - 1)) - 1;

// Hints: a count lost between two threads is a wait spun or slept for nothing.
struct SpinHistory {
  Atomic<std::uint32_t> short_ns;  // exponential mean of the waits that were worth it; 0: none yet
  Atomic<std::uint32_t> misses;    // waits in a row that were not
  Atomic<std::uint32_t> skipped;   // waits since the last try

  void forget() {
    short_ns.store_relaxed(0);
    misses.store_relaxed(0);
    skipped.store_relaxed(0);
  }
};

// For the wait that begins now, in nanoseconds; 0: sleep at once. setting_us: MPKLINK_SPIN_US, -1: learnt.
inline std::uint32_t spin_budget_ns(int setting_us, SpinHistory* history) {
  if (setting_us >= 0) return static_cast<std::uint32_t>(setting_us) * 1000;
  const std::uint32_t misses = history->misses.load_relaxed();
  if (misses != 0) {
    const std::uint32_t skipped = history->skipped.load_relaxed();
    const bool due = skipped >= (1u << (misses - 1)) - 1;
    history->skipped.store_relaxed(due ? 0 : skipped + 1);
    return due ? kSpinMaxNs : 0;
  }
  const std::uint32_t mean = history->short_ns.load_relaxed();
  if (mean == 0) return kFirstSpinNs;
  const std::uint32_t budget = 2 * mean + 4000;
  return budget < kWorthNs ? budget : kWorthNs;
}

// How long the wait was; `spun`: it ended before we slept.
inline void learn_wait(SpinHistory* history, std::uint64_t waited_ns, bool spun) {
  const std::uint32_t misses = history->misses.load_relaxed();
  if (waited_ns > kWorthNs) {
    const bool found_back = spun && misses > 1;
    history->misses.store_relaxed(found_back ? 1 : spun ? kMissesMax : misses < kMissesMax ? misses + 1 : misses);
    return;
  }
  if (misses != 0) {
    history->misses.store_relaxed(0);
    history->skipped.store_relaxed(0);
  }
  const std::uint32_t mean = history->short_ns.load_relaxed();
  const auto sample = static_cast<std::uint32_t>(waited_ns);
  const std::uint32_t learnt = mean == 0 ? sample : (mean * 7 + sample) / 8;
  history->short_ns.store_relaxed(learnt == 0 ? 1 : learnt);
}

}  // namespace mpklink
