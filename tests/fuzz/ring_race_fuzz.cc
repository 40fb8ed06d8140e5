// SPDX-License-Identifier: MIT
// Both ends of a ring, as compiled for the library, while a thread of the peer's writes the shared words as fast as it can. The schedule
// is the machine's, so a run is not repeatable to the step; what is checked holds under every schedule. ASan watches the ring's edges.
#include <atomic>
#include <iterator>
#include <memory>
#include <thread>

#include "shm/handover.h"
#include "shm/ready.h"
#include "shm/ring.h"
#include "tests/fuzz/fuzz.h"

namespace mpklink {
namespace {

using fuzz::Input;

constexpr std::uint64_t kCapacities[] = {8, 64, 256, 4096};
constexpr unsigned kRounds = 100;

struct Shared {
  Direction lines;
  ReadyBitmap map;
  Atomic<std::uint64_t> ids;
};

// One write of the peer's.
struct Write {
  std::uint8_t word;
  std::uint64_t value;
};

void write_word(Shared* s, const Write& w) {
  Atomic<std::uint64_t>* const words[] = {&s->lines.producer.tail,      &s->lines.producer.base, &s->lines.consumer.head,
                                          &s->lines.producer.switch_at, &s->map.summary[0],      &s->map.leaf[1],
                                          &s->map.leaf[63],             &s->ids};
  Atomic<std::uint32_t>* const small[] = {&s->lines.producer.want_space, &s->lines.producer.returned, &s->lines.consumer.closed};
  const std::size_t i = w.word % (std::size(words) + std::size(small));
  if (i < std::size(words)) {
    words[i]->store_relaxed(w.value);
  } else {
    small[i - std::size(words)]->store_relaxed(static_cast<std::uint32_t>(w.value));
  }
}

class Ends {
 public:
  explicit Ends(std::uint64_t capacity) : capacity_(capacity), data_(new unsigned char[capacity]) {
    for (std::uint64_t i = 0; i < capacity; ++i) data_[i] = pattern(i);
  }
  Shared* shared() { return shared_.get(); }

  // What is read is a piece of the ring, in the ring's order, wherever the peer says that it begins.
  void receive(std::size_t n) {
    RingConsumer c(&shared_->lines.consumer, &shared_->lines.producer, &consumer_, data_.get(), capacity_);
    const std::uint64_t before = consumer_.head.load_relaxed();
    if (!c.refresh()) return;
    FUZZ_CHECK(c.available(), <=, capacity_);
    const std::unique_ptr<unsigned char[]> to(new unsigned char[n]);
    const std::size_t got = c.peek(0, to.get(), n);
    FUZZ_CHECK(got, ==, n < c.available() ? n : c.available());
    for (std::size_t i = 1; i < got; ++i) FUZZ_CHECK(to[i], ==, pattern((place(to[0]) + i) & (capacity_ - 1)));
    c.consume(got);
    bool lied = false;
    const bool kept = c.publish(&lied);
    FUZZ_CHECK(consumer_.head.load_relaxed(), ==, kept ? (before + got) & kPositionMask : before);
    if (kept) (void)c.take_wish();
    // The other end's word for this one's; else it never fits again.
    if (lied) consumer_.head.store_relaxed(shared_->lines.consumer.head.load_relaxed() & kPositionMask);
  }

