// SPDX-License-Identifier: MIT
// What goes over the Unix sockets of the rendezvous: fixed-size messages, one per datagram (SOCK_SEQPACKET).
#pragma once
#include <cstddef>
#include <cstdint>

#include "preload/process.h"

namespace mpklink {

enum class MessageType : std::uint32_t { kHello = 1, kOffer = 2, kBell = 3 };

// acceptor -> connector; back, when that has another version: what follows would not be understood. Its bytes, and the name under which
// it is said, are the same in all versions, for ever.
struct HelloMessage {
  MessageType type;
  std::uint32_t version;
  ProcessId process;
};
constexpr std::uint32_t kOfferBellsMax = 8;

struct OfferMessage {  // connector -> acceptor, with the channel's memfd; for a new pair also its board's and bells
  MessageType type;
  std::uint32_t version;
  ProcessId process;
  std::uint64_t capacity;
  std::uint32_t slot;
  std::uint32_t new_pair;    // 1: a board comes along and this connection becomes the pair's control channel
  ProcessId pair_nonce;      // the pair's secret between the two processes
  std::uint32_t bell_count;  // bells that come along, behind the memfds: they must be there before anything is accepted
  std::uint32_t bells[kOfferBellsMax];  // the pollers they belong to
};
struct BellMessage {  // either way on the control channel, with one eventfd
  MessageType type;
  std::uint32_t poller;
};

constexpr int kMessageFdsMax = 2 + kOfferBellsMax;

// Non-blocking. False: not sent (errno), nothing half-sent.
bool send_message(int socket, const void* message, std::size_t size, const int* fds, int count);
// Non-blocking. False with errno: EAGAIN nothing there yet; EPROTO wrong size, truncated or wrong number of descriptors
// (all received ones closed); ECONNRESET the peer is gone. `fds` has room for kMessageFdsMax; on success *count are in it and
// the caller's.
bool receive_message(int socket, void* message, std::size_t size, int (&fds)[kMessageFdsMax], int* count);
// Of what a peer has sent: whatever the descriptors are, no close waits (as one of a socket that lingers would).
void close_all(const int* fds, int count);

}  // namespace mpklink
