// SPDX-License-Identifier: MIT
#include "preload/rendezvous.h"

#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/random.h>
#include <sys/un.h>

#include "preload/eligibility.h"
#include "preload/epoll_set.h"
#include "preload/fd_table.h"
#include "preload/holders.h"
#include "preload/identity.h"
#include "preload/log.h"
#include "preload/messages.h"
#include "preload/pair.h"
#include "preload/pollers.h"
#include "shm/segment.h"

namespace mpklink {
namespace {

// What the next step is. The connector: meet, hello, offer. The acceptor: listen, accept, take.
enum Step : std::uint8_t { kMeet, kHello, kOffer, kAwaitAccept, kListen, kAccept, kTake };

constexpr std::uint32_t kTriesMax = 7;          // 2, 4, 8, 16, 16 … operations apart, and over at least kTriesNs
constexpr std::uint32_t kDistanceMax = 16;      // … to meet
constexpr std::uint32_t kDistanceMet = 2;       // … once the peer is known to be there
constexpr std::uint64_t kTriesNs = 200000000;
constexpr std::uint32_t kPostponeMax = 64;      // upgrades that wait for a new pair before another pair is made
constexpr std::uint32_t kAwaitTriesMax = 16;
constexpr std::uint32_t kReturnsMax = 8;      // a stream that keeps coming back is not worth another ring
constexpr std::uint32_t kAgainAfter = 16;     // operations on TCP before the next upgrade, doubled each time
constexpr std::uint64_t kAwaitNs = 1000000000;   // a peer stopped for longer than this loses the stream to TCP

void next_try_in(Stream* s, std::uint32_t operations) {
  s->next_try.store_relaxed(s->operations.load_relaxed() + operations);  // relaxed: under the step lock
}

void drop_socket(Stream* s) {
  close_hidden(s->rendezvous_fd);
  s->rendezvous_fd = -1;
}

void give_up(Stream* s, Reason reason) {
  drop_socket(s);
  make_plain(s, reason);
}

// What went over TCP while the stream was shared was added to the process's counters at once; from here on the stream keeps
// the whole count itself, as counters_agree compares it with the kernel's.
void take_over_counts(Atomic<std::uint64_t>* mine, const Atomic<std::uint64_t>& total, Atomic<std::uint64_t>* counter) {
  const std::uint64_t sum = total.load_relaxed();  // relaxed: both locks are held
  counter->fetch_add(mine->exchange(sum) - sum);
}

// Nobody there, or nothing arrived yet: again later, with growing distance. Enough tries must fail over enough time: a
// stream in full flow makes its operations faster than a busy machine gives the peer a turn.
void retry_or_give_up(Stream* s, Reason reason) {
  const std::uint64_t now = now_ns();
  if (s->tries == 0) s->first_try_ns = now;
  if (s->tries < kTriesMax) ++s->tries;
  if (s->tries == kTriesMax && now - s->first_try_ns > kTriesNs) {
    give_up(s, reason);
    return;
  }
  const std::uint32_t most = s->rendezvous_step == kHello || s->rendezvous_step == kTake ? kDistanceMet : kDistanceMax;
  const std::uint32_t distance = 1u << s->tries;
  next_try_in(s, distance < most ? distance : most);
}

Reason reason_of(int error) {
  if (error == EMFILE || error == ENFILE) return Reason::kNoDescriptors;
  if (error == EPIPE || error == ECONNRESET || error == ENOTCONN) return Reason::kShortLived;  // the peer has closed
  if (error == ENOMEM || error == ENOSPC || error == EFBIG) return Reason::kNoMemory;
  return Reason::kSystem;
}

ProcessId random_id() {
  ProcessId id;
  if (quiet().getrandom(&id, sizeof id, GRND_NONBLOCK) != sizeof id) {
    // No entropy yet at boot: unique is enough between processes that prove their identity by other means.
    id.word[1] = process().pid.load_relaxed();  // relaxed: changes by fork only
    id.word[0] = now_ns();
  }
  id.word[0] |= 1;  // never zero: that is "none yet"
  return id;
}

ProcessId own_id() {
  const LockGuard guard(process().setup_lock);
  ProcessId& id = process().id;
  if (id.word[0] == 0) id = random_id();
  return id;
}

int unix_socket(Stream* s) {
  const int fd = real().socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  s->rendezvous_fd = fd < 0 ? -1 : hide_fd(fd);
  return s->rendezvous_fd;
}

// The uid that SO_PEERCRED shows must be the owner of the other end of the TCP connection.
bool peer_allowed(const Addresses& addresses, int socket, Stream* s) {
  const Settings& settings = process().settings;
  ucred creds = {};
  socklen_t size = sizeof creds;
  if (real().getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &creds, &size) != 0) return false;
  s->peer_uid = creds.uid;
  if (settings.peers == PeerPolicy::kAny) return true;
  if (!uid_is_somebody(creds.uid)) return false;
  TcpEnd end = {};
  const int found = query_peer(addresses.local, addresses.peer, &end);
  log(LogLevel::kDebug, FMT_COMPILE("the peer shows uid {}; the kernel says {} (found {})"), creds.uid, end.uid, found);
  if (found == 1 && end.uid != creds.uid) return false;
  if (found == 0) return false;
  const bool same = creds.uid == ::geteuid();
  switch (settings.peers) {
    case PeerPolicy::kSameUid: return same;
    case PeerPolicy::kList:
      for (std::size_t i = 0; i < settings.peer_uid_count; ++i) {
        if (settings.peer_uids[i] == creds.uid) return true;
      }
      return false;
    case PeerPolicy::kVerified: return found == 1 || same;
    case PeerPolicy::kAny: break;
  }
  return true;
}

// ------------------------------------------------------------------ claiming: nobody blocks in the kernel from here on

// Takes both locks and closes the kernel path. False: some thread is still inside a kernel call on the socket. The stream
// then stays in kSettling, where operations no longer block inside such calls, so that a later claim finds none.
bool claim(Stream* s) {
  if (!s->send_lock.try_lock()) return false;
  if (!s->receive_lock.try_lock()) {
    s->send_lock.unlock();
    return false;
  }
  auto expected = static_cast<std::uint32_t>(State::kCandidate);
  const auto settling = static_cast<std::uint32_t>(State::kSettling);
  const bool free = s->channel == nullptr;  // else an earlier one is there that some thread still has pinned
  if (free && (s->state.compare_exchange(expected, settling) || expected == settling)) {
    // SYNC: kernel_calls. A thread counts itself, then looks at the state; we set the state, then look at the count.
    if (s->kernel_calls.load_relaxed() == 0) {  // relaxed: behind the compare-exchange
      s->state.store_release(static_cast<std::uint32_t>(State::kClaimed));
      return true;
    }
  }
  s->receive_lock.unlock();
  s->send_lock.unlock();
  return false;
}

// Gives the locks back with the stream in `state`.
void settle(Stream* s, State state) {
  s->state.store_release(static_cast<std::uint32_t>(state));
  s->receive_lock.unlock();
  s->send_lock.unlock();
}

void settle_plain(Stream* s, Reason reason) {
  drop_socket(s);
  count_plain(reason);
  settle(s, State::kPlain);
}

// Sets up the channel's memory as this side's. Claimed. The mapping holds the core page, then the memfd.
void attach_channel(Stream* s, unsigned char* at, std::uint64_t capacity, std::uint32_t slot, std::uint32_t side,
                    Pair* pair) {
  s->core = reinterpret_cast<StreamCore*>(at);
  s->channel = reinterpret_cast<ChannelHeader*>(at + kPage);
  s->capacity = capacity;
  s->slot = slot;
  s->side = side;
  s->pair = pair;
  s->owner_generation = process().generation.load_relaxed();  // relaxed: changes by fork only
  s->answered.store_relaxed(0);                               // relaxed: both locks are held
  s->revoke_noted.store_relaxed(0);
  s->bells_lost.store_relaxed(0);
  s->stalled.store_relaxed(0);
  s->full_since_ns.store_relaxed(0);
  s->ring_tx_base = s->ring_rx_base = 0;
  const Gate gate;
  s->core->send.tcp_sent.store_relaxed(s->tcp_sent.load_relaxed());
  s->core->receive.tcp_received.store_relaxed(s->tcp_received.load_relaxed());
}

// Back to TCP. Claimed or both locks held; the caller releases the channel (release_stream) outside of the locks.
void detach_channel(Stream* s) {
  unmanage_members(s);
  s->state.exchange(static_cast<std::uint32_t>(State::kPlain));  // SYNC: pins
}

// O_NONBLOCK and the timeouts as they are now; hooks follow them from here on.
void read_options(int fd, Stream* s) {
  const int flags = real().fcntl(fd, F_GETFL);
  s->nonblocking.store_relaxed(flags >= 0 && (flags & O_NONBLOCK) != 0);
  int mark = 0;
  socklen_t mark_size = sizeof mark;
  if (real().getsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &mark, &mark_size) == 0) s->low_water.store_relaxed(static_cast<std::uint32_t>(mark));
  const struct {
    int name;
    Atomic<std::uint64_t>* to;
  } timeouts[] = {{SO_RCVTIMEO, &s->receive_timeout_ns}, {SO_SNDTIMEO, &s->send_timeout_ns}};
  for (const auto& t : timeouts) {
    timeval value = {};
    socklen_t size = sizeof value;
    if (real().getsockopt(fd, SOL_SOCKET, t.name, &value, &size) != 0) continue;
    t.to->store_relaxed(static_cast<std::uint64_t>(value.tv_sec) * 1000000000u +
                        static_cast<std::uint64_t>(value.tv_usec) * 1000u);
  }
}

