// SPDX-License-Identifier: MIT
// The switch of one direction from TCP to its ring (DESIGN section 3), under every schedule, every split into partial
// sends and every size of read; and each of its rules broken, which must be found.
//
// First the kernel's TCP, then the protocol in this test's own words (Sender, Receiver), then the scenario.

#include <algorithm>
#include <catch2/catch.hpp>
#include <vector>

#include "tests/model/checker.h"

namespace mpklink {
namespace {

using model::Options;
using model::Reduction;
using model::Result;
using model::Run;
using U32 = std::uint32_t;
using U64 = std::uint64_t;
using Byte = unsigned char;

enum class Mutation {
  kNone,
  kPublishAfterSend,    // switch_at published when the last TCP bytes are already sent
  kSwitchWithoutBytes,  // switch_at = T: no last TCP bytes, nobody is woken
  kPartialForgotten,    // what a partial send has left over goes through the ring
  kReadRingEarly,       // the receiver turns to the ring as soon as it sees switch_at
  kStaleSwitch,         // the receiver looks for switch_at only once
  kTailBeforeCopy,      // the ring's tail published before the bytes
  kNoSecondLookAtTail,  // the receiver arms and sleeps without looking at the ring again
  kBitForgotten,        // in epoll: a ready bit reported once is forgotten, with bytes still to come through TCP first
};

// The kernel ----------------------------------------------------------------------------------------------------------

/// One direction of a TCP connection. A receiver asleep in recv() is woken by bytes and by nothing else.
struct Tcp {
  static constexpr std::size_t kCapacity = 2;  // of the send and receive buffers together: makes partial sends
  Byte bytes[kCapacity] = {};
  std::size_t count = 0;

  std::size_t put(const Byte* from, std::size_t length) {
    const std::size_t n = std::min(length, kCapacity - count);
    std::copy(from, from + n, bytes + count);
    count += n;
    return n;
  }
  std::size_t take(Byte* to, std::size_t length) {
    const std::size_t n = std::min(length, count);
    std::copy(bytes, bytes + n, to);
    std::copy(bytes + n, bytes + count, bytes);
    count -= n;
    return n;
  }
};

struct Kernel {
  Tcp tcp;
  bool bell = false;  // the edge of the receiver's eventfd
};

/// A blocking send(): waits for room, may take a part.
std::size_t tcp_send(Kernel& kernel, const Byte* from, std::size_t length) {
  const std::size_t wanted = 1 + model::choose(static_cast<unsigned>(length));
  const std::size_t sent = model::kernel_wait(
      "send", kernel, [](const Kernel& k) { return k.tcp.count < Tcp::kCapacity; },
      [&](Kernel& k) { return k.tcp.put(from, wanted); });
  model::note("sends over TCP", sent);
  return sent;
}

/// recv(), blocking or not; 0 stands for EAGAIN.
std::size_t tcp_recv(Kernel& kernel, Byte* to, std::size_t length, bool blocking) {
  const std::size_t received = model::kernel_wait(
      "recv", kernel, [blocking](const Kernel& k) { return !blocking || k.tcp.count > 0; },
      [&](Kernel& k) { return k.tcp.take(to, length); });
  model::note("takes from TCP", received);
  return received;
}

// The protocol --------------------------------------------------------------------------------------------------------

/// What both ends share: the channel of one direction, and the receiver's armed word and ready bitmap.
struct Channel {
  static constexpr U64 kNever = 0;  // as switch_at: byte 0 always goes over TCP
  static constexpr std::size_t kRingBytes = 8;

  Atomic<U64> switch_at, tail;
  Atomic<U32> armed, ready;
  Byte ring[kRingBytes] = {};
  Kernel kernel;
};

class Sender {
 public:
  Sender(Channel& channel, Mutation mutation) : channel_(channel), mutation_(mutation) {}

  /// As a program calls it until all is sent.
  void send_all(const Byte* from, std::size_t length, bool upgrade) {
    if (upgrade && !switching_) {
      if (mutation_ != Mutation::kPublishAfterSend) publish(mutation_ == Mutation::kSwitchWithoutBytes ? 0 : length);
      switching_ = true;
      switch_at_ = mutation_ == Mutation::kSwitchWithoutBytes ? sent_ : sent_ + length;
    }
    while (length > 0) {
      const std::size_t n = send_some(from, length);
      from += n;
      length -= n;
      if (mutation_ == Mutation::kPartialForgotten && switching_) switch_at_ = sent_;
    }
    if (mutation_ == Mutation::kPublishAfterSend && sent_ == switch_at_) publish(0);
  }

 private:
  /// Before the bytes that lead up to it are sent: they are the wake-up for whoever sleeps in recv().
  void publish(std::size_t length) { channel_.switch_at.store_release(sent_ + length); }

