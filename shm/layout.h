// SPDX-License-Identifier: MIT
// What two processes share, byte by byte. Fixed offsets, fixed 64-byte lines (an ABI must not follow compiler flags),
// no pointers. README.md of this folder has the drawing.
//
// kLayoutVersion: bump it whenever an offset, a size, the meaning of a word or the order of a protocol step changes.
// Peers of different versions tell each other so, and stay on TCP (preload/messages.h, HelloMessage).
#pragma once
#include <cstddef>
#include <cstdint>

#include "shm/atomic.h"

namespace mpklink {

#ifndef MPKLINK_LAYOUT_VERSION  // tests build the library in another version
#define MPKLINK_LAYOUT_VERSION 5
#endif
constexpr std::uint32_t kLayoutVersion = MPKLINK_LAYOUT_VERSION;
constexpr std::uint64_t kChannelMagic = 0x31304e484b504d4c;  // "LMPKHN01"
constexpr std::uint64_t kBoardMagic = 0x31304452424b504d;    // "MPKBRD01"
constexpr std::size_t kPage = 4096;

// One direction of a stream. The producer writes its line, the consumer its own; want_space is the one word both write.
struct alignas(64) ProducerLine {
  Atomic<std::uint64_t> tail;        // bytes ever written to the ring
  Atomic<std::uint64_t> base;        // the position at data[0]; changes only while the ring is empty
  Atomic<std::uint64_t> switch_at;   // 0: not yet; n + 1: the ring starts after n bytes of TCP
  Atomic<std::uint32_t> want_space;  // 1: the producer found the ring full; the consumer takes the wish with exchange
  Atomic<std::uint32_t> returned;    // 1: the direction was frozen and all that was unread is on TCP now
  Atomic<std::uint32_t> look_back;   // 1: this side froze the OTHER direction; said here because the peer looks here anyway
};
struct alignas(64) ConsumerLine {
  Atomic<std::uint64_t> head;    // bytes ever taken from the ring (63 bits), and kFrozenBit
  Atomic<std::uint32_t> closed;  // ConsumerEnd, which only grows
};

enum ConsumerEnd : std::uint32_t {
  kOpen = 0,
  kShut = 1,    // its socket is shut down both ways: it reads what is in the ring, and TCP answers whatever follows with a reset
  kClosed = 2,  // its last descriptor was closed: nobody will read again, and the slot is free
};

// In the head word. Set once, by either side (fetch_or): nothing is taken from the ring any more, the unread bytes and all
// later ones travel over TCP. One word, so that "how far did the consumer get" and "it will not go on" are one answer.
constexpr std::uint64_t kFrozenBit = std::uint64_t{1} << 63;
constexpr std::uint64_t kPositionMask = kFrozenBit - 1;

struct Direction {
  ProducerLine producer;
  ConsumerLine consumer;
};

enum AcceptState : std::uint32_t { kOffered = 0, kAccepted = 1, kWithdrawn = 2 };

// Beginning of a channel. `side` 0 is the connector (it made the channel), 1 the acceptor.
struct ChannelHeader {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t slot;               // bit number of this stream on the board
  std::uint64_t ring_capacity;      // bytes per direction, a power of two
  alignas(64) Atomic<std::uint32_t> accept_state;  // AcceptState, moved from kOffered by compare-exchange only
  // Up to four pollers of side s to notify: 16-bit fields, poller number + 1, 0 = free. Written by side s only.
  struct alignas(64) Waiters {
    Atomic<std::uint64_t> ids;
  } waiters[2];
  Direction direction[2];  // direction[s]: bytes sent by side s
};
static_assert(offsetof(ChannelHeader, accept_state) == 64);
static_assert(offsetof(ChannelHeader, waiters) == 128);
static_assert(offsetof(ChannelHeader, direction) == 256);
static_assert(offsetof(ProducerLine, tail) == 0 && offsetof(ProducerLine, base) == 8);
static_assert(offsetof(ProducerLine, switch_at) == 16 && offsetof(ProducerLine, want_space) == 24);
static_assert(offsetof(ProducerLine, returned) == 28 && offsetof(ProducerLine, look_back) == 32);
static_assert(offsetof(ConsumerLine, head) == 0 && offsetof(ConsumerLine, closed) == 8);
static_assert(sizeof(Direction) == 128 && sizeof(ChannelHeader) == 512 && sizeof(ChannelHeader) <= kPage);

// Pollers 0 … kBitmapPollers-1 are epoll instances and have a ready bitmap; the others are blocked threads, which look
// at the few streams they wait for themselves.
constexpr std::uint32_t kPollers = 1024;
constexpr std::uint32_t kBitmapPollers = 64;
constexpr std::uint32_t kSlots = 16384;  // streams per pair of processes
constexpr std::uint32_t kLeafWords = kSlots / 64;
constexpr std::uint32_t kSummaryWords = kLeafWords / 64;

struct alignas(64) ArmedLine {
  Atomic<std::uint32_t> armed;
};
struct alignas(64) ReadyBitmap {
  Atomic<std::uint64_t> summary[kSummaryWords];
  Atomic<std::uint64_t> leaf[kLeafWords];
};
struct BoardSide {
  alignas(64) Atomic<std::uint32_t> cpu;  // where this side last ran, + 1
  ArmedLine armed[kPollers];
  ReadyBitmap ready[kBitmapPollers];
};
struct BoardHeader {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t reserved;
};
struct Board {
  alignas(kPage) BoardHeader header;
  alignas(kPage) BoardSide side[2];
};
static_assert(sizeof(ArmedLine) == 64 && sizeof(ReadyBitmap) == 2112);
static_assert(offsetof(BoardSide, armed) == 64 && offsetof(BoardSide, ready) == 64 + 64 * kPollers);
static_assert(offsetof(Board, side) == kPage);

constexpr std::size_t kMinRing = 8;
constexpr std::size_t kMaxRing = std::size_t{64} << 20;

constexpr bool valid_ring_capacity(std::uint64_t bytes) {
  return bytes >= kMinRing && bytes <= kMaxRing && (bytes & (bytes - 1)) == 0;
}
constexpr std::size_t round_to_page(std::size_t n) { return (n + kPage - 1) & ~(kPage - 1); }
// A channel's memfd: header and ring 0, of which small messages touch one page, then ring 1 from the next page on.
constexpr std::size_t ring_offset(std::uint64_t capacity, unsigned side) {
  return side == 0 ? sizeof(ChannelHeader) : round_to_page(sizeof(ChannelHeader) + capacity);
}
constexpr std::size_t channel_bytes(std::uint64_t capacity) { return ring_offset(capacity, 1) + round_to_page(capacity); }

}  // namespace mpklink