// ------------------------------------------------------------------ connector

void connector_meet(Stream* s, const Addresses& addresses) {
  sockaddr_un name = {};
  const socklen_t size = rendezvous_name(addresses, true, &name);
  const int fd = unix_socket(s);
  if (fd < 0) {
    give_up(s, reason_of(errno));
    return;
  }
  if (quiet().connect(fd, reinterpret_cast<const sockaddr*>(&name), size) != 0) {
    const int error = errno;
    drop_socket(s);
    if (error == ECONNREFUSED || error == EAGAIN) {
      retry_or_give_up(s, Reason::kPeerAbsent);
    } else {
      give_up(s, reason_of(error));
    }
    return;
  }
  if (!peer_allowed(addresses, fd, s)) {
    give_up(s, Reason::kPeerUid);
    return;
  }
  s->rendezvous_step = kHello;
  s->tries = 0;
  next_try_in(s, 1);
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
  if (count != 0 || hello.type != MessageType::kHello || hello.version != kLayoutVersion) {
    give_up(s, Reason::kPeerProtocol);
    return;
  }
  s->peer_id = hello.process;
  s->rendezvous_step = kOffer;
  s->tries = 0;
}

// A pair for the peer of this stream, with the board's memfd when it is new (*board_fd, -1 otherwise). pairs_lock held.
Pair* pair_for_offer(Stream* s, int* board_fd, bool* later, Reason* reason) {
  *board_fd = -1;
  *later = false;
  Pair* pair = find_pair(s->peer_id, 0, nullptr);
  if (pair != nullptr && !pair->established && pair->streams > 0 && ++pair->postponed <= kPostponeMax) {
    *later = true;  // its first stream is still on its way to be accepted
    return nullptr;
  }
  if (pair != nullptr && pair->established) return pair;
  collect_pairs();
  const SystemCalls& sys = real().sys;
  *board_fd = make_segment(sys, "mpklink-board", sizeof(Board));
  if (*board_fd < 0) {
    *reason = reason_of(errno);
    return nullptr;
  }
  unsigned char* at = process().guard.map(sys, 0, *board_fd, sizeof(Board));
  pair = at == nullptr ? nullptr : make_pair(s->peer_id, 0, reinterpret_cast<Board*>(at));
  if (pair == nullptr) {
    *reason = at == nullptr ? reason_of(errno) : Reason::kLimit;
    if (at != nullptr) process().guard.unmap(sys, at);
    quiet().close(*board_fd);
    *board_fd = -1;
    return nullptr;
  }
  pair->control_fd = s->rendezvous_fd;
  pair->nonce = random_id();
  pair->same_user = s->peer_uid == ::geteuid();
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
  *channel_fd = make_segment(sys, "mpklink-channel", channel_bytes(capacity));
  if (*channel_fd < 0) {
    *reason = reason_of(errno);
    return false;
  }
  unsigned char* at = process().guard.map(sys, kPage, *channel_fd, channel_bytes(capacity));
  const int slot = at == nullptr ? -1 : take_slot(pair, s);
  if (slot < 0) {
    *reason = at == nullptr ? reason_of(errno) : Reason::kLimit;
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

// The offer could not be made after all: no trace of the channel is left.
void abandon_offer(Stream* s, bool new_pair, Reason reason) {
  if (new_pair) {
    s->pair->control_fd = -1;  // the socket is the stream's again, and goes with it
  }
  detach_channel(s);
  settle_plain(s, reason);
  release_stream(s, kDropChannel);
}

void connector_offer(int fd, Stream* s) {
  if (!may_manage_now(s)) return;
  Reason reason = Reason::kSystem;
  if (!ensure_guard(&reason)) {
    give_up(s, reason);
    return;
  }
  if (!claim(s)) return;
  if (!counters_agree(fd, s, &reason)) {
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
      settle(s, State::kCandidate);
    } else {
      settle_plain(s, reason);
    }
    return;
  }
  read_options(fd, s);
  const bool managed_all = manage_members(s);
  const bool sent = managed_all && send_offer(s, channel_fd, board_fd);
  const int error = errno;
  quiet().close(channel_fd);
  if (board_fd >= 0) quiet().close(board_fd);
  if (!sent) {
    abandon_offer(s, board_fd >= 0, managed_all ? reason_of(error) : Reason::kLimit);
    return;
  }
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

// ------------------------------------------------------------------ acceptor

void acceptor_listen(Stream* s, const Addresses& addresses) {
  sockaddr_un name = {};
  const socklen_t size = rendezvous_name(addresses, false, &name);
  const int fd = unix_socket(s);
  if (fd < 0) {
    give_up(s, reason_of(errno));
    return;
  }
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&name), size) != 0 || ::listen(fd, 1) != 0) {
    give_up(s, errno == EADDRINUSE ? Reason::kNameTaken : reason_of(errno));
    return;
  }
  s->rendezvous_step = kAccept;
  s->tries = 0;
  next_try_in(s, 1);
}

