// SPDX-License-Identifier: MIT
// RingConsumer and receive_path against a producer that writes its words, and ours, whenever it likes.
//
// Until the peer's first lie, an honest RingProducer fills the ring, and what comes out is a queue. From then on each call is held to
// what it saw: one look at the tail and the base, bytes from where these say and nowhere else, our own index moved by what was taken.
#include <deque>
#include <iterator>
#include <memory>
#include <vector>

#include "shm/handover.h"
#include "shm/ring.h"
#include "tests/fuzz/hostile.h"

namespace mpklink {
namespace {

using fuzz::Input;
using fuzz::Peer;

constexpr std::uint64_t kCapacities[] = {8, 16, 64, 256, 1024, 8192};
constexpr std::uint64_t kStarts[] = {0, 5, 4096, kPositionMask - 11};
constexpr std::uint64_t kStepsOfCall = 8;

class Consumer {
 public:
  Consumer(std::uint64_t capacity, std::uint64_t start) : capacity_(capacity), data_(new unsigned char[capacity]()) {
    lines_->producer.tail.store_relaxed(start);
    lines_->producer.base.store_relaxed(start);
    lines_->consumer.head.store_relaxed(start);
    producer_.tail.store_relaxed(start);
    producer_.base.store_relaxed(start);
    consumer_.head.store_relaxed(start);
    Direction& d = *lines_;
    tail_ = peer_.add(&d.producer.tail);
    base_ = peer_.add(&d.producer.base);
    switch_at_ = peer_.add(&d.producer.switch_at);
    want_space_ = peer_.add(&d.producer.want_space);
    head_ = peer_.add(&d.consumer.head);
    returned_ = peer_.add(&d.producer.returned);
    look_back_ = peer_.add(&d.producer.look_back);
    closed_ = peer_.add(&d.consumer.closed);
  }

  void run(const std::uint8_t* attack, std::size_t size, Input* input) {
    fuzz::set_peer(&peer_);
    for (int i = 0; i < 400 && !input->empty(); ++i) {
      const unsigned op = input->byte();
      const std::size_t n = input->below(static_cast<std::uint32_t>(capacity_ + 3));
      if ((op & 0x80) && (op & 7) >= 2) peer_.attack(attack, size);
      switch (op & 7) {
        case 0: send(n); break;
        case 1: peer_.change(input); break;
        case 2: case 3: receive(n, input->byte()); break;
        case 4: follow_path(n); break;
        case 5: receive(capacity_, 0); break;
        case 6: peek_only(n, input->byte()); break;
        case 7: freeze(&lines_->consumer); frozen_ = true; break;
      }
      peer_.rest();
    }
    fuzz::set_peer(nullptr);
  }

 private:
  bool honest() const { return peer_.changes() == 0; }
  RingConsumer ring() { return {&lines_->consumer, &lines_->producer, &consumer_, data_.get(), capacity_}; }

  // The honest end.
  void send(std::size_t n) {
    RingProducer p(&lines_->producer, &lines_->consumer, &producer_, data_.get(), capacity_);
    if (!honest() || !p.refresh() || p.frozen()) return;
    std::vector<unsigned char> bytes(n + 1);
    for (std::size_t i = 0; i < n; ++i) bytes[i] = next_++;
    const std::size_t written = p.write(bytes.data(), n);
    p.publish();
    queue_.insert(queue_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(written));
    if (p.used() == capacity_) lines_->producer.want_space.exchange(1);
  }

  bool refresh(RingConsumer* c) {
    const std::uint64_t own = consumer_.head.load_relaxed();
    peer_.forget();
    const bool ok = c->refresh();
    FUZZ_CHECK(peer_.loads(tail_), ==, 1u);
    FUZZ_CHECK(peer_.loads(base_), <=, 1u);
    const std::uint64_t there = (peer_.seen(tail_) - own) & kPositionMask;
    FUZZ_CHECK(ok, ==, there <= capacity_);
    if (!ok) {
      FUZZ_TRUE(!honest());
      return false;
    }
    FUZZ_CHECK(c->available(), ==, there);
    if (honest()) FUZZ_CHECK(c->available(), ==, queue_.size());
    base_seen_ = peer_.seen(base_);
    return true;
  }

  // What a look `offset` bytes behind the head gives, into memory of exactly n bytes.
  std::size_t peek(const RingConsumer& c, std::uint64_t position, std::uint64_t offset, std::size_t n) {
    const std::unique_ptr<unsigned char[]> to(new unsigned char[n]());
    peer_.forget();
    const std::size_t got = c.peek(offset, to.get(), n);
    FUZZ_CHECK(peer_.steps(), ==, 0u);
    const std::uint64_t there = offset < c.available() ? c.available() - offset : 0;
    FUZZ_CHECK(got, ==, n < there ? n : there);
    for (std::size_t i = 0; i < got; ++i) {
      FUZZ_CHECK(to[i], ==, data_[(position + offset + i - base_seen_) & (capacity_ - 1)]);
      if (honest()) FUZZ_CHECK(to[i], ==, queue_[offset + i]);
    }
    return got;
  }

