// SPDX-License-Identifier: MIT
// The sleep and wake protocol of DESIGN section 5, under every schedule; and every one of its fences and second looks
// taken away, which must be found.
//
// First the protocol in this test's own words (Poller, Stream), each deviation from it a Mutation; then the scenarios,
// which call nothing but the protocol's functions.

#include <catch2/catch.hpp>
#include <string>
#include <utility>

#include "tests/model/checker.h"

namespace mpklink {
namespace {

using model::Options;
using model::Reduction;
using model::Result;
using model::Run;
using U32 = std::uint32_t;

enum class Mutation {
  kNone,
  // the one who sends, or who makes space
  kBitWithoutFence,    // the ready bit set by load and store
  kArmedBeforeBit,     // armed read before the bit is set
  kTailAfterBit,       // the tail published after the bit
  kTailBeforeCopy,     // the tail published before the bytes are there
  kWantSpaceUnfenced,  // the head published, and want_space read with no fence between
  // the one who sleeps
  kArmWithoutFence,     // armed set by a plain store
  kNoSecondLook,        // no look at the bitmap after arming
  kBitClearedLate,      // the rings read before the ready bits are taken
  kWantSpaceStored,     // want_space set by a plain store
  kNoSecondLookAtHead,  // no look at the head after want_space
  // several who sleep in one epoll
  kBlindDisarm,         // whoever wakes disarms, though others may sleep
  kNoLookAfterDisarm,   // the last one out disarms, without asking who came since
  kDisarmWithoutFence,  // it asks, but before its plain store is seen
  kNoRearm,             // whoever wakes leaves the others disarmed
  kNoScanAfterTimeout,  // whoever times out goes without a last look at the bitmap
  kLeftoverKept,        // what the woken one does not take is not given back
};

// The protocol --------------------------------------------------------------------------------------------------------

/// An eventfd, edge-triggered in an epoll instance: rings coalesce, one sleeper takes the edge.
struct Bell {
  bool pending = false;
};

/// Who sleeps with a poller: a thread, or several in one epoll instance, which arm and disarm with RMWs or under a
/// lock.
enum class Sleepers { kOne, kSeveral, kSeveralLocked };

/// What a sleeper waits with: `armed` and `ready` on the board, the bell, and the count of sleepers, private to the
/// process.
struct Poller {
  Atomic<U32> armed, ready;
  Atomic<U32> sleepers;
  Bell bell;
  Atomic<U32> lock_word;
  Sleepers kind = Sleepers::kOne;
  Mutation mutation = Mutation::kNone;

  void name(Run& run, const char* armed_name, const char* ready_name) {
    run.name(armed, armed_name);
    run.name(ready, ready_name);
    run.name(sleepers, "sleepers");
    run.name(lock_word, "lock");
  }

  void ring() {
    model::kernel_call("ring", bell, [](Bell& b) { b.pending = true; });
  }

  void ring_if_armed() {
    if (armed.load_relaxed() && armed.exchange(0) == 1) ring();
  }

  /// After publishing what makes `bit` ready.
  void wake(U32 bit) {
    if (mutation == Mutation::kArmedBeforeBit) {
      ring_if_armed();
      ready.fetch_or(bit);
    } else if (mutation == Mutation::kBitWithoutFence) {
      ready.store_release(ready.load_relaxed() | bit);
      ring_if_armed();
    } else {
      ready.fetch_or(bit);
      ring_if_armed();
    }
  }

  /// The streams that may be ready. Taken before looking at them: what is published later sets its bit again.
  U32 take_ready() {
    if (ready.load_relaxed() == 0) return 0;
    return ready.exchange(0);
  }

  /// Returns true when something may be ready; `impatient` false at any time. Take the ready bits next in either case.
  bool sleep(bool impatient = false) {
    if (kind != Sleepers::kOne) sleepers.fetch_add(1);  // before arming
    if (kind == Sleepers::kSeveralLocked) {
      lock();
      armed.exchange(1);
      unlock();
    } else if (mutation == Mutation::kArmWithoutFence) {
      armed.store_release(1);
    } else {
      armed.exchange(1);
    }
    bool woken = true;
    if (mutation == Mutation::kNoSecondLook || ready.load_acquire() == 0) {
      woken = model::kernel_wait(
          "epoll_wait", bell, [impatient](const Bell& b) { return impatient || b.pending; },
          [](Bell& b) { return std::exchange(b.pending, false); });
    }
    if (kind == Sleepers::kOne) armed.store_relaxed(0);  // only saves a bell; the next exchange comes after it
    if (kind == Sleepers::kSeveral) leave_others();
    if (kind == Sleepers::kSeveralLocked) leave_others_locked();
    return woken;
  }

