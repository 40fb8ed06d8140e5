// SPDX-License-Identifier: MIT
#include "shm/ring.h"

#include <cstring>

#include "shm/stop_point.h"
#include "shm/untrusted.h"
#include "shm/user_copy.h"

namespace mpklink {
namespace {

std::uint64_t min_u64(std::uint64_t a, std::uint64_t b) { return a < b ? a : b; }

}  // namespace

bool RingProducer::refresh() {
  tail_ = state_->tail.load_relaxed();  // relaxed: our own word, ordered by the stream's send lock
  const std::uint64_t tail = tail_;
  // SYNC: head published. The consumer's copies out of the ring happened before; its space may be overwritten.
  const Untrusted<std::uint64_t> word(peer_->head.load_acquire());  // SYNC: frozen
  std::uint64_t h = 0;
  if (!word.checked([&](std::uint64_t v) { return ((tail - v) & kPositionMask) <= capacity_; }, &h)) return false;
  used_ = (tail - h) & kPositionMask;
  frozen_ = (h & kFrozenBit) != 0;
  return true;
}

// The ring is empty as of `refresh`, and stays so until we publish: the position of data[0] may move.
void RingProducer::start_over() {
  // Near data[0] there is nothing to win: the first page is in the cache anyway.
  const std::uint64_t near = min_u64(kPage, capacity_) / 2;
  if (((tail_ - state_->base.load_relaxed()) & (capacity_ - 1)) < near) return;  // relaxed: our own word
  state_->base.store_relaxed(tail_);
  mine_->base.store_relaxed(tail_);  // relaxed: ordered before the tail that first uses it (SYNC: tail published)
}

std::size_t RingProducer::read_back(std::uint64_t position, void* to, std::size_t n) const {
  auto* bytes = static_cast<unsigned char*>(to);
  const std::size_t take = min_u64(n, tail_ - position);
  const std::size_t at = (position - state_->base.load_relaxed()) & (capacity_ - 1);  // relaxed: our own word
  const std::size_t first = min_u64(take, capacity_ - at);
  std::memcpy(bytes, data_ + at, first);
  std::memcpy(bytes + first, data_, take - first);
  return take;
}

std::size_t RingProducer::write(const void* from, std::size_t n) {
  if (used_ == 0) start_over();
  const auto* bytes = static_cast<const unsigned char*>(from);
  const std::size_t take = min_u64(n, space());
  const std::size_t at = (tail_ - state_->base.load_relaxed()) & (capacity_ - 1);  // relaxed: our own word
  const std::size_t first = min_u64(take, capacity_ - at);
  std::size_t bad = user_copy(data_ + at, bytes, first);
  if (bad != 0) {
    bad += take - first;
  } else if (take > first) {
    bad = user_copy(data_, bytes + first, take - first);
  }
  tail_ += take - bad;
  used_ += take - bad;
  return take - bad;
}

void RingProducer::publish() {
  STOP_POINT("ring-written");
  state_->tail.store_relaxed(tail_);  // relaxed: our own word
  STOP_POINT("tail-noted");
  // SYNC: tail published. Exchange, not store: the fence between this and the look at waiters and armed words.
  mine_->tail.exchange(tail_);
  STOP_POINT("tail-published");
}

bool RingProducer::wish_space(bool* corrupt) {
  // SYNC: wish. Exchange: the wish is visible before we look at head again; the consumer publishes head, then looks here.
  mine_->want_space.exchange(1);
  STOP_POINT("space-wished");
  *corrupt = !refresh();
  return !*corrupt && writable();
}

bool RingConsumer::refresh() {
  head_ = state_->head.load_relaxed();  // relaxed: our own word, ordered by the stream's receive lock
  const std::uint64_t head = head_;
  // SYNC: tail published. Bytes up to tail, and the base they were written under, are visible.
  const Untrusted<std::uint64_t> tail(peer_->tail.load_acquire());
  std::uint64_t t = 0;
  if (!tail.checked([&](std::uint64_t v) { return ((v - head) & kPositionMask) <= capacity_; }, &t)) return false;
  available_ = (t - head) & kPositionMask;
  base_ = peer_->base.load_relaxed();  // relaxed: ordered by the acquire above; any value is safe under the mask
  return true;
}

bool RingConsumer::overtaken() const {
  return state_->head.load_acquire() != head_ || (mine_->head.load_acquire() & kPositionMask) != (head_ & kPositionMask);
}

std::size_t RingConsumer::peek(std::uint64_t offset, void* to, std::size_t n) const {
  if (offset >= available_) return 0;
  auto* bytes = static_cast<unsigned char*>(to);
  const std::size_t take = min_u64(n, available_ - offset);
  const std::size_t at = (head_ + offset - base_) & (capacity_ - 1);
  const std::size_t first = min_u64(take, capacity_ - at);
  std::size_t bad = user_copy(bytes, data_ + at, first);
  if (bad != 0) {
    bad += take - first;
  } else if (take > first) {
    bad = user_copy(bytes + first, data_, take - first);
  }
  return take - bad;
}

bool RingConsumer::publish(bool* lied) {
  STOP_POINT("ring-read");
  head_ &= kPositionMask;
  const std::uint64_t before = state_->head.load_relaxed();  // relaxed: our own word
  std::uint64_t seen = before;
  // SYNC: head published. Compare-exchange: the fence between this and the look at the producer's wish, and the one
  // moment at which the bytes are taken or, when the ring was frozen first, are not.
  if (mine_->head.compare_exchange(seen, head_)) {
    STOP_POINT("head-published");
    state_->head.store_relaxed(head_);  // relaxed: our own word
    return true;
  }
  *lied = seen != (before | kFrozenBit);
  return false;
}

void RingConsumer::take_over() {
  const std::uint64_t own = state_->head.load_relaxed();                     // relaxed: our own word, as in refresh
  const std::uint64_t written = (peer_->tail.load_acquire() - own) & kPositionMask;  // SYNC: tail published
  const Untrusted<std::uint64_t> word(mine_->head.load_relaxed() & kPositionMask);   // relaxed: published by this side
  std::uint64_t published = 0;
  const auto possible = [&](std::uint64_t v) { return ((v - own) & kPositionMask) <= written && written <= capacity_; };
  if (word.checked(possible, &published)) state_->head.store_relaxed(published);
}

bool RingConsumer::take_wish() {
  if (peer_->want_space.load_relaxed() == 0) return false;  // relaxed: behind the fence in publish (SYNC: wish)
  return available_ * 2 <= capacity_ && peer_->want_space.exchange(0) != 0;
}

}  // namespace mpklink
