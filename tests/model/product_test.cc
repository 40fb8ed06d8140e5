// SPDX-License-Identifier: MIT
// shm/ready.h and shm/ring.cc as they are shipped, compiled against the checker's Atomic, under every schedule. The
// order of the calls is that of preload/: publish, mark_ready, take_armed, bell; take_ready, arm, look again, sleep.

#include <catch2/catch.hpp>

#include "shm/ready.h"
#include "shm/ring.h"
#include "tests/model/checker.h"

namespace mpklink {
namespace {

using model::Options;
using model::Reduction;
using model::Result;
using model::Run;

/// An eventfd, edge-triggered in an epoll instance.
struct Bell {
  bool pending = false;
};

struct Sleeper {
  ArmedLine line;
  ReadyBitmap map;
  Bell bell;

  void wake(std::uint32_t slot) {
    mark_ready(&map, slot);
    if (take_armed(&line)) {
      model::kernel_call("ring", bell, [](Bell& b) { b.pending = true; });
    }
  }

  /// Visits the slots that are ready, or sleeps until one may be.
  template <class Visit>
  void wait(Visit visit) {
    bool any = false;
    auto note = [&](std::uint32_t slot) {
      any = true;
      visit(slot);
    };
    take_ready(&map, note);
    if (any) return;
    arm(&line);
    take_ready(&map, note);
    if (!any) {
      model::kernel_wait(
          "epoll_wait", bell, [](const Bell& b) { return b.pending; }, [](Bell& b) { b.pending = false; });
    }
    disarm(&line);
  }
};

/// One direction of a stream, as both ends have it.
struct Stream {
  static constexpr std::uint64_t kCapacity = 8;

  Direction lines;
  ProducerState producer_state;
  ConsumerState consumer_state;
  unsigned char data[kCapacity] = {};
  std::uint32_t slot = 0;
  unsigned char sent = 0, received = 0;  // bytes 1, 2, 3, …

  RingProducer producer() { return RingProducer(&lines.producer, &lines.consumer, &producer_state, data, kCapacity); }
  RingConsumer consumer() { return RingConsumer(&lines.consumer, &lines.producer, &consumer_state, data, kCapacity); }

  /// Up to `n` bytes; false when there is no room at all and the producer's wish to be woken stands.
  bool send(unsigned n, Sleeper& reader) {
    RingProducer ring = producer();
    model::check(ring.refresh(), "the producer sees an impossible head");
    if (ring.space() == 0) {
      bool corrupt = false;
      const bool space = ring.wish_space(&corrupt);
      model::check(!corrupt, "the producer sees an impossible head");
      if (!space) return false;
    }
    unsigned char bytes[kCapacity];
    for (unsigned i = 0; i < n; ++i) bytes[i] = static_cast<unsigned char>(sent + 1 + i);
    model::point_write(data, kCapacity);
    sent = static_cast<unsigned char>(sent + ring.write(bytes, n));
    ring.publish();
    reader.wake(slot);
    return true;
  }

  /// All that is there. `writer`: who may sleep for space.
  void receive(Sleeper* writer) {
    RingConsumer ring = consumer();
    model::check(ring.refresh(), "the consumer sees an impossible tail");
    const std::uint64_t n = ring.available();
    if (n == 0) return;
    unsigned char bytes[kCapacity];
    model::point_read(data, kCapacity);
    ring.peek(0, bytes, n);
    for (std::uint64_t i = 0; i < n; ++i) model::check(bytes[i] == ++received, "not the byte that was sent next");
    ring.consume(n);
    bool lied = false;
    model::check(ring.publish(&lied) && !lied, "nobody froze the ring");
    if (writer && ring.take_wish()) writer->wake(slot);
  }
};

Options options(const char* name) {
  Options o;
  o.name = name;
  o.reduction = Reduction::kStates;
  return o;
}

/// Two streams with one sender each, to one sleeper; the first sends more than once, perhaps.
Result two_senders(const char* name, std::uint32_t first, std::uint32_t second, int first_sends) {
  return model::explore(options(name), [=](Run& run) {
    struct State {
      Sleeper sleeper;
      Stream streams[2];
    };
    auto& s = run.state<State>();
    s.streams[0].slot = first;
    s.streams[1].slot = second;
    run.name(s.sleeper.line, "armed");
    run.name(s.sleeper.map.summary, "summary");
    run.name(s.sleeper.map.leaf, "leaf");
    for (auto& stream : s.streams) {
      const int sends = stream.slot == first ? first_sends : 1;
      run.thread("sender", [&s, &stream, sends] {
        for (int i = 0; i < sends; ++i) stream.send(1, s.sleeper);
      });
    }
    run.thread("receiver", [&s, first, first_sends] {
      while (s.streams[0].received + s.streams[1].received < first_sends + 1) {
        s.sleeper.wait([&s, first](std::uint32_t slot) { s.streams[slot == first ? 0 : 1].receive(nullptr); });
      }
    });
  });
}

/// More bytes than the ring holds: both ends sleep.
Result full_ring(unsigned total) {
  return model::explore(options("product: full ring"), [=](Run& run) {
    struct State {
      Sleeper producer, consumer;
      Stream stream;
    };
    auto& s = run.state<State>();
    run.name(s.producer.line, "producer's armed");
    run.name(s.consumer.line, "consumer's armed");
    run.name(s.stream.lines.producer.tail, "tail");
    run.name(s.stream.lines.producer.want_space, "want_space");
    run.name(s.stream.lines.consumer.head, "head");
    run.thread("producer", [&s, total] {
      while (s.stream.sent < total) {
        const unsigned left = total - s.stream.sent;
        if (!s.stream.send(left < 6 ? left : 6, s.consumer)) s.producer.wait([](std::uint32_t) {});
      }
    });
    run.thread("consumer", [&s, total] {
      while (s.stream.received < total) s.consumer.wait([&s](std::uint32_t) { s.stream.receive(&s.producer); });
    });
  });
}

void require_right(const Result& result) {
  INFO(result.report());
  REQUIRE(result.exhausted);
}

TEST_CASE("product: ready bitmap, two senders") {
  require_right(two_senders("product: same leaf", 1, 2, 1));
  require_right(two_senders("product: two leaves", 1, 64, 1));
  require_right(two_senders("product: two summaries", 1, 4096, 1));
}

TEST_CASE("product: ready bitmap, two senders, one twice (a minute or two)", "[.slow]") {
  require_right(two_senders("product: same leaf, twice", 1, 2, 2));
}

TEST_CASE("product: a ring that fills") {
  require_right(full_ring(12));
}

}  // namespace
}  // namespace mpklink