  /// Armed stays set while any other sleeps: the sender who woke us has cleared it. The last one out clears it, as a
  /// lone sleeper does, but someone may have come to sleep and armed it just before: ask again, after the exchange.
  /// What was sent between the clearing and the arming rang for nobody, but we are awake and take the ready bits next.
  void leave_others() {
    const bool last = sleepers.fetch_add(~U32{0}) == 1;
    if (mutation == Mutation::kDisarmWithoutFence) {
      if (last) armed.store_release(0);
    } else if (last || mutation == Mutation::kBlindDisarm) {
      armed.exchange(0);
      if (mutation == Mutation::kBlindDisarm || mutation == Mutation::kNoLookAfterDisarm) return;
    }
    if (mutation != Mutation::kNoRearm && sleepers.load_acquire() != 0) armed.exchange(1);
  }

  /// The same with a lock around each arming and disarming. Being the last must be asked inside it: whoever came since
  /// has counted itself before it took the lock to arm.
  void leave_others_locked() {
    const bool last = sleepers.fetch_add(~U32{0}) == 1;
    lock();
    if (!last) {
      armed.exchange(1);
    } else if (mutation == Mutation::kNoLookAfterDisarm || sleepers.load_relaxed() == 0) {
      armed.store_relaxed(0);
    }
    unlock();
  }

  /// A spin lock, without the schedules of its spinning.
  void lock() {
    model::kernel_wait(
        "lock", lock_word, [](const Atomic<U32>& word) { return word.load_relaxed() == 0; },
        [](Atomic<U32>& word) { word.exchange(1); });
  }
  void unlock() { lock_word.store_release(0); }

  /// Ready bits that this thread took and will not serve: another one must.
  void give_back(U32 bits) {
    if (bits == 0 || mutation == Mutation::kLeftoverKept) return;
    ready.fetch_or(bits);
    ring_if_armed();
  }
};

/// One direction of a stream, with a ring of `capacity` messages of one byte.
struct Stream {
  static constexpr U32 kSlots = 4;

  Atomic<U32> tail, head, want_space;
  unsigned char slots[kSlots] = {};
  U32 capacity = kSlots;
  U32 bit = 1;
  U32 sent = 0, received = 0;  // each side's own
  Poller* reader = nullptr;
  Poller* writer = nullptr;  // who sleeps when the ring is full
  Mutation mutation = Mutation::kNone;

  void name(Run& run) {
    run.name(tail, "tail");
    run.name(head, "head");
    run.name(want_space, "want_space");
    run.name(slots, "slots");
  }

  bool full() { return sent - head.load_acquire() == capacity; }

  bool try_send(unsigned char message) {
    if (full()) return false;
    if (mutation == Mutation::kTailBeforeCopy) tail.store_release(sent + 1);
    unsigned char* slot = &slots[sent % capacity];
    model::point_write(slot, 1);
    *slot = message;
    ++sent;
    if (mutation == Mutation::kTailAfterBit) {
      reader->ready.fetch_or(bit);
      tail.store_release(sent);
      reader->ring_if_armed();
    } else {
      tail.store_release(sent);
      reader->wake(bit);
    }
    return true;
  }

  bool try_receive(unsigned char* message) {
    if (tail.load_acquire() == received) return false;
    unsigned char* slot = &slots[received % capacity];
    model::point_read(slot, 1);
    *message = *slot;
    head.store_release(++received);
    if (writer) {
      if (mutation != Mutation::kWantSpaceUnfenced) thread_fence_seq_cst();
      if (want_space.load_relaxed() && want_space.exchange(0) == 1) writer->wake(bit);
    }
    return true;
  }

