// SPDX-License-Identifier: MIT
// The end that accepted: it waits under the rendezvous name and takes the offer.
#include <errno.h>
#include <sys/socket.h>

#include "preload/epoll_set.h"
#include "preload/messages.h"
#include "preload/pollers.h"
#include "preload/rendezvous_step.h"
#include "shm/segment.h"
#include "shm/stop_point.h"

namespace mpklink {
namespace {

// The acceptor's pair for an offer. pairs_lock held. Null with the reason.
Pair* pair_of_offer(Stream* s, const OfferMessage& offer, int board_fd, int* bell_fds, Reason* reason) {
  if (!offer.new_pair) {
    // By the pair's secret: a process id is said to everybody who asks, and two processes may have several pairs.
    Pair* pair = find_pair(s, offer.process, 1, &offer.pair_nonce);
    if (pair == nullptr) *reason = Reason::kPeerProtocol;
    return pair;
  }
  collect_pairs();
  const SystemCalls& sys = real().sys;
  if (!segment_is_sound(sys, board_fd, sizeof(Board), process().settings.backing)) {
    *reason = segment_is_sound(sys, board_fd, sizeof(Board)) ? Reason::kNoSecret : Reason::kPeerProtocol;
    return nullptr;
  }
  unsigned char* at = process().guard.map(sys, 0, board_fd, sizeof(Board));
  if (at == nullptr) {
    *reason = segment_reason(errno);
    return nullptr;
  }
  auto* board = reinterpret_cast<Board*>(at);
  bool sound = false;
  {
    const Gate gate;
    sound = board->header.magic == kBoardMagic && board->header.version == kLayoutVersion;
  }
  Pair* pair = sound ? make_pair(s, offer.process, 1, board) : nullptr;
  if (pair == nullptr) {
    *reason = sound ? Reason::kLimit : Reason::kPeerProtocol;
    process().guard.unmap(sys, at);
    return nullptr;
  }
  pair->control_fd = s->rendezvous_fd;
  pair->nonce = offer.pair_nonce;
  for (std::uint32_t i = 0; i < offer.bell_count; ++i) {
    keep_peer_bell(pair, offer.bells[i], bell_fds[i]);
    bell_fds[i] = -1;
  }
  return pair;
}

bool offer_is_sane(const OfferMessage& offer, int fds) {
  return offer.type == MessageType::kOffer && offer.version == kLayoutVersion && valid_ring_capacity(offer.capacity) &&
         offer.slot < kSlots && offer.new_pair <= 1 && offer.bell_count <= (offer.new_pair ? kOfferBellsMax : 0) &&
         fds == static_cast<int>(1 + offer.new_pair + offer.bell_count);
}

// The connector hands out the numbers and may reuse one as soon as it has closed, which it says in the channel; until then
// the number is that stream's. pairs_lock held, so that the stream's channel stays mapped.
bool slot_is_free(Pair* pair, std::uint32_t slot) {
  auto* old = reinterpret_cast<Stream*>(pair->stream_of_slot[slot].load_acquire());
  if (old == nullptr) return true;
  old->pins.fetch_add(1);                        // SYNC: pins, before the look at the channel
  bool closed = true;
  if (old->pair == pair && old->slot == slot && managed(state_of(old)) && old->channel != nullptr) {
    const Gate gate;
    closed = outgoing(old).consumer.closed.load_acquire() == kClosed;  // SYNC: closed
  }
  unpin(old);
  return closed;
}

// Maps the offered channel. Claimed, pairs_lock held.
bool map_channel(Stream* s, const OfferMessage& offer, int channel_fd, Pair* pair, Reason* reason) {
  const SystemCalls& sys = real().sys;
  const std::size_t bytes = channel_bytes(offer.capacity);
  *reason = Reason::kPeerProtocol;
  if (!slot_is_free(pair, offer.slot) || !segment_is_sound(sys, channel_fd, bytes, process().settings.backing)) return false;
  unsigned char* at = process().guard.map(sys, kPage, channel_fd, bytes);
  if (at == nullptr) {
    *reason = segment_reason(errno);
    return false;
  }
  ++pair->streams;
  pair->stream_of_slot[offer.slot].store_release(reinterpret_cast<std::uintptr_t>(s));
  attach_channel(s, at, offer.capacity, offer.slot, 1, pair);
  return true;
}

// The last word: from here on the connector may switch its direction.
bool say_accepted(Stream* s) {
  const Gate gate;
  std::uint32_t expected = kOffered;
  return s->channel->accept_state.compare_exchange(expected, kAccepted);  // SYNC: accepted
}

void take_offer(int fd, Stream* s, const OfferMessage& offer, int* fds) {
  Reason reason = Reason::kSystem;
  if (!counters_agree(fd, s, &reason)) {
    settle_plain(s, reason);
    return;
  }
  bool mapped = false;
  {
    const LockGuard guard(pairs_lock());
    Pair* pair = pair_of_offer(s, offer, fds[1], fds + 2, &reason);
    mapped = pair != nullptr && map_channel(s, offer, fds[0], pair, &reason);
    if (pair != nullptr && !mapped && offer.new_pair) {
      pair->control_fd = -1;
      destroy_pair(pair);
    }
  }
  if (!mapped) {
    settle_plain(s, reason);
    return;
  }
  STOP_POINT("channel-mapped");
  read_options(fd, s);
  const bool managed_all = manage_members(s);
  if (!managed_all || !say_accepted(s)) {
    // It has closed, or lost its patience.
    abandon_offer(s, offer.new_pair != 0, managed_all ? Reason::kShortLived : Reason::kLimit);
    return;
  }
  STOP_POINT("accepted-said");
  if (offer.new_pair) {
    s->rendezvous_fd = -1;  // the pair's control channel now
  } else {
    drop_socket(s);
  }
  s->state.store_release(static_cast<std::uint32_t>(State::kOffered));
  became_shared(s);
  s->receive_lock.unlock();
  s->send_lock.unlock();
}

}  // namespace

bool send_hello(int socket) {
  HelloMessage hello = {};
  hello.type = MessageType::kHello;
  hello.version = kLayoutVersion;
  hello.process = own_id();
  return send_message(socket, &hello, sizeof hello, nullptr, 0);
}

void acceptor_listen(Stream* s, const Addresses& addresses) {
  sockaddr_un name = {};
  const socklen_t size = rendezvous_name(addresses, false, &name);
  const int host = unix_socket();
  s->rendezvous_fd = host < 0 ? -1 : hide_fd(host);
  const int fd = s->rendezvous_fd;
  if (fd < 0) {
    give_up(s, reason_of(errno));
    return;
  }
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&name), size) != 0 || real().listen(fd, 1) != 0) {
    give_up(s, errno == EADDRINUSE ? Reason::kNameTaken : reason_of(errno));
    return;
  }
  STOP_POINT("listening");
  s->rendezvous_step = kAccept;
  s->tries = 0;
  next_try_in(s, 1);
}

