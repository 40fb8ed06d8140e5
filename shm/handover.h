// SPDX-License-Identifier: MIT
// Where each byte of one direction travels: TCP first, from an agreed offset on the ring, and, once it was frozen, TCP
// again. Pure decisions; the caller moves the bytes and holds the direction's lock.
//
// Invariant (switch): switch_at = T is published before any byte at offset >= T' is sent, where T' < T is the count of TCP
//   bytes sent so far; at least one byte goes over TCP after the publication, and none beyond T unless the ring was frozen.
//   So a receiver asleep in the kernel is woken by a TCP byte, and a receiver that has taken exactly T bytes knows that the
//   ring comes next.
// Invariant (freeze): either side sets kFrozenBit in the head word, at any time. From then on the receiver takes nothing from
//   the ring, and the sender sends the bytes [head, tail) over TCP before any other. So TCP carries what follows the last
//   byte taken from the ring, in order, whoever reads it: that is what the kernel needs to go on without us.
//   The sender looks at the bit before it writes, and again behind the fence of its publish: a freezer sets the bit (a
//   fence), then rings; so a sender in the middle of a write sees the bit, and one asleep is woken (shm/ready.h).
// Invariant (shut): the receiver sets closed = kShut (never back) once its socket is shut down both ways, not earlier: what TCP still accepted
//   of a sender that had seen it would overtake the ring's bytes. A sender that sees it puts nothing more into the ring and gives nothing of
//   it back; what it gave back just before TCP may have refused, so the receiver counts what arrived and reads the rest of the ring. It
//   tells an end as final only after a look at the ring that followed its seeing kShut. A sender that looked just before and publishes just
//   after loses those bytes, as TCP refuses what arrives behind the shutdown. A peer that writes the word falsely loses its own bytes only.
#pragma once
#include <cstdint>

#include "shm/layout.h"
#include "shm/stop_point.h"
#include "shm/untrusted.h"

