// SPDX-License-Identifier: MIT
// Single-producer single-consumer byte ring over memory the caller gives, one per direction.
//
// Invariants. Positions are bytes since the upgrade: 64 bit, monotonic; position p lives at data[(p - base) & mask].
//   head <= tail <= head + capacity (modulo 2^63). Each end keeps its own index in private memory (ProducerState, ConsumerState) and only
//   publishes it; the other end's index is loaded once, checked against the invariant, then used. A lie makes `refresh`
//   return false and the stream fails; no value of head, tail or base moves an access out of data[0, capacity).
// Elastic: a ring that is emptied again and again starts over at data[0] (the producer moves `base` up to tail), so small
//   messages use its first page only, whatever its capacity, and memory is touched as bursts need it. base changes only
//   while the producer knows the ring empty (head == tail), so no live byte is ever looked up under two bases; it is stored
//   before the tail that makes it matter, and the consumer loads it after that tail.
// Frozen (kFrozenBit in the head word, set by either end at any time): head is final. The consumer publishes by
//   compare-exchange, so bytes that it copied out but could not publish were never taken; the producer gives
//   [head, tail) back over TCP (shm/handover.h).
// Sleeping: `publish` of either end is an exchange, hence a full fence: what is stored before it is visible to whoever
//   stores its wish to be woken (want_space, waiters, armed) and then looks at the index again (shm/ready.h).
#pragma once
#include <cstddef>
#include <cstdint>

#include "shm/layout.h"

namespace mpklink {

// Words private to the producing process (and its forked children). Atomic only because readiness checks of other
// threads look at them without the stream's lock.
struct ProducerState {
  Atomic<std::uint64_t> tail;
  Atomic<std::uint64_t> base;
};
struct ConsumerState {
  Atomic<std::uint64_t> head;
};

class RingProducer {
 public:
  // `data` has `capacity` bytes, a power of two of at least 8. Lines and state start zeroed.
  RingProducer(ProducerLine* mine, ConsumerLine* peer, ProducerState* state, unsigned char* data, std::uint64_t capacity)
      : mine_(mine), peer_(peer), state_(state), data_(data), capacity_(capacity) {}

  // Loads the consumer's index. False: it is impossible.
  [[nodiscard]] bool refresh();
  bool frozen() const { return frozen_; }  // as of refresh
  // Where the unread bytes begin.
  std::uint64_t head() const { return tail_ - used_; }
  // Copies what was published from `position` on, for its way back over TCP. Returns the bytes copied.
  std::size_t read_back(std::uint64_t position, void* to, std::size_t n) const;
  std::uint64_t used() const { return used_; }
  std::uint64_t space() const { return capacity_ - used_; }
  // Copies up to space() bytes behind what was written since the last publish. Returns the bytes copied; fewer than there is
  // space for: `from` is bad (shm/user_copy.h). Send lock held.
  std::size_t write(const void* from, std::size_t n);
  void publish();
  // The ring is full and the producer wants to be told of space. Returns true when there is space now after all.
  [[nodiscard]] bool wish_space(bool* corrupt);
  // Whether a poll for writing should say yes: like TCP, not for every single free byte.
  bool writable() const { return space() * 2 >= capacity_; }

 private:
  void start_over();

  ProducerLine* mine_;
  ConsumerLine* peer_;
  ProducerState* state_;
  unsigned char* data_;
  std::uint64_t capacity_;
  std::uint64_t tail_ = 0, used_ = 0;
  bool frozen_ = false;
};

class RingConsumer {
 public:
  RingConsumer(ConsumerLine* mine, ProducerLine* peer, ConsumerState* state, const unsigned char* data,
               std::uint64_t capacity)
      : mine_(mine), peer_(peer), state_(state), data_(data), capacity_(capacity) {}

  // Loads the producer's tail, then its base. False: an impossible tail.
  [[nodiscard]] bool refresh();
  // After a refresh() without the receive lock: whether another thread has consumed since, or is about to note what it has published. What
  // looked like an impossible tail may be an honest one then. Both heads only grow, so when both are still what refresh() began with, they
  // were when it loaded the tail (SYNC: tail published).
  bool overtaken() const;
  std::uint64_t available() const { return available_; }
  std::uint64_t end() const { return head_ + available_; }  // where what is available ends
  // Copies up to `n` bytes starting `offset` bytes behind the head, without consuming. Fewer than there are: `to` is bad.
  std::size_t peek(std::uint64_t offset, void* to, std::size_t n) const;
  void consume(std::size_t n) { head_ += n, available_ -= n; }
  bool frozen() const { return (mine_->head.load_acquire() & kFrozenBit) != 0; }  // SYNC: frozen
  // False: the ring was frozen first, what was consumed since the last publish was not; *lied: the peer wrote our word.
  [[nodiscard]] bool publish(bool* lied);
  // The process that had the receive lock was killed, perhaps between publishing and noting what it published. Receive lock held.
  void take_over();
  // After publish: true when the producer wished to be woken and half of the ring is free; the wish is taken.
  [[nodiscard]] bool take_wish();

 private:
  ConsumerLine* mine_;
  ProducerLine* peer_;
  ConsumerState* state_;
  const unsigned char* data_;
  std::uint64_t capacity_;
  std::uint64_t head_ = 0, base_ = 0, available_ = 0;
};

}  // namespace mpklink