void acceptor_accept(Stream* s, const Addresses& addresses) {
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
  if (!peer_allowed(addresses, hidden, s)) {
    close_hidden(hidden);
    // A stranger got there first; the true peer may still come.
    retry_or_give_up(s, Reason::kPeerUid);
    return;
  }
  drop_socket(s);  // the name is free again; one connection is all it was for
  s->rendezvous_fd = hidden;
  HelloMessage hello = {};
  hello.type = MessageType::kHello;
  hello.version = kLayoutVersion;
  hello.process = own_id();
  if (!send_message(hidden, &hello, sizeof hello, nullptr, 0)) {
    give_up(s, reason_of(errno));
    return;
  }
  s->rendezvous_step = kTake;
  s->tries = 0;
  next_try_in(s, 1);
}

// The acceptor's pair for an offer. pairs_lock held. Null with the reason.
Pair* pair_of_offer(Stream* s, const OfferMessage& offer, int board_fd, int* bell_fds, Reason* reason) {
  if (!offer.new_pair) {
    // By the pair's secret: a process id is said to everybody who asks, and two processes may have several pairs.
    Pair* pair = find_pair(offer.process, 1, &offer.pair_nonce);
    if (pair == nullptr) *reason = Reason::kPeerProtocol;
    return pair;
  }
  collect_pairs();
  const SystemCalls& sys = real().sys;
  if (!segment_is_sound(sys, board_fd, sizeof(Board))) {
    *reason = Reason::kPeerProtocol;
    return nullptr;
  }
  unsigned char* at = process().guard.map(sys, 0, board_fd, sizeof(Board));
  if (at == nullptr) {
    *reason = reason_of(errno);
    return nullptr;
  }
  auto* board = reinterpret_cast<Board*>(at);
  bool sound = false;
  {
    const Gate gate;
    sound = board->header.magic == kBoardMagic && board->header.version == kLayoutVersion;
  }
  Pair* pair = sound ? make_pair(offer.process, 1, board) : nullptr;
  if (pair == nullptr) {
    *reason = sound ? Reason::kLimit : Reason::kPeerProtocol;
    process().guard.unmap(sys, at);
    return nullptr;
  }
  pair->control_fd = s->rendezvous_fd;
  pair->nonce = offer.pair_nonce;
  pair->same_user = s->peer_uid == ::geteuid();
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
    closed = outgoing(old).consumer.closed.load_acquire() != 0;  // SYNC: closed
  }
  unpin(old);
  return closed;
}

