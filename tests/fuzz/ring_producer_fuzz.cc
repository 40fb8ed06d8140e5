// SPDX-License-Identifier: MIT
// RingProducer and the sender's half of shm/handover.h against a consumer that writes its words, and ours, whenever it likes.
//
// Until the peer's first lie, an honest RingConsumer takes the bytes, and they are those that were written, in order; after a freeze
// what it has not taken comes back over TCP, every byte once. From then on each call is held to what it saw, and to the bytes it wrote.
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

class Producer {
 public:
  Producer(std::uint64_t capacity, std::uint64_t start)
      : capacity_(capacity), data_(new unsigned char[capacity]()), shadow_(capacity) {
    lines_->producer.tail.store_relaxed(start);
    lines_->producer.base.store_relaxed(start);
    lines_->consumer.head.store_relaxed(start);
    producer_.tail.store_relaxed(start);
    producer_.base.store_relaxed(start);
    consumer_.head.store_relaxed(start & kPositionMask);
    Direction& d = *lines_;
    head_ = peer_.add(&d.consumer.head);
    closed_ = peer_.add(&d.consumer.closed);
    tail_ = peer_.add(&d.producer.tail);
    base_ = peer_.add(&d.producer.base);
    switch_at_ = peer_.add(&d.producer.switch_at);
    want_space_ = peer_.add(&d.producer.want_space);
    returned_ = peer_.add(&d.producer.returned);
  }

  void run(const std::uint8_t* attack, std::size_t size, Input* input) {
    fuzz::set_peer(&peer_);
    for (int i = 0; i < 400 && !input->empty(); ++i) {
      const unsigned op = input->byte();
      const std::size_t n = input->below(static_cast<std::uint32_t>(capacity_ + 3));
      if ((op & 0x80) && (op & 7) >= 2) peer_.attack(attack, size);
      switch (op & 7) {
        case 0: receive(n); break;
        case 1: peer_.change(input); break;
        case 2: case 3: send(n); break;
        case 4: wish(); break;
        case 5: give_back(n); break;
        case 6: switch_over(n); break;
        case 7:
          if (op & 8) {
            stop_if_shut();
          } else {
            freeze(&lines_->consumer);
          }
          break;
      }
      peer_.rest();
    }
    fuzz::set_peer(nullptr);
  }

 private:
  bool honest() const { return peer_.changes() == 0; }
  Path path() const { return static_cast<Path>(send_.path.load_relaxed()); }
  RingProducer ring() { return {&lines_->producer, &lines_->consumer, &producer_, data_.get(), capacity_}; }

  // The honest end.
  void receive(std::size_t n) {
    if (!honest()) return;
    RingConsumer c(&lines_->consumer, &lines_->producer, &consumer_, data_.get(), capacity_);
    FUZZ_TRUE(c.refresh());
    FUZZ_CHECK(c.available(), ==, queue_.size());
    std::vector<unsigned char> to(n + 1);
    const std::size_t got = c.peek(0, to.data(), n);
    for (std::size_t i = 0; i < got; ++i) FUZZ_CHECK(to[i], ==, queue_[i]);
    c.consume(got);
    bool lied = false;
    if (c.publish(&lied)) queue_.erase(queue_.begin(), queue_.begin() + static_cast<std::ptrdiff_t>(got));
    FUZZ_TRUE(!lied);
  }

  bool refresh(RingProducer* p) {
    const std::uint64_t own = producer_.tail.load_relaxed();
    peer_.forget();
    const bool ok = p->refresh();
    FUZZ_CHECK(peer_.loads(head_), ==, 1u);
    const std::uint64_t used = (own - peer_.seen(head_)) & kPositionMask;
    FUZZ_CHECK(ok, ==, used <= capacity_);
    if (!ok) {
      FUZZ_TRUE(!honest());
      return false;
    }
    FUZZ_CHECK(p->used(), ==, used);
    FUZZ_CHECK(p->space(), ==, capacity_ - used);
    FUZZ_CHECK(p->head(), ==, own - used);
    FUZZ_CHECK(p->frozen(), ==, (peer_.seen(head_) & kFrozenBit) != 0);
    FUZZ_CHECK(p->writable(), ==, p->space() * 2 >= capacity_);
    if (honest()) FUZZ_CHECK(p->used(), ==, queue_.size());
    return true;
  }

  void send(std::size_t n) {
    RingProducer p = ring();
    if (path() != Path::kRing || !refresh(&p) || p.frozen()) return;
    const std::uint64_t own = producer_.tail.load_relaxed();
    const std::uint64_t space = p.space();
    const std::unique_ptr<unsigned char[]> bytes(new unsigned char[n]);
    for (std::size_t i = 0; i < n; ++i) bytes[i] = next_++;
    peer_.forget();
    const std::size_t written = p.write(bytes.get(), n);
    FUZZ_CHECK(peer_.steps(), <=, 1u);  // base
    FUZZ_CHECK(peer_.loads(head_) + peer_.loads(base_), ==, 0u);
    FUZZ_CHECK(written, ==, n < space ? n : space);
    const std::uint64_t base = producer_.base.load_relaxed();
    for (std::size_t i = 0; i < written; ++i) shadow_[(own + i - base) & (capacity_ - 1)] = bytes[i];
    FUZZ_CHECK(std::memcmp(shadow_.data(), data_.get(), capacity_), ==, 0);
    if (written == 0) return;
    const bool was_honest = honest();
    peer_.forget();
    p.publish();
    FUZZ_CHECK(peer_.steps(), <=, kStepsOfCall);
    FUZZ_CHECK(peer_.written(tail_), ==, own + written);
    FUZZ_CHECK(producer_.tail.load_relaxed(), ==, own + written);
    if (was_honest) queue_.insert(queue_.end(), bytes.get(), bytes.get() + written);
  }