  void send(std::size_t n) {
    RingProducer p(&shared_->lines.producer, &shared_->lines.consumer, &producer_, data_.get(), capacity_);
    if (!p.refresh()) {
      producer_.tail.store_relaxed(shared_->lines.consumer.head.load_relaxed() & kPositionMask);
      return;
    }
    const std::uint64_t tail = producer_.tail.load_relaxed();
    FUZZ_CHECK(p.used(), <=, capacity_);
    if (p.frozen()) {
      give_back(&p, tail);
      return;
    }
    const std::uint64_t space = p.space();
    const std::unique_ptr<unsigned char[]> from(new unsigned char[n]);
    // The pattern goes on where it is written to: start_over may move that place.
    if (p.used() == 0) (void)p.write(from.get(), 0);
    for (std::size_t i = 0; i < n; ++i) from[i] = pattern((tail + i - producer_.base.load_relaxed()) & (capacity_ - 1));
    FUZZ_CHECK(p.write(from.get(), n), ==, n < space ? n : space);
    p.publish();
    bool corrupt = false;
    (void)p.wish_space(&corrupt);
    for (std::uint64_t i = 0; i < capacity_; ++i) FUZZ_CHECK(data_[i], ==, pattern(i));
  }

  void rest_of_the_board(std::uint32_t number) {
    unsigned visits = 0;
    take_ready(&shared_->map, [&](std::uint32_t slot) {
      FUZZ_CHECK(slot, <, kSlots);
      ++visits;
    });
    FUZZ_CHECK(visits, <=, kSlots);
    mark_ready(&shared_->map, number % kSlots);
    if (add_waiter(&shared_->ids, number % kPollers)) remove_waiter(&shared_->ids, number % kPollers);
    bool lied = false;
    const auto before = receive_.path.load_relaxed();
    FUZZ_CHECK(static_cast<std::uint32_t>(receive_path(&receive_, shared_->lines, &lied)), >=, before);
    receive_.path.store_relaxed(before);
  }

 private:
  // Of 251 values: where a byte lies tells the next.
  unsigned char pattern(std::uint64_t i) const { return static_cast<unsigned char>(i & (capacity_ - 1) & 0xff); }
  std::uint64_t place(unsigned char byte) const { return byte; }

  void give_back(RingProducer* p, std::uint64_t tail) {
    send_.path.store_relaxed(static_cast<std::uint32_t>(Path::kRing));
    if (!begin_return(&send_, &shared_->lines.producer, p->head(), p->used())) return;
    unsigned char to[16];
    std::uint64_t sum = 0;
    while (static_cast<Path>(send_.path.load_relaxed()) == Path::kReturning) {
      const std::size_t n = p->read_back(send_.return_at.load_relaxed(), to, sizeof to);
      FUZZ_TRUE(n > 0 && n <= sizeof to);
      sum += n;
      FUZZ_CHECK(sum, <=, p->used());
      gave_back(&send_, &shared_->lines.producer, n, tail);
    }
    FUZZ_CHECK(sum, ==, p->used());
  }

  const std::uint64_t capacity_;
  const std::unique_ptr<unsigned char[]> data_;
  const std::unique_ptr<Shared> shared_{new Shared()};
  ProducerState producer_;
  ConsumerState consumer_;
  SendState send_;
  ReceiveState receive_;
};

}  // namespace
}  // namespace mpklink

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace mpklink;
  fuzz::Input input(data, size);
  Ends ends(kCapacities[input.below(std::size(kCapacities))]);
  Write writes[16] = {};
  const std::size_t count = 1 + input.below(std::size(writes));
  for (std::size_t i = 0; i < count; ++i) writes[i] = {input.byte(), (input.byte() & 1) ? input.value<std::uint64_t>() : input.byte()};
  std::atomic<bool> started{false}, over{false};
  std::thread peer([&] {
    started.store(true, std::memory_order_release);
    for (std::size_t i = 0; !over.load(std::memory_order_acquire); i = (i + 1) % count) write_word(ends.shared(), writes[i]);
  });
  while (!started.load(std::memory_order_acquire)) std::this_thread::yield();
  const std::size_t n = input.below(300);
  const std::size_t m = input.below(300);
  for (unsigned i = 0; i < kRounds; ++i) {
    ends.send(n);
    ends.receive(m);
    ends.rest_of_the_board(static_cast<std::uint32_t>(n * 37 + i));
  }
  over.store(true, std::memory_order_release);
  peer.join();
  return 0;
}
