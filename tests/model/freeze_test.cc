// SPDX-License-Identifier: MIT
// shm/handover.h, shm/ring.cc and shm/ready.h as they are shipped: a stream that switches to the ring and is taken back by
// its receiver, its sender or both, at every moment, under every schedule. The order of the calls is that of
// preload/send.cc, give_back.cc, receive.cc and revoke.cc.

#include <catch2/catch.hpp>

#include "shm/handover.h"
#include "shm/ready.h"
#include "shm/ring.h"
#include "tests/model/checker.h"

namespace mpklink {
namespace {

using model::Options;
using model::Reduction;
using model::Result;
using model::Run;

constexpr unsigned kBytesMax = 8;

/// The TCP socket of one direction and the two ends' bells.
struct Kernel {
  unsigned char queue[2 * kBytesMax] = {};
  unsigned filled = 0, taken = 0;
  bool reader_bell = false, writer_bell = false, done = false;
};

struct State {
  static constexpr std::uint64_t kCapacity = 8;
  Direction lines;
  Atomic<std::uint32_t> look_back;  // in the receiver's own producer line
  ArmedLine reader_armed, writer_armed;
  SendState send;
  ReceiveState receive;
  ProducerState producer_state;
  ConsumerState consumer_state;
  unsigned char data[kCapacity] = {};
  Kernel kernel;
  unsigned char sent = 0, received = 0;  // bytes 1, 2, 3, …

