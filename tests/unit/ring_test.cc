// SPDX-License-Identifier: MIT
// The ring against a plain queue: every short sequence of operations at the smallest sizes, long random ones at all sizes.
#include "shm/ring.h"

#include "shm/handover.h"
#include "shm/user_copy.h"

#include <catch2/catch.hpp>
#include <cstdlib>
#include <deque>
#include <random>
#include <string>
#include <vector>

using namespace mpklink;

namespace {

// REQUIRE without the bookkeeping: these run hundreds of millions of times.
#define ENSURE(condition) \
  do {                    \
    if (!(condition)) FAIL(#condition); \
  } while (false)

// Both ends over one memory, with guard bytes behind the ring that must never change.
class Harness {
 public:
  explicit Harness(std::size_t capacity, std::uint64_t start = 0) : capacity_(capacity), data_(capacity + kGuard, 0xee) {
    producer_state_.tail.store_relaxed(start);
    consumer_state_.head.store_relaxed(start);
    direction_.producer.tail.store_relaxed(start);
    direction_.consumer.head.store_relaxed(start);
  }

  RingProducer producer() {
    return {&direction_.producer, &direction_.consumer, &producer_state_, data_.data(), capacity_};
  }
  RingConsumer consumer() {
    return {&direction_.consumer, &direction_.producer, &consumer_state_, data_.data(), capacity_};
  }

  void send(std::size_t n) {
    std::vector<unsigned char> bytes(n);
    for (auto& b : bytes) b = next_++;
    RingProducer p = producer();
    ENSURE(p.refresh());
    ENSURE(p.used() == queue_.size());
    const std::size_t taken = p.write(bytes.data(), n);
    ENSURE(taken == std::min(n, capacity_ - queue_.size()));
    p.publish();
    queue_.insert(queue_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(taken));
    next_ = static_cast<unsigned char>(next_ - (n - taken));
  }

  void receive(std::size_t n) {
    std::vector<unsigned char> bytes(n + 1, 0xcc);
    RingConsumer c = consumer();
    ENSURE(c.refresh());
    ENSURE(c.available() == queue_.size());
    const std::size_t expected = std::min(n, queue_.size());
    const std::size_t half = expected / 2;
    ENSURE(c.peek(half, bytes.data(), n - half) == expected - half);
    for (std::size_t i = half; i < expected; ++i) ENSURE(bytes[i - half] == queue_[i]);
    ENSURE(c.peek(0, bytes.data(), n) == expected);
    for (std::size_t i = 0; i < expected; ++i) ENSURE(bytes[i] == queue_[i]);
    ENSURE(bytes[n] == 0xcc);
    c.consume(expected);
    bool lied = false;
    ENSURE(c.publish(&lied));
    ENSURE(!lied);
    queue_.erase(queue_.begin(), queue_.begin() + static_cast<std::ptrdiff_t>(expected));
  }

  // Whoever froze the ring: all that was sent and not received comes back, in order, and nothing can be taken any more.
  void freeze_and_give_back() {
    freeze(&direction_.consumer);
    RingConsumer c = consumer();
    ENSURE(c.refresh());
    ENSURE(c.frozen());
    if (c.available() > 0) {
      c.consume(1);
      bool lied = false;
      ENSURE(!c.publish(&lied));
      ENSURE(!lied);
    }
    RingProducer p = producer();
    ENSURE(p.refresh());
    ENSURE(p.frozen());
    ENSURE(p.used() == queue_.size());
    std::uint64_t at = p.head();
    for (std::size_t i = 0; i < queue_.size();) {
      unsigned char bytes[7];
      const std::size_t n = p.read_back(at, bytes, sizeof bytes);
      ENSURE(n == std::min(sizeof bytes, queue_.size() - i));
      for (std::size_t k = 0; k < n; ++k) ENSURE(bytes[k] == queue_[i + k]);
      i += n;
      at += n;
    }
  }

  void check_guard() const {
    for (std::size_t i = capacity_; i < data_.size(); ++i) ENSURE(data_[i] == 0xee);
  }

  Direction direction_;

 private:
  static constexpr std::size_t kGuard = 64;
  std::size_t capacity_;
  std::vector<unsigned char> data_;
  ProducerState producer_state_;
  ConsumerState consumer_state_;
  std::deque<unsigned char> queue_;
  unsigned char next_ = 1;
};

unsigned seed_of_run() {
  const char* replay = std::getenv("MPKLINK_SEED");
  return replay != nullptr ? static_cast<unsigned>(std::strtoul(replay, nullptr, 10)) : std::random_device()();
}

}  // namespace

TEST_CASE("ring: every sequence of six operations at the smallest capacities", "[ring]") {
  const std::size_t capacity = GENERATE(8, 16, 32, 64);
  const std::vector<std::size_t> sizes = {1, capacity / 2 + 1, capacity - 1, capacity + 3};
  const std::size_t kinds = sizes.size() * 2;
  std::size_t sequences = 1;
  for (int i = 0; i < 6; ++i) sequences *= kinds;
  // 2^63 is crossed in every run: positions must wrap like any other.
  const std::uint64_t start = kPositionMask - capacity;
  for (std::size_t code = 0; code < sequences; ++code) {
    Harness ring(capacity, start);
    for (std::size_t rest = code, i = 0; i < 6; ++i, rest /= kinds) {
      const std::size_t kind = rest % kinds;
      if (kind < sizes.size()) {
        ring.send(sizes[kind]);
      } else {
        ring.receive(sizes[kind - sizes.size()]);
      }
    }
    ring.freeze_and_give_back();
    ring.check_guard();
  }
}

TEST_CASE("ring: random operations equal a queue", "[ring]") {
  const std::size_t capacity = GENERATE(8, 16, 64, 128, 4096, 16384, 65536);
  const unsigned seed = seed_of_run();
  INFO("MPKLINK_SEED=" << seed << " capacity=" << capacity);
  std::mt19937 random(seed);
  Harness ring(capacity);
  for (int i = 0; i < 20000; ++i) {
    const std::size_t most = random() % 4 == 0 ? 2 * capacity : capacity / 4 + 1;
    const std::size_t n = 1 + random() % most;
    if (random() % 2 == 0) {
      ring.send(n);
    } else {
      ring.receive(n);
    }
  }
  ring.check_guard();
}

TEST_CASE("ring: an emptied ring uses its first page again", "[ring]") {
  Harness ring(65536);
  for (int i = 0; i < 1000; ++i) {
    ring.send(1500);
    ring.receive(1500);
  }
  RingProducer p = ring.producer();
  REQUIRE(p.refresh());
  const std::uint64_t distance = ring.direction_.producer.tail.load_relaxed() - ring.direction_.producer.base.load_relaxed();
  REQUIRE(distance <= kPage);
}

TEST_CASE("ring: a peer's impossible indices are refused and touch nothing", "[ring]") {
  const std::size_t capacity = 64;
  const std::uint64_t lie = GENERATE(std::uint64_t{65}, std::uint64_t{1} << 32, ~std::uint64_t{0}, ~std::uint64_t{0} - 70);
  Harness ring(capacity);
  SECTION("tail") {
    ring.direction_.producer.tail.store_relaxed(lie);
    REQUIRE_FALSE(ring.consumer().refresh());
  }
  SECTION("head beyond tail, or too far behind") {
    if (0 - lie <= capacity) return;  // a head just behind the tail across 2^64: possible, and harmless
    ring.direction_.consumer.head.store_relaxed(lie);
    REQUIRE_FALSE(ring.producer().refresh());
  }
  SECTION("any base is harmless") {
    ring.send(64);
    ring.direction_.producer.base.store_relaxed(lie);
    RingConsumer c = ring.consumer();
    REQUIRE(c.refresh());
    unsigned char bytes[64];
    REQUIRE(c.peek(0, bytes, 64) == 64);
  }
  ring.check_guard();
}

TEST_CASE("ring: a head word that is not ours any more is a lie, a frozen one is not", "[ring]") {
  Harness ring(64);
  ring.send(10);
  RingConsumer c = ring.consumer();
  REQUIRE(c.refresh());
  c.consume(5);
  bool lied = false;
  ring.direction_.consumer.head.store_relaxed(3);
  REQUIRE_FALSE(c.publish(&lied));
  REQUIRE(lied);
}

TEST_CASE("ring: a consumer that was killed between publishing and noting is followed by another", "[ring]") {
  Harness ring(64);
  ring.send(10);
  Atomic<std::uint64_t>& word = ring.direction_.consumer.head;
  const auto publish_two_more = [&](bool* lied) {
    RingConsumer c = ring.consumer();
    c.take_over();
    REQUIRE(c.refresh());
    const std::uint64_t available = c.available();
    c.consume(2);
    if (c.publish(lied)) REQUIRE(word.load_relaxed() == 10 - available + 2);
    return available;
  };
  bool lied = false;
  word.store_relaxed(6);  // published, and no more
  REQUIRE(publish_two_more(&lied) == 4);
  REQUIRE_FALSE(lied);
  word.store_relaxed(9 | kFrozenBit);  // and then frozen
  REQUIRE(publish_two_more(&lied) == 1);
  REQUIRE_FALSE(lied);
  word.store_relaxed(11);  // more than there is: the peer's lie is not followed, and told as ever
  REQUIRE(publish_two_more(&lied) == 1);
  REQUIRE(lied);
}

TEST_CASE("ring: a look that another thread overtakes is not taken for a peer's lie", "[ring]") {
  Harness ring(64);
  ring.send(64);
  RingConsumer looker = ring.consumer();
  REQUIRE(looker.refresh());
  REQUIRE_FALSE(looker.overtaken());
  Atomic<std::uint64_t>& word = ring.direction_.consumer.head;
  word.store_relaxed(1);  // published, not noted yet: the producer may go on
  REQUIRE(looker.overtaken());
  word.store_relaxed(kFrozenBit);
  REQUIRE_FALSE(looker.overtaken());
  word.store_relaxed(0);
  ring.receive(10);
  REQUIRE(looker.overtaken());

  RingConsumer other = ring.consumer();
  ring.direction_.producer.tail.store_relaxed(64 + 10 + 1);  // beyond what anybody has consumed
  REQUIRE_FALSE(other.refresh());
  REQUIRE_FALSE(other.overtaken());
}

TEST_CASE("user_copy: copies every size at every alignment, and nothing else", "[ring]") {
  std::vector<unsigned char> from(2100), to(2100);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<unsigned char>(i * 7 + 1);
  for (std::size_t n = 0; n < 1030; ++n) {
    const std::size_t shift = n % 17;
    std::fill(to.begin(), to.end(), 0xee);
    ENSURE(user_copy(&to[16 + shift], &from[shift], n) == 0);
    for (std::size_t i = 0; i < to.size(); ++i) {
      const bool inside = i >= 16 + shift && i < 16 + shift + n;
      ENSURE(to[i] == (inside ? from[i - 16] : 0xee));
    }
  }
}

TEST_CASE("ring: the wish for space is taken once, when half is free", "[ring]") {
  Harness ring(64);
  ring.send(64);
  bool corrupt = false;
  RingProducer p = ring.producer();
  REQUIRE(p.refresh());
  REQUIRE_FALSE(p.wish_space(&corrupt));
  REQUIRE_FALSE(corrupt);
  ring.receive(16);
  RingConsumer c = ring.consumer();
  REQUIRE(c.refresh());
  REQUIRE_FALSE(c.take_wish());
  ring.receive(16);
  c = ring.consumer();
  REQUIRE(c.refresh());
  REQUIRE(c.take_wish());
  REQUIRE_FALSE(c.take_wish());
  REQUIRE(p.wish_space(&corrupt));
}