  std::size_t send_some(const Byte* from, std::size_t length) {
    std::size_t n = 0;
    if (!switching_) {
      n = tcp_send(channel_.kernel, from, length);
    } else if (sent_ < switch_at_) {  // a partial send has left these over
      n = tcp_send(channel_.kernel, from, std::min<std::size_t>(length, switch_at_ - sent_));
    } else {
      n = write_ring(from, length);
    }
    sent_ += n;
    return n;
  }

  std::size_t write_ring(const Byte* from, std::size_t length) {
    const U64 at = in_ring_;
    in_ring_ += length;
    if (mutation_ == Mutation::kTailBeforeCopy) channel_.tail.store_release(in_ring_);
    model::point_write(channel_.ring + at, length);
    std::copy(from, from + length, channel_.ring + at);
    if (mutation_ != Mutation::kTailBeforeCopy) channel_.tail.store_release(in_ring_);
    channel_.ready.fetch_or(1);
    if (channel_.armed.load_relaxed() && channel_.armed.exchange(0) == 1) {
      model::kernel_call("ring bell", channel_.kernel, [](Kernel& k) { k.bell = true; });
    }
    return length;
  }

  Channel& channel_;
  const Mutation mutation_;
  U64 sent_ = 0, in_ring_ = 0, switch_at_ = 0;
  bool switching_ = false;
};

class Receiver {
 public:
  Receiver(Channel& channel, Mutation mutation) : channel_(channel), mutation_(mutation) {}

  /// recv(), blocking or not, as the library does it; 0 stands for EAGAIN.
  std::size_t recv(Byte* to, std::size_t length, bool blocking) {
    // Looked for before each recv(): if it is not there yet, TCP bytes are still to come, and wake us.
    if (!looked_ || mutation_ != Mutation::kStaleSwitch) switch_at_ = channel_.switch_at.load_acquire();
    looked_ = true;
    const bool switched = switch_at_ != Channel::kNever;
    std::size_t n = 0;
    if (switched && (taken_ >= switch_at_ || mutation_ == Mutation::kReadRingEarly)) {
      n = read_ring(to, length, blocking);
    } else {
      n = tcp_recv(channel_.kernel, to, length, blocking);
    }
    taken_ += n;
    return n;
  }

  /// Level-triggered: returns when recv() has something, or at times when it has not. The ring's bit may come while
  /// bytes before it are still in TCP, so the stream stays listed as ready until its ring is seen empty.
  void epoll_wait() {
    while (true) {
      if (channel_.ready.load_relaxed() && channel_.ready.exchange(0)) listed_ = true;
      if (listed_) {
        const bool ready = channel_.tail.load_acquire() != from_ring_;
        listed_ = ready && mutation_ != Mutation::kBitForgotten;
        if (ready) return;
      }
      channel_.armed.exchange(1);
      const bool tcp = channel_.ready.load_acquire() == 0 && wait_in_kernel("epoll_wait", true);
      channel_.armed.store_relaxed(0);
      if (tcp) return;
    }
  }

 private:
  /// True when TCP has bytes.
  bool wait_in_kernel(const char* label, bool for_tcp_too) {
    return model::kernel_wait(
        label, channel_.kernel, [=](const Kernel& k) { return k.bell || (for_tcp_too && k.tcp.count > 0); },
        [](Kernel& k) {
          k.bell = false;
          return k.tcp.count > 0;
        });
  }

  std::size_t read_ring(Byte* to, std::size_t length, bool blocking) {
    U64 tail = channel_.tail.load_acquire();
    while (tail == from_ring_) {
      if (!blocking) return 0;
      channel_.armed.exchange(1);
      if (mutation_ == Mutation::kNoSecondLookAtTail || channel_.tail.load_acquire() == from_ring_) {
        wait_in_kernel("ppoll", false);
      }
      channel_.armed.store_relaxed(0);
      tail = channel_.tail.load_acquire();
    }
    const std::size_t n = std::min<std::size_t>(length, tail - from_ring_);
    model::point_read(channel_.ring + from_ring_, n);
    std::copy(channel_.ring + from_ring_, channel_.ring + from_ring_ + n, to);
    from_ring_ += n;
    model::note("takes from the ring", n);
    return n;
  }