  void wish() {
    RingProducer p = ring();
    if (!refresh(&p)) return;
    const std::uint64_t own = producer_.tail.load_relaxed();
    peer_.forget();
    bool corrupt = false;
    const bool room = p.wish_space(&corrupt);
    FUZZ_CHECK(peer_.steps(), <=, kStepsOfCall);
    FUZZ_CHECK(peer_.loads(head_), ==, 1u);
    const std::uint64_t used = (own - peer_.seen(head_)) & kPositionMask;
    FUZZ_CHECK(corrupt, ==, used > capacity_);
    FUZZ_CHECK(room, ==, !corrupt && (capacity_ - used) * 2 >= capacity_);
    FUZZ_CHECK(peer_.written(want_space_), ==, 1u);
  }

  // One chunk of the way back, as preload/give_back.cc does it.
  void give_back(std::size_t chunk) {
    if (chunk == 0) chunk = 1;
    RingProducer p = ring();
    if (!refresh(&p) || !p.frozen()) return;
    const std::uint64_t tail = producer_.tail.load_relaxed();
    const Path before = path();
    const std::uint64_t head = p.head();
    peer_.forget();
    const bool any = begin_return(&send_, &lines_->producer, head, p.used());
    const bool begins = before == Path::kRing && p.used() > 0;
    FUZZ_CHECK(any, ==, begins || before == Path::kReturning);
    FUZZ_CHECK(peer_.stores(returned_), ==, !any && before != Path::kTcpAgain ? 1u : 0u);
    if (!any) {
      FUZZ_CHECK(static_cast<unsigned>(path()), ==, static_cast<unsigned>(Path::kTcpAgain));
      return;
    }
    if (begins) {
      FUZZ_CHECK(send_.return_at.load_relaxed(), ==, head);
      given_back_ = 0;
      owed_ = p.used();
    }
    const std::uint64_t from = send_.return_at.load_relaxed();
    FUZZ_CHECK(tail - from, ==, owed_ - given_back_);
    const std::unique_ptr<unsigned char[]> to(new unsigned char[chunk]);
    const std::size_t n = p.read_back(from, to.get(), chunk);
    FUZZ_CHECK(n, >, 0u);
    FUZZ_CHECK(n, ==, chunk < tail - from ? chunk : tail - from);
    for (std::size_t i = 0; i < n; ++i) {
      FUZZ_CHECK(to[i], ==, shadow_[(from + i - producer_.base.load_relaxed()) & (capacity_ - 1)]);
      if (honest()) FUZZ_CHECK(to[i], ==, queue_[given_back_ + i]);
    }
    peer_.forget();
    gave_back(&send_, &lines_->producer, n, tail);
    given_back_ += n;
    FUZZ_CHECK(given_back_, <=, owed_);
    FUZZ_CHECK(path() == Path::kTcpAgain, ==, given_back_ == owed_);
    FUZZ_CHECK(peer_.stores(returned_), ==, given_back_ == owed_ ? 1u : 0u);
    if (path() == Path::kTcpAgain && honest()) FUZZ_CHECK(given_back_, ==, queue_.size());
  }

  // From TCP to the ring, whose first byte follows exactly the bytes announced.
  void switch_over(std::size_t n) {
    if (path() == Path::kTcp && n > 0) {
      const std::uint64_t sent = send_.tcp_sent.load_relaxed();
      peer_.forget();
      begin_switch(&send_, &lines_->producer, n);
      switch_after_ = sent + (n < kSwitchTail ? n : kSwitchTail);
      FUZZ_CHECK(peer_.written(switch_at_), ==, switch_after_ + 1);
      FUZZ_TRUE(path() == Path::kDraining);
    } else if (path() == Path::kDraining) {
      const std::uint64_t left = send_.tcp_left.load_relaxed();
      FUZZ_CHECK(left, >, 0u);
      tcp_sent(&send_, n == 0 ? 1 : n < left ? n : left);
      FUZZ_CHECK(path() == Path::kRing, ==, send_.tcp_sent.load_relaxed() == switch_after_);
    }
  }

  void stop_if_shut() {
    const Path before = path();
    peer_.forget();
    const bool stops = stop_at_shut_peer(&send_, *lines_);
    const bool on_ring = before == Path::kRing || before == Path::kReturning;
    FUZZ_CHECK(peer_.steps(), <=, 1u);
    FUZZ_CHECK(stops, ==, on_ring && peer_.loads(closed_) == 1 && static_cast<std::uint32_t>(peer_.seen(closed_)) == kShut);
    if (stops) FUZZ_TRUE(path() == Path::kTcpAgain);
  }

  const std::uint64_t capacity_;
  const std::unique_ptr<unsigned char[]> data_;
  std::vector<unsigned char> shadow_;  // what the ring must hold
  const std::unique_ptr<Direction> lines_{new Direction()};
  ProducerState producer_;
  ConsumerState consumer_;
  SendState send_;
  Peer peer_;
  unsigned head_, closed_, tail_, base_, switch_at_, want_space_, returned_;
  std::uint64_t given_back_ = 0, owed_ = 0, switch_after_ = 0;
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
  Producer(capacity, start).run(attack, attack_size, &input);
  return 0;
}
