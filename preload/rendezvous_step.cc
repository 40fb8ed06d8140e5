// SPDX-License-Identifier: MIT
#include "preload/rendezvous_step.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/random.h>
#include <sys/time.h>

#include "preload/epoll_set.h"
#include "preload/fork.h"
#include "preload/holders.h"
#include "preload/identity.h"
#include "preload/log.h"
#include "preload/pollers.h"
#include "preload/status.h"

namespace mpklink {
namespace {

constexpr std::uint32_t kTriesMax = 7;       // 2, 4, 8 … operations apart
constexpr std::uint32_t kDistanceMax = 16;  // … to meet
constexpr std::uint32_t kDistanceMet = 2;    // … once the peer is known to be there
// A peer that answers takes its steps between its answers: so many without a sign of it, and it has no library. One that does not
// answer may be waiting for its turn on a busy machine: given time.
constexpr std::uint32_t kTurnsMax = 64;
constexpr std::uint64_t kTurnsNs = 10000000;
constexpr std::uint64_t kTriesNs = 200000000;
constexpr std::uint32_t kAbsencesMax = 4;
constexpr std::uint32_t kAfterAbsence = 32;  // operations, four times as many after each

}  // namespace

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

// Nobody there, or nothing arrived yet: again later, with growing distance.
void retry_or_give_up(Stream* s, Reason reason) {
  const std::uint64_t now = now_ns();
  if (s->tries == 0) {
    s->first_try_ns = now;
    s->first_turns = s->turns;
  }
  if (s->tries < kTriesMax) ++s->tries;
  const std::uint64_t waited = now - s->first_try_ns;
  const bool answered = reason == Reason::kPeerAbsent && waited > kTurnsNs && s->turns - s->first_turns >= kTurnsMax;
  if (s->tries == kTriesMax && (answered || waited > kTriesNs)) {
    if (reason == Reason::kPeerAbsent && s->absences < kAbsencesMax) {
      // It may be late (preload/lifetime.h), or slow, or see fewer operations.
      drop_socket(s);
      s->rendezvous_step = kBegin;
      s->tries = 0;
      next_try_in(s, kAfterAbsence << (2 * s->absences++));
    } else {
      give_up(s, reason == Reason::kPeerAbsent ? reason_of_absence(s, reason) : reason);
    }
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

Reason segment_reason(int error) {
  const bool secret = process().settings.backing == Backing::kSecret && error != EMFILE && error != ENFILE;
  return secret ? Reason::kNoSecret : reason_of(error);
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

int unix_socket() { return real().socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); }

// The uid that SO_PEERCRED shows must be the owner of the other end of the TCP connection.
bool peer_allowed(int fd, const Addresses& addresses, int socket, Stream* s, Reason* why) {
  *why = Reason::kOtherNetwork;
  if (!same_network(fd, socket)) return false;
  *why = Reason::kPeerUid;
  const Settings& settings = process().settings;
  ucred creds = {};
  socklen_t size = sizeof creds;
  if (real().getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &creds, &size) != 0) return false;
  s->peer_uid = creds.uid;
  s->peer_pid = static_cast<std::uint32_t>(creds.pid);
  if (settings.peers == PeerPolicy::kAny) return true;
  if (!uid_is_somebody(creds.uid)) return false;
  TcpEnd end = {};
  const int found = query_peer(fd, addresses.local, addresses.peer, &end);
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
    case PeerPolicy::kVerified:
      *why = Reason::kPeerUnknown;
      return found == 1 || same;
    case PeerPolicy::kAny: break;
  }
  return true;
}

// Takes both locks and closes the kernel path. False: some thread is still inside a kernel call on the socket. The stream
// then stays in kSettling, where operations no longer block inside such calls, so that a later claim finds none.
bool claim(Stream* s) {
  if (!s->send_lock.try_lock()) return false;
  if (!s->receive_lock.try_lock()) {
    s->send_lock.unlock();
    return false;
  }
  // A channel: an earlier one that some thread still has pinned.
  if (s->channel != nullptr || fork_under_way() || held_by_others(s)) {
    s->receive_lock.unlock();
    s->send_lock.unlock();
    return false;
  }
  auto expected = static_cast<std::uint32_t>(State::kCandidate);
  const auto settling = static_cast<std::uint32_t>(State::kSettling);
  if (s->state.compare_exchange(expected, settling) || expected == settling) {
    // SYNC: kernel_calls. A thread counts itself, then looks at the state; we set the state, then look at the count.
    if (s->kernel_calls.load_relaxed() == 0) {  // relaxed: behind the compare-exchange
      s->state.store_release(static_cast<std::uint32_t>(State::kClaimed));
      show_state(s);
      return true;
    }
    show_state(s);
  }
  s->receive_lock.unlock();
  s->send_lock.unlock();
  return false;
}

bool claim_for_channel(Stream* s) {
  if (!may_manage_now(s)) return false;
  Reason reason = Reason::kSystem;
  if (ensure_guard(&reason)) return claim(s);
  give_up(s, reason);
  return false;
}

// Gives the locks back with the stream in `state`.
void settle(Stream* s, State state) {
  s->state.store_release(static_cast<std::uint32_t>(state));
  show_state(s);
  s->receive_lock.unlock();
  s->send_lock.unlock();
}

void settle_plain(Stream* s, Reason reason) {
  drop_socket(s);
  count_plain(s, reason);
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
  s->told.store_relaxed(0);
  s->ring_tx_base = s->ring_rx_base = 0;
  const Gate gate;
  s->core->holders.store_relaxed(1);
  s->core->uncounted.store_relaxed(0);
  const std::uint32_t shut = s->shut.load_relaxed();  // relaxed: as above
  s->core->shut_begun.store_relaxed(shut);
  s->core->shut_done.store_relaxed(shut);
  s->core->send.tcp_sent.store_relaxed(s->tcp_sent.load_relaxed());
  s->core->receive.tcp_received.store_relaxed(s->tcp_received.load_relaxed());
}

// Back to TCP. Claimed or both locks held; the caller releases the channel (release_stream) outside of the locks.
void detach_channel(Stream* s) {
  unmanage_members(s);
  s->state.exchange(static_cast<std::uint32_t>(State::kPlain));  // SYNC: pins
  show_state(s);
}

void read_flags(int fd, Stream* s) {
  const int flags = real().fcntl(fd, F_GETFL);
  s->nonblocking.store_relaxed(flags >= 0 && (flags & O_NONBLOCK) != 0);
}

// As the kernel has them, which knows limits (sock_set_timeout in net/core/sock.c).
void read_timeouts(int fd, Stream* s) {
  const ErrnoSaver keep;
  const struct {
    int name;
    Atomic<std::uint64_t>* to;
  } timeouts[] = {{SO_RCVTIMEO, &s->receive_timeout_ns}, {SO_SNDTIMEO, &s->send_timeout_ns}};
  for (const auto& t : timeouts) {
    timeval value = {};
    socklen_t size = sizeof value;
    if (real().getsockopt(fd, SOL_SOCKET, t.name, &value, &size) != 0) continue;
    constexpr time_t kForEverS = 1000000000;  // thirty years; more nanoseconds than fit, perhaps
    const auto ns = static_cast<std::uint64_t>(value.tv_sec) * 1000000000u + static_cast<std::uint64_t>(value.tv_usec) * 1000u;
    t.to->store_release(value.tv_sec < kForEverS ? ns : 0);
  }
}

// As they are now; hooks follow them from here on.
void read_options(int fd, Stream* s) {
  read_flags(fd, s);
  const struct {
    int level, name;
    Atomic<std::uint32_t>* to;
  } numbers[] = {{SOL_SOCKET, SO_RCVLOWAT, &s->low_water}, {IPPROTO_TCP, TCP_INQ, &s->inq}, {SOL_SOCKET, SO_ZEROCOPY, &s->zero_copy}};
  for (const auto& n : numbers) {
    int value = 0;
    socklen_t size = sizeof value;
    if (real().getsockopt(fd, n.level, n.name, &value, &size) == 0) n.to->store_relaxed(static_cast<std::uint32_t>(value));
  }
  read_timeouts(fd, s);
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

}  // namespace mpklink