namespace mpklink {

enum class Path : std::uint32_t {
  kTcp = 0,       // not switched: the kernel carries the bytes
  kDraining = 1,  // sender only: switched, but bytes below switch_at have still to go over TCP
  kRing = 2,
  kReturning = 3,  // sender only: frozen, and bytes of the ring have still to go back over TCP
  kTcpAgain = 4,   // frozen, and nothing of the ring is left
};

// Words private to the sending process (and its forked children).
struct SendState {
  Atomic<std::uint32_t> path;      // Path
  Atomic<std::uint64_t> tcp_sent;  // bytes given to TCP since the connection began
  Atomic<std::uint64_t> tcp_left;  // kDraining: bytes that must still go over TCP
  Atomic<std::uint64_t> return_at;  // kReturning: ring position of the next byte to give back
};
struct ReceiveState {
  Atomic<std::uint32_t> path;
  Atomic<std::uint64_t> tcp_received;
};

// How many bytes the sender lets follow the publication over TCP: one is enough to wake; a small message goes whole.
constexpr std::uint64_t kSwitchTail = 16384;

// The sender wants to send `len` > 0 bytes and the peer has accepted: publishes the offset.
inline void begin_switch(SendState* state, ProducerLine* line, std::uint64_t len) {
  const std::uint64_t over_tcp = len < kSwitchTail ? len : kSwitchTail;
  // SYNC: switch_at. Release, and before the send call that carries the bytes below it.
  line->switch_at.store_release(state->tcp_sent.load_relaxed() + over_tcp + 1);
  STOP_POINT("switch-published");
  state->tcp_left.store_relaxed(over_tcp);
  state->path.store_relaxed(static_cast<std::uint32_t>(Path::kDraining));
}

// `n` bytes went over TCP.
inline void tcp_sent(SendState* state, std::uint64_t n) {
  state->tcp_sent.store_relaxed(state->tcp_sent.load_relaxed() + n);
  if (static_cast<Path>(state->path.load_relaxed()) != Path::kDraining) return;
  const std::uint64_t left = state->tcp_left.load_relaxed() - n;
  state->tcp_left.store_relaxed(left);
  if (left == 0) state->path.store_relaxed(static_cast<std::uint32_t>(Path::kRing));
  STOP_POINT("switch-drained");
}

// The receiver's path. `lied`: the offset is in the past and nothing was frozen.
inline Path receive_path(ReceiveState* state, const Direction& direction, bool* lied) {
  const auto path = static_cast<Path>(state->path.load_relaxed());
  if (path == Path::kTcpAgain) return path;
  const std::uint64_t received = state->tcp_received.load_relaxed();
  // SYNC: switch_at. Loaded after the recv call that took the last bytes, which the kernel orders behind the publication.
  const Untrusted<std::uint64_t> word(path == Path::kRing ? 0 : direction.producer.switch_at.load_acquire());
  // SYNC: frozen. Behind that: bytes beyond switch_at come over TCP only after the bit was set.
  if (direction.consumer.head.load_acquire() & kFrozenBit) {
    state->path.store_relaxed(static_cast<std::uint32_t>(Path::kTcpAgain));
    return Path::kTcpAgain;
  }
  if (path == Path::kRing) return path;
  std::uint64_t at = 0;
  if (!word.checked([&](std::uint64_t v) { return v == 0 || v - 1 >= received; }, &at)) {
    *lied = true;
    return Path::kTcp;
  }
  if (at == 0 || at - 1 != received) return Path::kTcp;
  STOP_POINT("switch-seen");
  state->path.store_relaxed(static_cast<std::uint32_t>(Path::kRing));
  return Path::kRing;
}

// Sets the bit; for either side, under its own lock of the direction.
inline void freeze(ConsumerLine* line) {
  line->head.fetch_or(kFrozenBit);  // SYNC: frozen
  STOP_POINT("frozen");
}

// The sender has seen the bit (`head`: where the unread bytes begin, checked). True: there are bytes to give back.
inline bool begin_return(SendState* state, ProducerLine* line, std::uint64_t head, std::uint64_t unread) {
  const auto path = static_cast<Path>(state->path.load_relaxed());
  if (path == Path::kReturning) return true;
  if (path == Path::kTcpAgain) return false;
  const bool any = path == Path::kRing && unread > 0;
  state->return_at.store_relaxed(head);
  state->path.store_relaxed(static_cast<std::uint32_t>(any ? Path::kReturning : Path::kTcpAgain));
  if (!any) line->returned.store_release(1);  // SYNC: returned
  return any;
}

// `n` more bytes of the ring went over TCP; `tail`: where they end. `held`: TCP holds them until the FIN, which is the moment of returned().
inline void gave_back(SendState* state, ProducerLine* line, std::uint64_t n, std::uint64_t tail, bool held = false) {
  const std::uint64_t at = state->return_at.load_relaxed() + n;
  state->return_at.store_relaxed(at);
  if (at != tail) return;
  state->path.store_relaxed(static_cast<std::uint32_t>(Path::kTcpAgain));
  if (!held) line->returned.store_release(1);  // SYNC: returned
}

// A peer whose socket is shut down both ways finds what is in the ring there, and over TCP nothing gets through to it. So what is unread
// stays, what follows is TCP's to refuse, and order between the two cannot matter. True: that is how it is.
inline bool stop_at_shut_peer(SendState* state, const Direction& direction) {
  const auto path = static_cast<Path>(state->path.load_relaxed());
  if (path != Path::kRing && path != Path::kReturning) return false;
  if (direction.consumer.closed.load_acquire() != kShut) return false;  // SYNC: closed
  state->path.store_relaxed(static_cast<std::uint32_t>(Path::kTcpAgain));
  return true;
}

// The FIN is on its way, and what was held with it.
inline void returned_with_fin(const SendState& state, ProducerLine* line, std::uint64_t tail) {
  const bool all = static_cast<Path>(state.path.load_relaxed()) == Path::kTcpAgain && state.return_at.load_relaxed() == tail;
  if (all) line->returned.store_release(1);  // SYNC: returned
}

}  // namespace mpklink
