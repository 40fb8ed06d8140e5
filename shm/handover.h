// SPDX-License-Identifier: MIT
// Where each byte of one direction travels: TCP first, from an agreed offset on the ring, and, once it was revoked, TCP
// again. Pure decisions; the caller moves the bytes and holds the direction's lock.
//
// Invariant (switch): switch_at = T is published before any byte at offset >= T' is sent, where T' < T is the count of TCP
//   bytes sent so far; at least one byte goes over TCP after the publication, and none beyond T. So a receiver asleep in
//   the kernel is woken by a TCP byte, and a receiver that has taken exactly T bytes knows that the ring comes next.
// Invariant (end of ring): ring_end = E is published after the last ring byte; the next byte of the stream is on TCP.
#pragma once
#include <cstdint>

#include "shm/layout.h"
#include "shm/untrusted.h"

namespace mpklink {

enum class Path : std::uint32_t {
  kTcp = 0,       // not switched: the kernel carries the bytes
  kDraining = 1,  // sender only: switched, but bytes below switch_at have still to go over TCP
  kRing = 2,
  kTcpAgain = 3,  // the ring has ended; for ever
};

// Words private to the sending process (and its forked children).
struct SendState {
  Atomic<std::uint32_t> path;      // Path
  Atomic<std::uint64_t> tcp_sent;  // bytes given to TCP since the connection began
  Atomic<std::uint64_t> tcp_left;  // kDraining: bytes that must still go over TCP
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
}

// The receiver, before it reads from TCP: has it taken all that comes that way? `lied`: the offset is in the past.
inline Path receive_path(ReceiveState* state, const ProducerLine& peer, bool* lied) {
  const auto path = static_cast<Path>(state->path.load_relaxed());
  if (path != Path::kTcp) return path;
  const std::uint64_t received = state->tcp_received.load_relaxed();
  // SYNC: switch_at. Loaded after the recv call that took the last bytes, which the kernel orders behind the publication.
  const Untrusted<std::uint64_t> word(peer.switch_at.load_acquire());
  std::uint64_t at = 0;
  if (!word.checked([&](std::uint64_t v) { return v == 0 || v - 1 >= received; }, &at)) {
    *lied = true;
    return Path::kTcp;
  }
  if (at == 0 || at - 1 != received) return Path::kTcp;
  state->path.store_relaxed(static_cast<std::uint32_t>(Path::kRing));
  return Path::kRing;
}

// The sender leaves the ring for ever; `ring_tail` = bytes it ever put there.
inline void end_ring(SendState* state, ProducerLine* line, std::uint64_t ring_tail) {
  line->ring_end.store_release(ring_tail + 1);  // SYNC: ring_end, before the next TCP byte
  state->path.store_relaxed(static_cast<std::uint32_t>(Path::kTcpAgain));
}

// The receiver, when its ring is empty at `ring_head`: true once the sender has left it.
inline bool ring_ended(ReceiveState* state, const ProducerLine& peer, std::uint64_t ring_head) {
  const std::uint64_t end = peer.ring_end.load_acquire();  // SYNC: ring_end
  if (end == 0 || end - 1 != ring_head) return false;
  state->path.store_relaxed(static_cast<std::uint32_t>(Path::kTcpAgain));
  return true;
}

}  // namespace mpklink
