// SPDX-License-Identifier: MIT
#include "preload/revoke.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <time.h>

#include "preload/epoll_set.h"
#include "preload/fd_table.h"
#include "preload/give_back.h"
#include "preload/log.h"
#include "preload/pair.h"
#include "preload/patience.h"
#include "preload/pollers.h"
#include "preload/rendezvous.h"
#include "preload/status.h"
#include "preload/transfer_lock.h"
#include "shm/raw_syscall.h"
#include "shm/stop_point.h"

namespace mpklink {
namespace {

// How long a peer that is awake, or asleep in one of our waits, may take to give bytes back. One that does neither (it
// computes, it was stopped) does so at its next operation; the bytes then come late, but they come.
constexpr std::uint64_t kReturnWaitNs = 100000000;
constexpr long kReturnNapNs = 20000;

// Whether something is to be given back. A peer that looks back without having frozen asks us to leave the ring. Send lock held.
bool asked_for(Stream* s) {
  const Gate gate;
  if (static_cast<Path>(s->core->send.path.load_relaxed()) == Path::kTcpAgain) return false;  // relaxed: send lock
  if (s->send_over_tcp.load_relaxed()) return false;  // relaxed: TCP takes nothing more of us; the rest is read from the ring
  if (stop_at_shut_peer(&s->core->send, outgoing(s))) return false;
  const bool told = incoming(s).producer.look_back.load_acquire() != 0;  // SYNC: look_back
  if (told || s->stalled.load_relaxed()) freeze(&outgoing(s).consumer);   // relaxed: own word
  return (outgoing(s).consumer.head.load_acquire() & kFrozenBit) != 0;                        // SYNC: frozen
}

// Whatever the peer asks for, it has been done, or never can be. Send lock held.
bool nothing_to_answer(Stream* s) {
  if (s->send_over_tcp.load_relaxed()) return true;  // relaxed: as above
  const Gate gate;
  return static_cast<Path>(s->core->send.path.load_relaxed()) == Path::kTcpAgain;  // relaxed: send lock
}

// Both directions are TCP's again: the stream goes on as an ordinary connection, perhaps to be upgraded anew. Pinned: between the
// locks and the release another thread may close it, and the object be somebody else's.
void leave_pinned(int fd, Stream* s) {
  {
    const TransferLock send(fd, s, TransferLock::kSend);
    const TransferLock receive(fd, s, TransferLock::kReceive);
    if (!send.held() || !receive.held() || s->core == nullptr || state_of(s) != State::kShared) return;
    {
      const Gate gate;
      const auto out = static_cast<Path>(s->core->send.path.load_relaxed());  // relaxed: both locks
      const auto in = static_cast<Path>(s->core->receive.path.load_relaxed());
      if (out != Path::kTcpAgain || in != Path::kTcpAgain) return;
      // Until the peer has given everything back, this mapping is where the rest is found when it dies (receive.cc, rescue).
      RingConsumer consumer = consumer_of(s);
      const bool unread = !consumer.refresh() || consumer.available() > 0;
      // TCP may have refused what came back.
      const bool lost = s->core->shut_begun.load_acquire() == kShutBoth && all_counted(s);
      if (unread && (lost || incoming(s).producer.returned.load_acquire() == 0)) return;  // SYNC: returned
      returned_with_fin(s->core->send, &outgoing(s).producer, s->core->producer.tail.load_relaxed());  // relaxed: both locks
      if (s->core->holders.load_acquire() > 1) s->core->uncounted.fetch_or(kByPasser);  // SYNC: holders
      incoming(s).consumer.closed.exchange(kClosed);                                    // SYNC: closed. The slot may be used again
    }
    STOP_POINT("channel-left");
    back_to_tcp(s);
  }
  release_stream(s, kDropChannel);
}

void leave_channel(int fd, Stream* s) {
  if (!pin(fd, s)) return;
  leave_pinned(fd, s);
  unpin(s);
}

void freeze_outgoing(int fd, Stream* s) {
  {
    const TransferLock lock(fd, s, TransferLock::kSend);
    if (!lock.held() || s->core == nullptr) return;
    const Gate gate;
    if (stop_at_shut_peer(&s->core->send, outgoing(s))) return;
    freeze(&outgoing(s).consumer);
  }
  give_back_all(fd, s);
}

// Threads of ours that sleep on the stream: what they wait for comes from TCP now. Pinned or under a lock of the stream.
void wake_own_sleepers(Stream* s) {
  std::uint64_t ids = 0;
  {
    const Gate gate;
    ids = s->channel->waiters[s->side].ids.load_acquire();
  }
  const std::uint64_t one = 1;
  for (unsigned i = 0; i < kWaitersMax && ours(s); ++i) {
    const std::uint32_t field = waiter_at(ids, i);
    if (field == 0 || field > kPollers) continue;
    const int bell = bell_of(field - 1);
    if (bell >= 0 && quiet().write(bell, &one, sizeof one) == sizeof one) process().counters.bells.fetch_add(1);
  }
}

// Has the peer look at what it sent. Receive lock held; `freeze_it`: nothing more is taken from the ring. True: bytes are unread.
bool call_back(Stream* s, bool freeze_it) {
  Wakeups wakeups;
  bool unread = false;
  {
    const Gate gate;
    if (freeze_it) freeze(&incoming(s).consumer);
    outgoing(s).producer.look_back.exchange(1);  // SYNC: look_back. Exchange: the fence before the look at the waiters
    STOP_POINT("look-back-said");
    bool lied = false;                           // a lie about offsets no longer matters
    if (freeze_it) receive_path(&s->core->receive, incoming(s), &lied);
    RingConsumer consumer = consumer_of(s);
    unread = consumer.refresh() && consumer.available() > 0;
    wakeups.collect(s);
  }
  wakeups.ring();
  return unread;
}

// True: the peer has bytes to give back.
bool freeze_incoming(int fd, Stream* s) {
  const TransferLock lock(fd, s, TransferLock::kReceive);
  if (!lock.held() || s->core == nullptr) return false;
  wake_own_sleepers(s);
  return call_back(s, true);
}

void wait_until_returned(int fd, Stream* s) {
  if (!pin(fd, s)) return;
  const std::uint64_t start = now_ns();
  for (;;) {
    answer_in_this_process(s);
    {
      const Gate gate;
      if (incoming(s).producer.returned.load_acquire() != 0) break;   // SYNC: returned
      if (incoming(s).consumer.closed.load_acquire() == kShut) break;  // SYNC: closed. It stays where it is
    }
    const std::uint64_t waited = now_ns() - start;
    if (waited > kMomentNs && (waited > kReturnWaitNs || !patience_left())) {
      if (waited > kReturnWaitNs) patience_lost(waited);
      log(LogLevel::kInfo, FMT_COMPILE("fd {}: the peer is busy elsewhere; unread bytes come back at its next operation"), fd);
      break;
    }
    const timespec nap = {0, kReturnNapNs};
    raw_syscall(SYS_nanosleep, reinterpret_cast<long>(&nap), 0);  // raw: no cancellation point of the program's
  }
  unpin(s);
}

// Bytes of a frozen ring that are on their way: waits for them, a bounded time.
void await_returned(int fd, Stream* s) {
  bool expected = false;
  {
    const TransferLock lock(fd, s, TransferLock::kReceive);
    if (!lock.held() || s->core == nullptr) return;
    const Gate gate;
    expected = consumer_of(s).frozen() && not_received(s) > 0;
  }
  if (expected) wait_until_returned(fd, s);
}

bool try_answer_freeze(int fd, Stream* s);  // false: `fd` does not name it

// What arrives from now on may be taken without our counting it: Uncounted, or 0.
std::uint32_t takes_bytes_past_us(Reason reason) {
  switch (reason) {
    case Reason::kPassed: case Reason::kExec: return kByOthers;
    case Reason::kStdio: case Reason::kAio: case Reason::kSplice: case Reason::kIoUring: return kByPasser;
    default: return 0;
  }
}

void note_uncounted(int fd, Stream* s, Reason reason) {
  const std::uint32_t who = takes_bytes_past_us(reason);
  if (who == 0 || !pin(fd, s)) return;
  {
    const Gate gate;
    s->core->uncounted.fetch_or(who);
  }
  unpin(s);
}

// No upgrade step is under way afterwards, and none follows. False: the stream is not upgraded.
bool settle_upgrade(Stream* s, Reason reason) {
  const LockGuard step(s->step_lock);
  make_plain(s, reason);
  if (state_of(s) == State::kOffered) withdraw_offer(s, reason);
  return managed(state_of(s));
}

// Our sending goes over TCP; the peer is asked for the same, and what is in its ring is read there meanwhile.
void leave_softly_for(int fd, Stream* s) {
  freeze_outgoing(fd, s);
  {
    const TransferLock lock(fd, s, TransferLock::kReceive);
    if (lock.held() && s->core != nullptr) call_back(s, false);
  }
  path_moved(fd, s);
}

constexpr std::uint32_t kHeldUpMax = 16;

// A peer that only ever sends does not see that it was asked. Its ring is frozen as soon as it is found empty, so that nothing is late;
// one that never is has a sender that is at it, and sees that at once.
void switch_off_incoming(int fd, Stream* s) {
  bool unread = false;
  {
    const TransferLock lock(fd, s, TransferLock::kReceive);
    if (!lock.held() || s->core == nullptr || state_of(s) != State::kShared) return;
    {
      const Gate gate;
      RingConsumer consumer = consumer_of(s);
      if (consumer.frozen() || !consumer.refresh()) return;
      if (consumer.available() != 0 && s->held_up < kHeldUpMax) {
        s->held_up = s->held_up + 1;
        return;
      }
    }
    wake_own_sleepers(s);
    unread = call_back(s, true);
  }
  if (unread) wait_until_returned(fd, s);
  path_moved(fd, s);
}

}  // namespace

void answer_in_this_process(Stream* s) {
  Stream* twin = twin_stream(s);
  const int fd = twin == nullptr ? -1 : fd_of(twin);
  if (fd >= 0) answer_freeze(fd, twin);
}

void wake_own_sleepers(int fd, Stream* s) {
  if (!pin(fd, s)) return;
  wake_own_sleepers(s);
  unpin(s);
}

void end_with_reset(int fd, Stream* s) {
  const TransferLock lock(fd, s, TransferLock::kReceive);
  if (!lock.held() || s->core == nullptr) return;
  if (!ends_unread(fd, s)) return;
  const linger reset = {1, 0};
  real().setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
}

void begin_shutdown(int fd, Stream* s, std::uint32_t how) {
  if (!pin(fd, s)) return;
  std::uint32_t begun = 0;
  {
    const Gate gate;
    begun = s->core->shut_begun.fetch_or(how) | how;
  }
  if (begun == kShutBoth) await_returned(fd, s);
  unpin(s);
}

void end_shutdown(int fd, Stream* s, std::uint32_t how) {
  s->shut.fetch_or(how);
  if (!pin(fd, s)) return;
  {
    const Gate gate;
    std::uint32_t open = kOpen;
    if ((s->core->shut_done.fetch_or(how) | how) == kShutBoth) incoming(s).consumer.closed.compare_exchange(open, kShut);  // SYNC: closed
  }
  unpin(s);
}

void note_revoked(Stream* s) {
  if (s->revoke_noted.exchange(1) != 0) return;
  process().counters.revoked.fetch_add(1);
  show_revoke(s);
}

void revoke(int fd, Stream* s, Reason reason) {
  const ErrnoSaver keep;
  s->stay_plain.store_release(1);
  make_plain(s, reason);
  note_uncounted(fd, s, reason);
  if (!managed(state_of(s)) || sections_here() != 0) return;  // in a handler that interrupted us: nothing can be done
  if (!settle_upgrade(s, reason)) return;
  note_uncounted(fd, s, reason);  // it was just being upgraded, perhaps
  count_plain(s, reason);
  freeze_outgoing(fd, s);
  if (freeze_incoming(fd, s)) wait_until_returned(fd, s);
  path_moved(fd, s);
}

void leave_softly(int fd, Stream* s) {
  if (s->stay_plain.exchange(1) != 0 || sections_here() != 0) return;
  const ErrnoSaver keep;
  count_plain(s, Reason::kForked);
  leave_softly_for(fd, s);
}

void switch_off(int fd, Stream* s) {
  const State state = state_of(s);
  if (state == State::kPlain || state == State::kFresh || sections_here() != 0) return;
  const ErrnoSaver keep;
  if (s->stay_plain.exchange(1) != 0) return switch_off_incoming(fd, s);
  make_plain(s, Reason::kSwitchedOff);
  if (!managed(state_of(s)) || !settle_upgrade(s, Reason::kSwitchedOff)) return;
  count_plain(s, Reason::kSwitchedOff);
  leave_softly_for(fd, s);
}

void ask_for_the_rest(int fd, Stream* s) {
  const TransferLock lock(fd, s, TransferLock::kReceive);
  if (lock.held() && s->core != nullptr) call_back(s, false);
}

void revoke_inheritable(Reason reason) {
  for (int fd = 0; fd <= fd_table().highest(); ++fd) {
    Stream* s = fd_table().stream(fd);
    if (s == nullptr || state_of(s) == State::kPlain) continue;
    const int flags = real().fcntl(fd, F_GETFD);
    if (flags >= 0 && !(flags & FD_CLOEXEC)) revoke(fd, s, reason);
  }
}

void revoke_all(Reason reason) {
  for (int fd = 0; fd <= fd_table().highest(); ++fd) {
    if (Stream* s = fd_table().stream(fd)) revoke(fd, s, reason);
  }
}

void answer_freeze(int fd, Stream* s) { try_answer_freeze(fd, s); }

void answer_freeze(Stream* s) {
  for (int fd = fd_of(s); fd >= 0 && managed(state_of(s)); fd = fd_of(s)) {
    if (try_answer_freeze(fd, s)) return;  // else the number was closed between the two
  }
}

namespace {

bool try_answer_freeze(int fd, Stream* s) {
  bool returned = false;
  {
    const TransferLock lock(fd, s, TransferLock::kSend);
    if (lock.reentered()) return true;
    if (!lock.held()) return false;
    if (s->core == nullptr) return true;
    // Nobody may have asked: then a later wish is still to be answered.
    returned = asked_for(s) && give_back(fd, s);
    if (returned || nothing_to_answer(s)) s->answered.store_relaxed(1);  // relaxed: a hint
  }
  // Members that waited for room in the ring wait for TCP's now, which may have it: of room that was there all along no edge tells.
  if (returned) refresh_members(s);
  if (s->stalled.exchange(0) != 0) {
    count_plain(s, Reason::kStalled);
    const TransferLock lock(fd, s, TransferLock::kReceive);
    if (lock.held() && s->core != nullptr) call_back(s, false);  // the other direction comes back, too, so that both may begin anew
  }
  leave_channel(fd, s);
  return true;
}

}  // namespace

void answer_all_freezes(bool ends) {
  for_each_stream([ends](Stream* s) {
    if (!managed(state_of(s)) || s->send_lock.held_by_this_thread()) return;
    const int fd = fd_of(s);
    if (fd < 0 || !pin(fd, s)) return;
    // A forked child leaves it to its parent, which would not hear of an error that the child came by.
    if ((ours(s) || alone(s)) && asked_for(s)) give_back_all(fd, s);
    if (ends) leave_to_kernel(fd, s, TransferLock::kInUse);
    unpin(s);
  });
}

void path_moved(int fd, Stream* s) {
  refresh_members(s);
  if (sections_here() != 0 || !pin(fd, s)) return;
  bool asked = false;
  bool frozen = false;
  {
    const Gate gate;
    asked = incoming(s).producer.look_back.load_acquire() != 0;  // SYNC: look_back
    frozen = (incoming(s).consumer.head.load_acquire() & kFrozenBit) != 0;  // SYNC: frozen
  }
  if (frozen) note_revoked(s);
  if (asked && !s->answered.load_relaxed()) answer_freeze(fd, s);  // relaxed: a hint
  unpin(s);
  if (frozen) leave_channel(fd, s);
}

}  // namespace mpklink