  Channel& channel_;
  const Mutation mutation_;
  U64 taken_ = 0, from_ring_ = 0, switch_at_ = Channel::kNever;
  bool looked_ = false, listed_ = false;
};

// The scenario --------------------------------------------------------------------------------------------------------

struct Plan {
  const char* name;
  std::vector<std::size_t> sends;  // how many bytes each
  std::size_t upgrade_at;          // index of the send that switches
  bool epoll = false;              // the receiver sleeps in epoll_wait(), not in recv()
};

/// Bytes 1, 2, 3, … are sent; the receiver, which may be asleep in the kernel before the switch, must get just these.
Result handover(const Plan& plan, Mutation mutation, Reduction reduction = Reduction::kStates) {
  Options options;
  options.name = plan.name;
  options.reduction = reduction;
  return model::explore(options, [&plan, mutation](Run& run) {
    struct State {
      explicit State(Mutation m) : sender(channel, m), receiver(channel, m) {}
      Channel channel;
      Sender sender;
      Receiver receiver;
      Byte data[Channel::kRingBytes] = {1, 2, 3, 4, 5, 6, 7, 8};
      Byte to[2] = {};
      std::size_t received = 0;
    };
    auto& s = run.state<State>(mutation);
    run.name(s.channel.switch_at, "switch_at");
    run.name(s.channel.tail, "tail");
    run.name(s.channel.armed, "armed");
    std::size_t total = 0;
    for (std::size_t n : plan.sends) total += n;
    run.thread("sender", [&s, &plan] {
      const Byte* from = s.data;
      for (std::size_t i = 0; i < plan.sends.size(); ++i) {
        s.sender.send_all(from, plan.sends[i], i >= plan.upgrade_at);
        from += plan.sends[i];
      }
    });
    run.thread("receiver", [&s, total, epoll = plan.epoll] {
      while (s.received < total) {
        if (epoll) s.receiver.epoll_wait();
        const std::size_t n = s.receiver.recv(s.to, 1 + model::choose(2), !epoll);
        for (std::size_t i = 0; i < n; ++i) {
          model::check(s.to[i] == ++s.received, "not the byte that was sent next");
        }
      }
    });
    run.finally([&s] { model::check(s.channel.kernel.tcp.count == 0, "bytes are left in TCP"); });
  });
}

void require_right(const Result& result) {
  INFO(result.report());
  REQUIRE(result.exhausted);
}

void require_found(const Result& result, const char* message) {
  INFO(result.report());
  REQUIRE(result.failed);
  CHECK(result.message.find(message) != std::string::npos);
}

TEST_CASE("handover: all bytes arrive in order, whoever sleeps where") {
  for (auto reduction : {Reduction::kSleepSets, Reduction::kStates}) {
    require_right(handover({"switch at the first send", {1, 1}, 0}, Mutation::kNone, reduction));
    require_right(handover({"switch at the second send", {1, 1, 1}, 1}, Mutation::kNone, reduction));
    require_right(handover({"partial sends", {2, 1}, 0}, Mutation::kNone, reduction));
  }
  require_right(handover({"two bytes each", {2, 2, 2}, 1}, Mutation::kNone));
  require_right(handover({"two bytes each, at once", {2, 2, 2}, 0}, Mutation::kNone));
  require_right(handover({"switch at the last send", {1, 2, 2}, 2}, Mutation::kNone));
  require_right(handover({"switch with two sends", {2, 2}, 0}, Mutation::kNone));
}

TEST_CASE("handover: all bytes arrive in epoll too") {
  require_right(handover({"epoll", {1, 1}, 0, true}, Mutation::kNone, Reduction::kSleepSets));
  require_right(handover({"epoll", {1, 1}, 0, true}, Mutation::kNone));
  require_right(handover({"epoll, two bytes each", {2, 2, 2}, 1, true}, Mutation::kNone));
  require_right(handover({"epoll, two bytes each, at once", {2, 2, 2}, 0, true}, Mutation::kNone));
}

TEST_CASE("handover: a sleeper that nobody wakes is found") {
  require_found(handover({"publish after", {1, 1}, 0}, Mutation::kPublishAfterSend),
                "deadlock: receiver waits in recv");
  require_found(handover({"no bytes", {1, 1}, 1}, Mutation::kSwitchWithoutBytes), "deadlock: receiver waits in recv");
  require_found(handover({"stale", {1, 1}, 0}, Mutation::kStaleSwitch), "deadlock: receiver waits in recv");
  require_found(handover({"no look", {1, 1}, 0}, Mutation::kNoSecondLookAtTail), "deadlock: receiver waits in ppoll");
  require_found(handover({"forgotten bit", {1, 1}, 0, true}, Mutation::kBitForgotten), "receiver waits in epoll_wait");
}

TEST_CASE("handover: bytes out of order are found") {
  require_found(handover({"partial forgotten", {2, 1}, 0}, Mutation::kPartialForgotten), "");
  require_found(handover({"ring too early", {2, 1}, 0}, Mutation::kReadRingEarly), "not the byte");
  require_found(handover({"tail before copy", {1, 1}, 0}, Mutation::kTailBeforeCopy), "not the byte");
}

}  // namespace
}  // namespace mpklink