  RingProducer producer() { return RingProducer(&lines.producer, &lines.consumer, &producer_state, data, kCapacity); }
  RingConsumer consumer() { return RingConsumer(&lines.consumer, &lines.producer, &consumer_state, data, kCapacity); }
};

/// Rules that can be left out, to see that the checker notices.
struct Rules {
  bool ring_after_freeze = true;
  bool give_back_first = true;
};

void send_tcp(State& s, unsigned char byte) {
  model::kernel_call("send", s.kernel, [byte](Kernel& k) { k.queue[k.filled++] = byte; });
}

bool frozen(State& s) { return (s.lines.consumer.head.load_acquire() & kFrozenBit) != 0; }

void give_back(State& s) {
  for (;;) {
    RingProducer ring = s.producer();
    model::check(ring.refresh(), "the sender sees an impossible head");
    model::check(ring.frozen(), "gives back a ring that is in use");
    if (!begin_return(&s.send, &s.lines.producer, ring.head(), ring.used())) return;
    unsigned char byte = 0;
    model::point_read(s.data, State::kCapacity);
    model::check(ring.read_back(s.send.return_at.load_relaxed(), &byte, 1) == 1, "nothing to give back");
    send_tcp(s, byte);
    gave_back(&s.send, &s.lines.producer, 1, s.producer_state.tail.load_relaxed());
  }
}

/// One byte of the program's.
void send_byte(State& s, const Rules& rules) {
  const auto byte = static_cast<unsigned char>(s.sent + 1);
  if (static_cast<Path>(s.send.path.load_relaxed()) == Path::kTcp && !frozen(s)) begin_switch(&s.send, &s.lines.producer, 1);
  const bool hasty = !rules.give_back_first && static_cast<Path>(s.send.path.load_relaxed()) == Path::kRing && frozen(s);
  if (hasty) {
    send_tcp(s, byte);
    ++s.sent;
  }
  if (frozen(s)) give_back(s);
  if (hasty) return;
  if (static_cast<Path>(s.send.path.load_relaxed()) != Path::kRing) {
    send_tcp(s, byte);
    tcp_sent(&s.send, 1);
  } else {
    RingProducer ring = s.producer();
    model::check(ring.refresh(), "the sender sees an impossible head");
    model::point_write(s.data, State::kCapacity);
    model::check(ring.write(&byte, 1) == 1, "the ring is never full here");
    ring.publish();
    if (take_armed(&s.reader_armed)) model::kernel_call("ring", s.kernel, [](Kernel& k) { k.reader_bell = true; });
    if (frozen(s)) give_back(s);
  }
  ++s.sent;
}

/// The sender has nothing more to say: it sleeps in one of our waits, and answers what it is asked there.
void sender_waits(State& s) {
  for (bool done = false; !done;) {
    arm(&s.writer_armed);
    const auto path = static_cast<Path>(s.send.path.load_relaxed());
    if (s.look_back.load_relaxed() != 0 && path != Path::kTcpAgain && frozen(s)) {
      give_back(s);
      continue;
    }
    model::kernel_wait(
        "epoll_wait", s.kernel, [](const Kernel& k) { return k.writer_bell || k.done; },
        [&done](Kernel& k) {
          k.writer_bell = false;
          done = k.done;
        });
  }
}

/// One look for a byte, as receive_step. False: nothing there.
bool receive_byte(State& s) {
  bool lied = false;
  Path path = receive_path(&s.receive, s.lines, &lied);
  model::check(!lied, "the receiver believes that the offset is a lie");
  unsigned char byte = 0;
  if (path == Path::kRing) {
    RingConsumer ring = s.consumer();
    model::check(ring.refresh(), "the receiver sees an impossible tail");
    if (ring.available() > 0) {
      model::point_read(s.data, State::kCapacity);
      ring.peek(0, &byte, 1);
      ring.consume(1);
      if (ring.publish(&lied)) {
        model::check(byte == ++s.received, "not the byte that was sent next");
        return true;
      }
      model::check(!lied, "the head word is nobody else's");
      path = receive_path(&s.receive, s.lines, &lied);
    }
  }
  if (path == Path::kRing) return false;
  unsigned char got = 0;
  model::kernel_call("recv", s.kernel, [&got](Kernel& k) { got = k.taken < k.filled ? k.queue[k.taken++] : 0; });
  if (got == 0) return false;
  s.receive.tcp_received.store_relaxed(s.receive.tcp_received.load_relaxed() + 1);
  model::check(got == ++s.received, "not the byte that was sent next");
  return true;
}

bool readable(State& s) {
  bool lied = false;
  if (receive_path(&s.receive, s.lines, &lied) != Path::kRing) return false;
  RingConsumer ring = s.consumer();
  return ring.refresh() && ring.available() > 0;
}

void freeze_incoming(State& s, const Rules& rules) {
  freeze(&s.lines.consumer);
  s.look_back.exchange(1);
  if (rules.ring_after_freeze && take_armed(&s.writer_armed)) {
    model::kernel_call("ring", s.kernel, [](Kernel& k) { k.writer_bell = true; });
  }
}

void receive_all(State& s, unsigned total) {
  while (s.received < total) {
    if (receive_byte(s)) continue;
    arm(&s.reader_armed);
    if (readable(s)) continue;
    model::kernel_wait(
        "poll", s.kernel, [](const Kernel& k) { return k.reader_bell || k.taken < k.filled; },
        [](Kernel& k) { k.reader_bell = false; });
  }
}

/// `total` bytes; the receiver freezes after `receiver_at` of them (or never, at 99), the sender after sending `sender_at`.
Result explore(const char* name, unsigned total, unsigned receiver_at, unsigned sender_at, const Rules& rules = {}) {
  Options options;
  options.name = name;
  options.reduction = Reduction::kStates;
  return model::explore(options, [=](Run& run) {
    auto& s = run.state<State>();
    run.name(s.lines.consumer.head, "head");
    run.name(s.lines.producer.tail, "tail");
    run.name(s.lines.producer.switch_at, "switch_at");
    run.name(s.look_back, "look_back");
    run.name(s.reader_armed, "reader's armed");
    run.name(s.writer_armed, "writer's armed");
    run.thread("sender", [&s, total, sender_at, rules] {
      while (s.sent < total) {
        if (s.sent == sender_at) {
          freeze(&s.lines.consumer);
          give_back(s);
        }
        send_byte(s, rules);
      }
      sender_waits(s);
    });
    run.thread("receiver", [&s, total, receiver_at, rules] {
      for (unsigned i = 0; i < receiver_at && i < total; ++i) {
        while (!receive_byte(s)) {
          arm(&s.reader_armed);
          if (readable(s)) continue;
          model::kernel_wait(
              "poll", s.kernel, [](const Kernel& k) { return k.reader_bell || k.taken < k.filled; },
              [](Kernel& k) { k.reader_bell = false; });
        }
      }
      if (receiver_at < total) freeze_incoming(s, rules);
      receive_all(s, total);
      model::kernel_call("done", s.kernel, [](Kernel& k) { k.done = true; });
    });
  });
}

constexpr unsigned kNever = 99;

TEST_CASE("freeze: the receiver takes the stream back, at every moment") {
  for (unsigned at = 0; at < 3; ++at) {
    const Result result = explore("freeze: receiver", 3, at, kNever);
    INFO("after " << at << " bytes\n" << result.report());
    REQUIRE(result.exhausted);
  }
}

TEST_CASE("freeze: the sender leaves the ring, at every moment") {
  for (unsigned at = 0; at < 3; ++at) {
    const Result result = explore("freeze: sender", 3, kNever, at);
    INFO("after " << at << " bytes\n" << result.report());
    REQUIRE(result.exhausted);
  }
}

TEST_CASE("freeze: both at once") {
  for (unsigned receiver = 0; receiver < 2; ++receiver) {
    for (unsigned sender = 1; sender < 2; ++sender) {
      const Result result = explore("freeze: both", 2, receiver, sender);
      INFO("after " << receiver << " and " << sender << " bytes\n" << result.report());
      REQUIRE(result.exhausted);
    }
  }
}

TEST_CASE("freeze: each rule that is left out is found") {
  Rules silent, hasty;
  silent.ring_after_freeze = false;
  hasty.give_back_first = false;
  REQUIRE(explore("freeze: no bell", 3, 1, kNever, silent).failed);
  REQUIRE(explore("freeze: new bytes first", 4, 1, kNever, hasty).failed);
}

}  // namespace
}  // namespace mpklink
