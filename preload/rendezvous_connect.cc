// SPDX-License-Identifier: MIT
// The end that connected: it makes the channel.
#include <errno.h>

#include "preload/epoll_set.h"
#include "preload/messages.h"
#include "preload/pollers.h"
#include "preload/rendezvous_step.h"
#include "shm/segment.h"
#include "shm/stop_point.h"

namespace mpklink {
namespace {

constexpr std::uint64_t kPostponeNs = 1000000000;   // how long upgrades wait for a new pair before another is made
constexpr std::uint32_t kPostponedOperations = 8;
constexpr std::uint32_t kAwaitTriesMax = 16;
constexpr std::uint64_t kAwaitNs = 1000000000;  // a peer stopped for longer than this loses the stream to TCP

// A pair for the peer of this stream, with the board's memfd when it is new (*board_fd, -1 otherwise). pairs_lock held.
Pair* pair_for_offer(Stream* s, int* board_fd, bool* later, Reason* reason) {
  *board_fd = -1;
  *later = false;
  Pair* pair = find_pair(s, s->peer_id, 0, nullptr);
  if (pair != nullptr && !pair->established && pair->streams > 0 && now_ns() - pair->made_ns < kPostponeNs) {
    *later = true;  // its first stream is still on its way to be accepted
    return nullptr;
  }
  if (pair != nullptr && pair->established) return pair;
  collect_pairs();
  const SystemCalls& sys = real().sys;
  *board_fd = make_segment(sys, "mpklink-board", sizeof(Board), process().settings.backing);
  if (*board_fd < 0) {
    *reason = segment_reason(errno);
    return nullptr;
  }
  unsigned char* at = process().guard.map(sys, 0, *board_fd, sizeof(Board));
  pair = at == nullptr ? nullptr : make_pair(s, s->peer_id, 0, reinterpret_cast<Board*>(at));
  if (pair == nullptr) {
    *reason = at == nullptr ? segment_reason(errno) : Reason::kLimit;
    if (at != nullptr) process().guard.unmap(sys, at);
    quiet().close(*board_fd);
    *board_fd = -1;
    return nullptr;
  }
  pair->control_fd = s->rendezvous_fd;
  pair->nonce = random_id();
  pair->offering = true;
  const Gate gate;
  pair->board->header.magic = kBoardMagic;
  pair->board->header.version = kLayoutVersion;
  return pair;
}

// Makes the channel. Claimed. False with the reason.
bool make_channel(Stream* s, Pair* pair, int* channel_fd, Reason* reason) {
  const SystemCalls& sys = real().sys;
  const std::uint64_t capacity = process().settings.ring_bytes;
  *channel_fd = make_segment(sys, "mpklink-channel", channel_bytes(capacity), process().settings.backing);
  if (*channel_fd < 0) {
    *reason = segment_reason(errno);
    return false;
  }
  unsigned char* at = process().guard.map(sys, kPage, *channel_fd, channel_bytes(capacity));
  const int slot = at == nullptr ? -1 : take_slot(pair, s);
  if (slot < 0) {
    *reason = at == nullptr ? segment_reason(errno) : Reason::kLimit;
    if (at != nullptr) process().guard.unmap(sys, at);
    quiet().close(*channel_fd);
    return false;
  }
  ++pair->streams;
  attach_channel(s, at, capacity, static_cast<std::uint32_t>(slot), 0, pair);
  const Gate gate;
  s->channel->magic = kChannelMagic;
  s->channel->version = kLayoutVersion;
  s->channel->slot = s->slot;
  s->channel->ring_capacity = capacity;
  return true;
}

bool send_offer(Stream* s, int channel_fd, int board_fd) {
  OfferMessage offer = {};
  offer.type = MessageType::kOffer;
  offer.version = kLayoutVersion;
  offer.process = own_id();
  offer.capacity = s->capacity;
  offer.slot = s->slot;
  offer.new_pair = board_fd >= 0 ? 1 : 0;
  offer.pair_nonce = s->pair->nonce;
  int fds[kMessageFdsMax] = {channel_fd, board_fd};
  int count = board_fd >= 0 ? 2 : 1;
  if (offer.new_pair) {
    Pair* pair = s->pair;
    const LockGuard guard(pair->lock);
    offer.bell_count = pair->offer_bell_count;
    for (std::uint32_t i = 0; i < offer.bell_count; ++i) {
      offer.bells[i] = pair->offer_bells[i];
      fds[count++] = bell_of(offer.bells[i]);
    }
    pair->offering = false;  // the offer opens the control channel: later bells go there
  }
  return send_message(s->rendezvous_fd, &offer, sizeof offer, fds, count);
}

}  // namespace

std::uint32_t layout_version() { return kLayoutVersion; }

// Nobody there is the usual case of a peer without the library, tried some ten times a connection: as few calls as it takes.
void connector_meet(int fd, Stream* s, const Addresses& addresses) {
  s->rendezvous_step = kMeet;
  sockaddr_un name = {};
  const socklen_t size = rendezvous_name(addresses, true, &name);
  const int visitor = unix_socket();
  if (visitor < 0) {
    give_up(s, reason_of(errno));
    return;
  }
  if (quiet().connect(visitor, reinterpret_cast<const sockaddr*>(&name), size) != 0) {
    const int error = errno;
    quiet().close(visitor);
    if (error == ECONNREFUSED || error == EAGAIN) {
      retry_or_give_up(s, Reason::kPeerAbsent);
    } else {
      give_up(s, reason_of(error));
    }
    return;
  }
  s->rendezvous_fd = hide_fd(visitor);
  if (s->rendezvous_fd < 0) {
    give_up(s, Reason::kNoDescriptors);
    return;
  }
  Reason why = Reason::kPeerUid;
  if (!peer_allowed(fd, addresses, s->rendezvous_fd, s, &why)) {
    give_up(s, why);
    return;
  }
  STOP_POINT("peer-met");
  s->rendezvous_step = kHello;
  s->tries = 0;
  next_try_in(s, 1);
}

void connector_meet_again(int fd, Stream* s) {
  Addresses addresses;
  if (addresses_of(fd, &addresses)) {
    connector_meet(fd, s, addresses);
  } else {
    give_up(s, Reason::kPeerAbsent);
  }
}

void connector_hello(Stream* s) {
  HelloMessage hello = {};
  int none[kMessageFdsMax];
  int count = 0;
  if (!receive_message(s->rendezvous_fd, &hello, sizeof hello, none, &count)) {
    if (errno == EAGAIN) {
      retry_or_give_up(s, Reason::kPeerAbsent);
    } else {
      give_up(s, errno == EPROTO ? Reason::kPeerProtocol : Reason::kShortLived);
    }
    return;
  }
  close_all(none, count);
  if (count != 0 || hello.type != MessageType::kHello) {
    give_up(s, Reason::kPeerProtocol);
    return;
  }
  if (hello.version != kLayoutVersion) {
    send_hello(s->rendezvous_fd);  // so that it knows, too
    give_up(s, Reason::kPeerVersion);
    return;
  }
  STOP_POINT("hello-read");
  s->peer_id = hello.process;
  s->rendezvous_step = kOffer;
  s->tries = 0;
}

void connector_offer(int fd, Stream* s) {
  if (!claim_for_channel(s)) return;
  // Made by socket(): the hooks have seen all that was set on it, unless another process had it, too.
  const bool known = !s->forked.load_relaxed() && s->holders == nullptr;  // relaxed: both locks are held
  Reason reason = Reason::kSystem;
  if ((!known && !options_allow(fd, &reason)) || !counters_agree(fd, s, &reason)) {
    settle_plain(s, reason);
    return;
  }
  int board_fd = -1;
  int channel_fd = -1;
  bool later = false;
  bool made = false;
  {
    const LockGuard guard(pairs_lock());
    Pair* pair = pair_for_offer(s, &board_fd, &later, &reason);
    made = pair != nullptr && make_channel(s, pair, &channel_fd, &reason);
    if (pair != nullptr && !made && board_fd >= 0) {
      pair->control_fd = -1;
      destroy_pair(pair);
    }
  }
  if (!made) {
    if (board_fd >= 0) quiet().close(board_fd);
    if (later) {
      next_try_in(s, kPostponedOperations);
      settle(s, State::kCandidate);
    } else {
      settle_plain(s, reason);
    }
    return;
  }
  STOP_POINT("channel-made");
  if (known) {
    read_flags(fd, s);
  } else {
    read_options(fd, s);
  }
  const bool managed_all = manage_members(s);
  const bool sent = managed_all && send_offer(s, channel_fd, board_fd);
  const int error = errno;
  quiet().close(channel_fd);
  if (board_fd >= 0) quiet().close(board_fd);
  if (!sent) {
    abandon_offer(s, board_fd >= 0, managed_all ? reason_of(error) : Reason::kLimit);
    return;
  }
  STOP_POINT("offer-sent");
  if (board_fd >= 0) s->rendezvous_fd = dup_hidden(s->rendezvous_fd);  // the pair keeps the socket as its control channel
  s->rendezvous_step = kAwaitAccept;
  s->tries = 0;
  next_try_in(s, 1);
  settle(s, State::kOffered);
}

void connector_await(int fd, Stream* s) {
  if (!pin(fd, s)) return;
  bool accepted = false;
  {
    const Gate gate;
    accepted = s->channel->accept_state.load_acquire() == kAccepted;  // SYNC: accepted
  }
  if (accepted) STOP_POINT("accepted-seen");
  if (accepted) became_shared(s);
  unpin(s);
  if (accepted) {
    drop_socket(s);
    return;
  }
  char byte = 0;
  const bool gone = s->rendezvous_fd < 0 ||
                    quiet().recv(s->rendezvous_fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
  const std::uint64_t now = now_ns();
  if (s->tries++ == 0) s->first_try_ns = now;
  if (gone || (s->tries >= kAwaitTriesMax && now - s->first_try_ns > kAwaitNs)) {
    // It has declined, or has not answered for long.
    withdraw_offer(s, gone ? Reason::kShortLived : Reason::kPeerAbsent);
    return;
  }
  next_try_in(s, s->tries < kAwaitTriesMax ? s->tries : kAwaitTriesMax);
}

}  // namespace mpklink
