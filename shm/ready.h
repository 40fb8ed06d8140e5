// SPDX-License-Identifier: MIT
// The sleep and wake protocol: who is ready, who sleeps, who must ring the bell. Pure words, no system calls.
//
// Sender (after RingProducer::publish or RingConsumer::publish, which are full fences):
//   S1 load waiters          S2 set the stream's bit          S3 load armed; set? exchange it with 0; got 1 -> ring
// Sleeper:
//   R1 register in waiters (exchange)   R2 armed = 1 (exchange)   R3 look at bits and rings again   R4 block in the kernel
// Invariant: whatever the interleaving, either R3 sees what S published or S3 sees R2. (S: publish, fence, load armed;
//   R: armed, fence, load what was published: one of the two loads comes second.)
// The bit: a sender that finds it already set may leave it. Its load is behind its own fence, so the receiver's clearing
//   exchange comes later in the total order and the receiver then reads a tail that includes this sender's bytes. It goes
//   on to the summary and the armed word all the same: whoever set the bit may have been killed before it got there.
// Several sleepers on one poller: one bell wakes one of them, and it must arm again and look again while others sleep.
#pragma once
#include <cstdint>

#include "shm/layout.h"

namespace mpklink {

// Sets the bit of `slot`, then of its word in the summary.
inline void mark_ready(ReadyBitmap* map, std::uint32_t slot) {
  const std::uint32_t word = slot / 64;
  const std::uint64_t bit = std::uint64_t{1} << (slot % 64);
  const std::uint64_t summary_bit = std::uint64_t{1} << (word % 64);
  Atomic<std::uint64_t>& leaf = map->leaf[word];
  Atomic<std::uint64_t>& summary = map->summary[word / 64];
  if (!(leaf.load_relaxed() & bit)) leaf.fetch_or(bit);  // relaxed: behind the caller's fence, see above
  // relaxed: behind a fence too. A set bit means the receiver has yet to clear it, and it clears the leaf after that.
  if (!(summary.load_relaxed() & summary_bit)) summary.fetch_or(summary_bit);
}

inline bool anything_ready(const ReadyBitmap& map) {
  std::uint64_t any = 0;
  for (const auto& word : map.summary) any |= word.load_relaxed();  // relaxed: a hint; `take_ready` orders
  return any != 0;
}

// Clears all bits and calls visit(slot) for each that was set. Cost: the words that have bits, not the streams there are.
template <class Visit>
void take_ready(ReadyBitmap* map, Visit visit) {
  for (std::uint32_t s = 0; s < kSummaryWords; ++s) {
    if (map->summary[s].load_relaxed() == 0) continue;  // relaxed: a missed bit has its sender ring or is seen at R3
    for (std::uint64_t words = map->summary[s].exchange(0); words != 0; words &= words - 1) {
      const std::uint32_t word = s * 64 + static_cast<std::uint32_t>(__builtin_ctzll(words));
      for (std::uint64_t bits = map->leaf[word].exchange(0); bits != 0; bits &= bits - 1) {
        visit(word * 64 + static_cast<std::uint32_t>(__builtin_ctzll(bits)));
      }
    }
  }
}

inline void arm(ArmedLine* line) { line->armed.exchange(1); }
inline void disarm(ArmedLine* line) { line->armed.store_relaxed(0); }  // relaxed: a late look costs one bell, no more

// The sender's look at a sleeper. True: ring its bell, exactly one sender gets it.
inline bool take_armed(ArmedLine* line) {
  return line->armed.load_relaxed() != 0 && line->armed.exchange(0) != 0;  // relaxed: behind the caller's fence
}

// The four 16-bit fields of a waiters word.
constexpr unsigned kWaitersMax = 4;
inline std::uint32_t waiter_at(std::uint64_t ids, unsigned i) { return static_cast<std::uint32_t>(ids >> (16 * i)) & 0xffff; }

// Only our side writes its word, and seldom: who finds it changed so often in between has a peer that writes it, too.
constexpr unsigned kWaitersTries = 1000;

// Adds `poller` unless it is there. False: all four fields are taken, or the peer meddles.
inline bool add_waiter(Atomic<std::uint64_t>* word, std::uint32_t poller) {
  std::uint64_t old = word->load_relaxed();  // relaxed: the compare-exchange orders
  for (unsigned tries = 0; tries < kWaitersTries; ++tries) {
    unsigned free = kWaitersMax;
    for (unsigned i = 0; i < kWaitersMax; ++i) {
      if (waiter_at(old, i) == poller + 1) return true;
      if (waiter_at(old, i) == 0) free = i;
    }
    if (free == kWaitersMax) return false;
    if (word->compare_exchange(old, old | (std::uint64_t{poller + 1} << (16 * free)))) return true;
  }
  return false;
}

inline void remove_waiter(Atomic<std::uint64_t>* word, std::uint32_t poller) {
  std::uint64_t old = word->load_relaxed();  // relaxed: the compare-exchange orders
  for (unsigned tries = 0; tries < kWaitersTries; ++tries) {
    std::uint64_t next = old;
    for (unsigned i = 0; i < kWaitersMax; ++i) {
      if (waiter_at(old, i) == poller + 1) next &= ~(std::uint64_t{0xffff} << (16 * i));
    }
    if (next == old || word->compare_exchange(old, next)) return;
  }
}

}  // namespace mpklink