void acceptor_accept(int fd, Stream* s) {
  const int accepted = quiet().accept4(s->rendezvous_fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (accepted < 0) {
    const int error = errno;
    if (error == EAGAIN || error == ECONNABORTED) {
      retry_or_give_up(s, Reason::kPeerAbsent);
    } else {
      give_up(s, reason_of(error));
    }
    return;
  }
  const int hidden = hide_fd(accepted);
  if (hidden < 0) {
    give_up(s, Reason::kNoDescriptors);
    return;
  }
  Addresses addresses;
  if (!addresses_of(fd, &addresses)) {
    close_hidden(hidden);
    give_up(s, Reason::kPeerAbsent);
    return;
  }
  Reason why = Reason::kPeerUid;
  if (!peer_allowed(fd, addresses, hidden, s, &why)) {
    close_hidden(hidden);
    if (why == Reason::kRule) return give_up(s, why);
    // A stranger got there first; the true peer may still come.
    s->refused = static_cast<std::uint32_t>(why) + 1;
    retry_or_give_up(s, why);
    return;
  }
  if (!options_allow(fd, &why)) {
    close_hidden(hidden);
    give_up(s, why);
    return;
  }
  drop_socket(s);  // the name is free again; one connection is all it was for
  s->rendezvous_fd = hidden;
  if (!send_hello(hidden)) {
    give_up(s, reason_of(errno));
    return;
  }
  STOP_POINT("hello-sent");
  s->rendezvous_step = kTake;
  s->tries = 0;
  next_try_in(s, 1);
}

void acceptor_take(int fd, Stream* s) {
  // Claim before the message is taken from the socket: it could not be put back.
  if (!claim_for_channel(s)) return;
  OfferMessage offer = {};
  int fds[kMessageFdsMax];
  for (int& one : fds) one = -1;
  int count = 0;
  if (!receive_message(s->rendezvous_fd, &offer, sizeof offer, fds, &count)) {
    const int error = errno;
    settle(s, State::kCandidate);
    if (error == EAGAIN) {
      retry_or_give_up(s, Reason::kPeerAbsent);
    } else {
      const bool other_version = offer.type == MessageType::kHello && offer.version != kLayoutVersion;
      give_up(s, error != EPROTO ? Reason::kShortLived : other_version ? Reason::kPeerVersion : Reason::kPeerProtocol);
    }
    return;
  }
  STOP_POINT("offer-taken");
  if (offer_is_sane(offer, count)) {
    take_offer(fd, s, offer, fds);
  } else {
    settle_plain(s, Reason::kPeerProtocol);
  }
  close_all(fds, count);
}

}  // namespace mpklink