// Maps the offered channel. Claimed, pairs_lock held.
bool map_channel(Stream* s, const OfferMessage& offer, int channel_fd, Pair* pair, Reason* reason) {
  const SystemCalls& sys = real().sys;
  const std::size_t bytes = channel_bytes(offer.capacity);
  *reason = Reason::kPeerProtocol;
  if (!slot_is_free(pair, offer.slot) || !segment_is_sound(sys, channel_fd, bytes)) return false;
  unsigned char* at = process().guard.map(sys, kPage, channel_fd, bytes);
  if (at == nullptr) {
    *reason = reason_of(errno);
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
  read_options(fd, s);
  const bool managed_all = manage_members(s);
  if (!managed_all || !say_accepted(s)) {
    // It has closed, or lost its patience.
    abandon_offer(s, offer.new_pair != 0, managed_all ? Reason::kShortLived : Reason::kLimit);
    return;
  }
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

void acceptor_take(int fd, Stream* s) {
  if (!may_manage_now(s)) return;
  Reason reason = Reason::kSystem;
  if (!ensure_guard(&reason)) {
    give_up(s, reason);
    return;
  }
  // Claim before the message is taken from the socket: it could not be put back.
  if (!claim(s)) return;
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
      give_up(s, error == EPROTO ? Reason::kPeerProtocol : Reason::kShortLived);
    }
    return;
  }
  if (offer_is_sane(offer, count)) {
    take_offer(fd, s, offer, fds);
  } else {
    settle_plain(s, Reason::kPeerProtocol);
  }
  close_all(fds, count);
}