  /// Returns when there may be space.
  void sleep_for_space() {
    if (mutation == Mutation::kWantSpaceStored) {
      want_space.store_release(1);
    } else {
      want_space.exchange(1);
    }
    if (mutation != Mutation::kNoSecondLookAtHead && !full()) return;
    if (writer->take_ready() == 0) writer->sleep();
  }
};

// The scenarios -------------------------------------------------------------------------------------------------------

/// Messages 1…n in order on each stream.
void send_all(Stream& stream, unsigned char messages) {
  for (unsigned char i = 1; i <= messages;) {
    if (stream.try_send(i)) {
      ++i;
    } else {
      stream.sleep_for_space();
    }
  }
}

bool receive_one(Stream& stream) {
  unsigned char message = 0;
  if (!stream.try_receive(&message)) return false;
  model::note("receives", message);
  model::check(message == stream.received, "a message that was not sent next");
  return true;
}

/// Until `messages` have come in all, on any of the streams.
void receive_all(Poller& poller, Stream* streams, std::size_t count, U32 messages, Mutation mutation) {
  for (U32 received = 0; received < messages;) {
    const bool late = mutation == Mutation::kBitClearedLate;
    const U32 bits = late ? poller.ready.load_acquire() : poller.take_ready();
    for (std::size_t i = 0; i < count; ++i) {
      while ((bits & streams[i].bit) && receive_one(streams[i])) ++received;
    }
    if (late && bits) poller.ready.fetch_and(~bits);
    if (bits == 0) poller.sleep();
  }
}

/// `senders` streams to one sleeper; the rings never fill.
Result many_to_one(std::size_t senders, unsigned char messages, Mutation mutation, const Options& o) {
  return model::explore(o, [=](Run& run) {
    struct State {
      Poller poller;
      Stream streams[2];
    };
    auto& s = run.state<State>();
    s.poller.name(run, "armed", "ready");
    s.poller.mutation = mutation;
    for (std::size_t i = 0; i < senders; ++i) {
      s.streams[i].name(run);
      s.streams[i].bit = U32{1} << i;
      s.streams[i].reader = &s.poller;
      s.streams[i].mutation = mutation;
      run.thread("sender", [&s, i, messages] { send_all(s.streams[i], messages); });
    }
    run.thread("receiver", [&s, senders, messages, mutation] {
      receive_all(s.poller, s.streams, senders, static_cast<U32>(senders) * messages, mutation);
    });
  });
}

/// Serves one ready stream and does not come back, as a thread that has got work. An impatient one may also time out.
void serve_one(Poller& poller, Stream* streams, std::size_t count, bool impatient) {
  bool served = false, timed_out = false;
  while (!served && !timed_out) {
    U32 bits = poller.take_ready();
    if (bits == 0) {
      timed_out = !poller.sleep(impatient);
      if (timed_out && poller.mutation == Mutation::kNoScanAfterTimeout) return;
      bits = poller.take_ready();
    }
    for (std::size_t i = 0; i < count && !served; ++i) {
      if (!(bits & streams[i].bit)) continue;
      bits &= ~streams[i].bit;
      served = receive_one(streams[i]);
    }
    poller.give_back(bits);
  }
}

/// Two streams, one sender, two threads in one epoll: no message may wait for a thread that is at work, or gone, while
/// the other one sleeps.
Result one_to_two(Sleepers kind, bool impatient, Mutation mutation, const Options& o) {
  return model::explore(o, [=](Run& run) {
    struct State {
      Poller poller;
      Stream streams[2];
    };
    auto& s = run.state<State>();
    s.poller.name(run, "armed", "ready");
    s.poller.kind = kind;
    s.poller.mutation = mutation;
    for (std::size_t i = 0; i < 2; ++i) {
      s.streams[i].name(run);
      s.streams[i].bit = U32{1} << i;
      s.streams[i].reader = &s.poller;
    }
    run.thread("sender", [&s] {
      send_all(s.streams[0], 1);
      send_all(s.streams[1], 1);
    });
    run.thread("patient", [&s] { serve_one(s.poller, s.streams, 2, false); });
    run.thread("other", [&s, impatient] { serve_one(s.poller, s.streams, 2, impatient); });
    run.finally([&s, impatient] {
      const U32 received = s.streams[0].received + s.streams[1].received;
      model::check(received == 2 || (impatient && received == 1), "a message is lost");
    });
  });
}

/// One stream whose ring holds `capacity` messages: the producer sleeps for space, the consumer for messages.
Result full_ring(U32 capacity, unsigned char messages, Mutation mutation, const Options& o) {
  return model::explore(o, [=](Run& run) {
    struct State {
      Poller producer, consumer;
      Stream stream;
    };
    auto& s = run.state<State>();
    s.producer.name(run, "producer's armed", "producer's ready");
    s.consumer.name(run, "consumer's armed", "consumer's ready");
    s.stream.name(run);
    s.stream.capacity = capacity;
    s.stream.reader = &s.consumer;
    s.stream.writer = &s.producer;
    s.stream.mutation = s.producer.mutation = s.consumer.mutation = mutation;
    run.thread("producer", [&s, messages] { send_all(s.stream, messages); });
    run.thread("consumer", [&s, messages, mutation] { receive_all(s.consumer, &s.stream, 1, messages, mutation); });
  });
}

Options options(const std::string& name, Reduction reduction = Reduction::kStates) {
  Options o;
  o.name = name;
  o.reduction = reduction;
  return o;
}

/// Each broken protocol has a name of its own, to be replayed by.
std::string numbered(const char* name, Mutation mutation) {
  return name + std::to_string(static_cast<int>(mutation));
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

TEST_CASE("sleep: one sender, one sleeper") {
  for (auto reduction : {Reduction::kSleepSets, Reduction::kStates}) {
    require_right(many_to_one(1, 1, Mutation::kNone, options("1 to 1", reduction)));
    require_right(many_to_one(1, 2, Mutation::kNone, options("1 to 1, twice", reduction)));
    require_right(many_to_one(1, 3, Mutation::kNone, options("1 to 1, thrice", reduction)));
  }
}

TEST_CASE("sleep: two senders, one sleeper") {
  require_right(many_to_one(2, 1, Mutation::kNone, options("2 to 1", Reduction::kSleepSets)));
  require_right(many_to_one(2, 1, Mutation::kNone, options("2 to 1")));
  require_right(many_to_one(2, 2, Mutation::kNone, options("2 to 1, twice")));
}

TEST_CASE("sleep: one sender, two sleepers in one epoll") {
  require_right(one_to_two(Sleepers::kSeveral, false, Mutation::kNone, options("1 to 2")));
  require_right(one_to_two(Sleepers::kSeveral, true, Mutation::kNone, options("1 to 2 with a timeout")));
}

TEST_CASE("sleep: one sender, two sleepers in one epoll that arm and disarm under a lock") {
  require_right(one_to_two(Sleepers::kSeveralLocked, false, Mutation::kNone, options("1 to 2 locked")));
  require_right(one_to_two(Sleepers::kSeveralLocked, true, Mutation::kNone, options("1 to 2 locked with a timeout")));
  require_found(
      one_to_two(Sleepers::kSeveralLocked, false, Mutation::kNoLookAfterDisarm, options("last asked outside the lock")),
      "waits in epoll_wait");
}

TEST_CASE("sleep: a ring that fills") {
  for (auto reduction : {Reduction::kSleepSets, Reduction::kStates}) {
    require_right(full_ring(1, 2, Mutation::kNone, options("full ring", reduction)));
    require_right(full_ring(2, 3, Mutation::kNone, options("full ring of two", reduction)));
  }
  require_right(full_ring(1, 3, Mutation::kNone, options("full ring, twice")));
}

TEST_CASE("sleep: the protocol without one of its parts is found to be wrong") {
  const auto mutation = GENERATE(Mutation::kBitWithoutFence, Mutation::kArmedBeforeBit, Mutation::kTailAfterBit,
                                 Mutation::kArmWithoutFence, Mutation::kNoSecondLook, Mutation::kBitClearedLate);
  CAPTURE(static_cast<int>(mutation));
  require_found(many_to_one(1, 2, mutation, options(numbered("broken sleep ", mutation))),
                "deadlock: receiver waits in epoll_wait");
}

TEST_CASE("sleep: a tail published before its bytes is found to be wrong") {
  require_found(many_to_one(1, 2, Mutation::kTailBeforeCopy, options("broken tail")), "not sent next");
}

TEST_CASE("sleep: two in one epoll without one of the parts are found to be wrong") {
  const auto mutation = GENERATE(Mutation::kBlindDisarm, Mutation::kNoLookAfterDisarm, Mutation::kDisarmWithoutFence,
                                 Mutation::kNoRearm, Mutation::kLeftoverKept);
  CAPTURE(static_cast<int>(mutation));
  require_found(one_to_two(Sleepers::kSeveral, false, mutation, options(numbered("broken pair ", mutation))),
                "waits in epoll_wait");
}

TEST_CASE("sleep: a timeout that leaves without looking is found to be wrong") {
  require_found(one_to_two(Sleepers::kSeveral, true, Mutation::kNoScanAfterTimeout, options("broken timeout")),
                "waits in epoll_wait");
}

TEST_CASE("sleep: a full ring without one of the parts is found to be wrong") {
  const auto mutation =
      GENERATE(Mutation::kWantSpaceUnfenced, Mutation::kWantSpaceStored, Mutation::kNoSecondLookAtHead);
  CAPTURE(static_cast<int>(mutation));
  require_found(full_ring(1, 2, mutation, options(numbered("broken space ", mutation))),
                "deadlock: producer waits in epoll_wait");
}

}  // namespace
}  // namespace mpklink