  void receive(std::size_t n, std::size_t offset) {
    RingConsumer c = ring();
    const std::uint64_t before = consumer_.head.load_relaxed();
    if (!refresh(&c) || c.available() == 0) return;
    peek(c, before, offset, n);
    const std::size_t first = peek(c, before, 0, n / 2);
    c.consume(first);
    // The rest as a second part of the program's memory.
    const bool was_honest = honest();
    const std::size_t rest = n - n / 2 < c.available() ? n - n / 2 : c.available();
    c.consume(rest);
    const std::size_t taken = first + rest;
    peer_.forget();
    bool lied = false;
    const bool kept = c.publish(&lied);
    FUZZ_CHECK(peer_.steps(), <=, kStepsOfCall);
    FUZZ_CHECK(peer_.loads(head_), ==, 1u);
    FUZZ_CHECK(kept, ==, peer_.seen(head_) == before);
    const std::uint64_t after = (before + taken) & kPositionMask;
    FUZZ_CHECK(consumer_.head.load_relaxed(), ==, kept ? after : before);
    if (kept) {
      FUZZ_CHECK(peer_.written(head_), ==, after);
      if (was_honest) queue_.erase(queue_.begin(), queue_.begin() + static_cast<std::ptrdiff_t>(taken));
      take_wish(&c);
    } else {
      FUZZ_CHECK(lied, ==, peer_.seen(head_) != (before | kFrozenBit));
      if (honest()) FUZZ_TRUE(frozen_ && !lied);
    }
    only_ours_written();
  }

  void take_wish(RingConsumer* c) {
    peer_.forget();
    const bool wished = c->take_wish();
    FUZZ_CHECK(peer_.steps(), <=, kStepsOfCall);
    if (wished) FUZZ_TRUE(c->available() * 2 <= capacity_ && peer_.seen(want_space_) != 0);
    FUZZ_CHECK(peer_.stores(head_), ==, 0u);
  }

  void peek_only(std::size_t n, std::size_t offset) {
    RingConsumer c = ring();
    const std::uint64_t position = consumer_.head.load_relaxed();
    if (!refresh(&c)) return;
    peek(c, position, offset, n);
    peer_.rest();
    if (honest()) FUZZ_CHECK(c.frozen(), ==, frozen_);
    FUZZ_CHECK(peer_.stores(head_), ==, 0u);
    only_ours_written();
  }

  // Forward only, on one look at each word; `lied` exactly when the offset is in the past.
  void follow_path(std::size_t n) {
    const auto before = static_cast<Path>(receive_.path.load_relaxed());
    if (before == Path::kTcp) receive_.tcp_received.store_relaxed(receive_.tcp_received.load_relaxed() + n);
    const std::uint64_t received = receive_.tcp_received.load_relaxed();
    peer_.forget();
    bool lied = false;
    const Path path = receive_path(&receive_, *lines_, &lied);
    FUZZ_CHECK(peer_.steps(), <=, 2u);
    FUZZ_CHECK(static_cast<unsigned>(path), ==, receive_.path.load_relaxed());
    FUZZ_CHECK(static_cast<unsigned>(path), >=, static_cast<unsigned>(before));
    FUZZ_TRUE(path == Path::kTcp || path == Path::kRing || path == Path::kTcpAgain);
    if (before == Path::kTcpAgain) FUZZ_CHECK(peer_.steps(), ==, 0u);
    if (before == Path::kTcp) {
      const std::uint64_t at = peer_.seen(switch_at_);
      const bool frozen = (peer_.seen(head_) & kFrozenBit) != 0;
      FUZZ_CHECK(path == Path::kTcpAgain, ==, frozen);
      FUZZ_CHECK(path == Path::kRing, ==, !frozen && at == received + 1);
      FUZZ_CHECK(lied, ==, !frozen && at != 0 && at - 1 < received);
    } else {
      FUZZ_TRUE(!lied);
    }
    only_ours_written();
  }

  // The peer's line is the peer's, but for the wish.
  void only_ours_written() {
    for (const unsigned word : {tail_, base_, switch_at_, returned_, look_back_, closed_}) FUZZ_CHECK(peer_.stores(word), ==, 0u);
  }

  const std::uint64_t capacity_;
  const std::unique_ptr<unsigned char[]> data_;
  const std::unique_ptr<Direction> lines_{new Direction()};
  ProducerState producer_;
  ConsumerState consumer_;
  ReceiveState receive_;
  Peer peer_;
  unsigned tail_, base_, switch_at_, want_space_, head_, returned_, look_back_, closed_;
  std::uint64_t base_seen_ = 0;
  bool frozen_ = false;
  unsigned char next_ = 1;
  std::deque<unsigned char> queue_;
};

}  // namespace
}  // namespace mpklink

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace mpklink;
  fuzz::Input input(data, size);
  const std::uint64_t capacity = kCapacities[input.below(std::size(kCapacities))];
  const std::uint64_t start = kStarts[input.below(std::size(kStarts))];
  std::uint8_t attack[32];
  const std::size_t attack_size = input.bytes(attack, input.below(sizeof attack + 1));
  Consumer(capacity, start).run(attack, attack_size, &input);
  return 0;
}