// ------------------------------------------------------------------

// The first step: is the connection one for us, and which end are we?
bool begin(int fd, Stream* s, Addresses* addresses) {
  Reason reason = Reason::kNotLocal;
  if (!eligible(fd, s, addresses, &reason)) {
    give_up(s, reason);
    return false;
  }
  if (s->rendezvous_step == kMeet && !s->connector) s->rendezvous_step = kListen;
  return true;
}

void take_step(int fd, Stream* s) {
  if (process().io_uring_seen.load_relaxed()) {  // relaxed: set once
    if (state_of(s) != State::kOffered) give_up(s, Reason::kIoUring);
    return;
  }
  const State state = state_of(s);
  if (state == State::kOffered) {
    connector_await(fd, s);
    return;
  }
  if (held_by_others(s)) {
    retry_or_give_up(s, Reason::kForked);
    return;
  }
  if (state != State::kCandidate && state != State::kSettling) return;
  Addresses addresses = {};
  const bool needs_addresses = s->rendezvous_step == kMeet || s->rendezvous_step == kListen || s->rendezvous_step == kAccept;
  if (needs_addresses && !begin(fd, s, &addresses)) return;
  switch (s->rendezvous_step) {
    case kMeet: connector_meet(s, addresses); break;
    case kHello: connector_hello(s); [[fallthrough]];
    case kOffer:
      if (s->rendezvous_step == kOffer) connector_offer(fd, s);
      break;
    case kListen: acceptor_listen(s, addresses); break;
    case kAccept: acceptor_accept(s, addresses); break;
    case kTake: acceptor_take(fd, s); break;
    default: break;
  }
}

}  // namespace

