// SPDX-License-Identifier: MIT
#include "shm/ring.h"

#include <cstring>

#include "shm/untrusted.h"

namespace mpklink {
namespace {

constexpr std::uint64_t kFirstCapacity = kPage;  // one page until found full: an idle stream touches no more

std::uint64_t min_u64(std::uint64_t a, std::uint64_t b) { return a < b ? a : b; }

}  // namespace

void RingProducer::init(ProducerLine* line, ProducerState* state, std::uint64_t capacity) {
  const std::uint64_t mask = min_u64(kFirstCapacity, capacity) - 1;
  state->tail.store_relaxed(0);
  state->mask.store_relaxed(mask);
  state->want_grow.store_relaxed(0);
  line->mask.store_relaxed(mask);
  line->tail.store_release(0);
}

bool RingProducer::refresh() {
  tail_ = state_->tail.load_relaxed();  // relaxed: our own word, ordered by the stream's send lock
  mask_ = state_->mask.load_relaxed();
  const std::uint64_t tail = tail_;
  const std::uint64_t mask = mask_;
  // SYNC: head published. The consumer's copies out of the ring happened before; its space may be overwritten.
  const Untrusted<std::uint64_t> head(peer_->head.load_acquire());
  std::uint64_t h = 0;
  if (!head.checked([&](std::uint64_t v) { return tail - v <= mask + 1; }, &h)) return false;
  used_ = tail - h;
  if (used_ == 0 && state_->want_grow.load_relaxed() && mask + 1 < capacity_max_) {
    mask_ = min_u64((mask + 1) * 4, capacity_max_) - 1;
    state_->mask.store_relaxed(mask_);
    state_->want_grow.store_relaxed(0);
    mine_->mask.store_relaxed(mask_);  // relaxed: ordered before the tail that first uses it (SYNC: tail published)
  } else if (mask + 1 >= capacity_max_) {
    state_->want_grow.store_relaxed(0);
  }
  return true;
}

std::size_t RingProducer::write(const void* from, std::size_t n) {
  const auto* bytes = static_cast<const unsigned char*>(from);
  const std::size_t take = min_u64(n, space());
  const std::size_t at = tail_ & mask_;
  const std::size_t first = min_u64(take, capacity() - at);
  std::memcpy(data_ + at, bytes, first);
  std::memcpy(data_, bytes + first, take - first);
  advance(take);
  return take;
}

unsigned char* RingProducer::contiguous(std::size_t* n) {
  const std::size_t at = tail_ & mask_;
  *n = min_u64(space(), capacity() - at);
  return data_ + at;
}

void RingProducer::publish() {
  state_->tail.store_relaxed(tail_);
  // SYNC: tail published. Exchange, not store: the fence between this and the look at waiters and armed words.
  mine_->tail.exchange(tail_);
}

bool RingProducer::wish_space(bool* corrupt) {
  const bool grow = capacity() < capacity_max_;
  if (grow) state_->want_grow.store_relaxed(1);
  // SYNC: wish. Exchange: the wish is visible before we look at head again; the consumer publishes head, then looks here.
  mine_->want_space.exchange(grow ? kWishEmpty : kWishHalf);
  *corrupt = !refresh();
  return !*corrupt && writable();
}

bool RingConsumer::refresh() {
  head_ = state_->head.load_relaxed();  // relaxed: our own word, ordered by the stream's receive lock
  const std::uint64_t head = head_;
  // SYNC: tail published. Bytes up to tail, and the mask they were written under, are visible.
  const Untrusted<std::uint64_t> tail(peer_->tail.load_acquire());
  std::uint64_t t = 0;
  if (!tail.checked([&](std::uint64_t v) { return v - head <= capacity_max_; }, &t)) return false;
  available_ = t - head;
  if (available_ == 0) return true;  // the mask may be changing right now; it is not looked at
  const Untrusted<std::uint64_t> mask(peer_->mask.load_relaxed());  // relaxed: ordered by the acquire above
  return mask.checked(
      [&](std::uint64_t m) { return valid_ring_capacity(m + 1) && m < capacity_max_ && available_ <= m + 1; }, &mask_);
}

std::size_t RingConsumer::peek(std::uint64_t offset, void* to, std::size_t n) const {
  if (offset >= available_) return 0;
  auto* bytes = static_cast<unsigned char*>(to);
  const std::size_t take = min_u64(n, available_ - offset);
  const std::size_t at = (head_ + offset) & mask_;
  const std::size_t first = min_u64(take, mask_ + 1 - at);
  std::memcpy(bytes, data_ + at, first);
  std::memcpy(bytes + first, data_, take - first);
  return take;
}

void RingConsumer::publish() {
  state_->head.store_relaxed(head_);
  // SYNC: head published. Exchange, not store: the fence between this and the look at the producer's wish.
  mine_->head.exchange(head_);
}

bool RingConsumer::take_wish() {
  const std::uint32_t wish = peer_->want_space.load_relaxed();  // relaxed: behind the fence in publish (SYNC: wish)
  if (wish == kNoWish) return false;
  const bool fulfilled = wish == kWishEmpty ? available_ == 0 : available_ * 2 <= mask_ + 1;
  return fulfilled && peer_->want_space.exchange(kNoWish) != kNoWish;
}

}  // namespace mpklink