void withdraw_offer(Stream* s, Reason reason) {
  s->send_lock.lock();
  s->receive_lock.lock();
  bool withdrawn = false;
  bool accepted = false;
  if (state_of(s) == State::kOffered) {
    const Gate gate;
    std::uint32_t expected = kOffered;
    withdrawn = s->channel->accept_state.compare_exchange(expected, kWithdrawn);
    accepted = !withdrawn && expected == kAccepted;
  }
  if (withdrawn) {
    detach_channel(s);
    count_plain(reason);
  }
  if (accepted) became_shared(s);
  s->receive_lock.unlock();
  s->send_lock.unlock();
  if (withdrawn) release_stream(s, kDropChannel);
  drop_socket(s);
}

void back_to_tcp(Stream* s) {
  const bool again = !s->stay_plain.load_relaxed() && !s->forked.load_relaxed() &&  // relaxed: both locks are held
                     ours(s) && s->returns < kReturnsMax;
  unmanage_members(s);
  if (again) {
    {
      const Gate gate;
      take_over_counts(&s->tcp_sent, s->core->send.tcp_sent, &process().counters.tcp_tx);
      take_over_counts(&s->tcp_received, s->core->receive.tcp_received, &process().counters.tcp_rx);
    }
    s->rendezvous_step = kMeet;
    s->tries = 0;
    next_try_in(s, kAgainAfter << s->returns++);
  } else if (!s->stay_plain.load_relaxed()) {  // relaxed: as above
    count_plain(Reason::kReturned);
  }
  s->state.exchange(static_cast<std::uint32_t>(again ? State::kCandidate : State::kPlain));  // SYNC: pins
}

void before_rearm(int fd, Stream* s, const EpollMember* member) {
  const State state = state_of(s);
  if (state != State::kCandidate && state != State::kSettling) return;
  if (locks_held_here() != 0 || in_foreign_child() || !s->step_lock.try_lock()) return;
  const ErrnoSaver keep;
  s->rearming = member;
  if (fd_table().stream(fd) == s && (s->rendezvous_step == kOffer || s->rendezvous_step == kTake)) take_step(fd, s);
  s->rearming = nullptr;
  s->step_lock.unlock();
}

void after_operation(int fd, Stream* s) {
  const State state = state_of(s);
  if (state == State::kPlain || state == State::kShared) return;
  const std::uint32_t operations = s->operations.fetch_add(1) + 1;
  std::uint32_t due = s->next_try.load_relaxed();  // relaxed: a count
  if (due == 0) due = process().settings.warmup + (s->connector ? 2 : 1);
  if (operations < due) return;
  const ErrnoSaver keep;
  if (locks_held_here() != 0 || in_foreign_child()) return;  // in a handler that interrupted us: later
  if (!s->step_lock.try_lock()) return;
  if (fd_table().stream(fd) == s) take_step(fd, s);
  s->step_lock.unlock();
}

}  // namespace mpklink
