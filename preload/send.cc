// SPDX-License-Identifier: MIT
// The sending direction of a managed stream.
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/epoll.h>

#include "preload/epoll_set.h"
#include "preload/fd_table.h"
#include "preload/give_back.h"
#include "preload/kernel_path.h"
#include "preload/log.h"
#include "preload/on_unwind.h"
#include "preload/pair.h"
#include "preload/probes.h"
#include "preload/revoke.h"
#include "preload/transfer_lock.h"
#include "preload/transfer_step.h"
#include "shm/stop_point.h"
#include "shm/user_copy.h"

namespace mpklink {
namespace {

constexpr std::uint32_t kSendsBetweenOrphanLooks = 16;
constexpr int kWaitersRaceMax = 8;
constexpr std::size_t kWholeMax = 4096;  // as PIPE_BUF

// Whether this direction may leave TCP now. Gate open, send lock held.
bool may_switch(Stream* s) {
  if (s->forked.load_relaxed() || s->bells_lost.load_relaxed()) return false;  // relaxed: set under the send lock
  if (outgoing(s).consumer.head.load_acquire() & kFrozenBit) return false;     // SYNC: frozen
  if (state_of(s) == State::kShared) return true;
  if (s->channel->accept_state.load_acquire() != kAccepted) return false;  // SYNC: accepted
  became_shared(s);
  return true;
}

// What the sender found: on the ring, `taken` bytes went; on TCP, up to `limit` may.
struct Route {
  bool over_tcp = true;
  std::size_t limit = SIZE_MAX;
  std::size_t taken = 0;
  bool full = false;
  bool stalled = false;        // full for long: the stream goes back to TCP
  bool fault = false;
  bool lied = false;
  bool frozen = false;         // the ring's unread bytes have to go back first
  bool bells_missing = false;  // nothing was done: fetch them first
};

bool leave_ring(Stream* s) {
  // Somebody sleeps whom we cannot wake (no descriptor left for his bell), or we are the child of a fork, which cannot be
  // handed bells: what follows goes over TCP, whose bytes wake by themselves.
  return s->bells_lost.load_relaxed() ||  // relaxed: under the send lock
         !ours(s);
}

// Decides the path of the next bytes. Gate open, send lock held. True: the ring takes them.
bool route_to_ring(Stream* s, std::size_t want, Route* route) {
  if (s->core == nullptr) return false;
  SendState& state = s->core->send;
  auto path = static_cast<Path>(state.path.load_relaxed());  // relaxed: under the send lock
  Direction& out = outgoing(s);
  if (path == Path::kTcpAgain || stop_at_shut_peer(&state, out)) return false;
  if (s->send_over_tcp.load_relaxed()) {  // relaxed: own word
    // TCP has the answer, but whatever made us think so, its bytes never overtake those in the ring.
    if (path == Path::kRing) freeze(&out.consumer);
    route->frozen = path == Path::kRing || path == Path::kReturning;
    return false;
  }
  if (path == Path::kTcp && may_switch(s)) {
    begin_switch(&state, &out.producer, want);
    path = Path::kDraining;
  }
  if (path == Path::kRing && !(out.consumer.head.load_relaxed() & kFrozenBit)) {  // relaxed: looked at again by refresh
    // SYNC: closed. A peer that left the channel froze the ring before: looked at again behind this.
    if (out.consumer.closed.load_acquire() == kClosed && !(out.consumer.head.load_acquire() & kFrozenBit)) {
      s->send_over_tcp.store_relaxed(1);
      freeze(&out.consumer);
    }
    if (leave_ring(s)) freeze(&out.consumer);
  }
  route->frozen = (out.consumer.head.load_acquire() & kFrozenBit) != 0;  // SYNC: frozen
  if (route->frozen) return false;
  if (path == Path::kDraining) route->limit = state.tcp_left.load_relaxed();
  if (path != Path::kRing) return false;
  route->over_tcp = false;
  route->bells_missing = !bells_at_hand(s);
  return !route->bells_missing;
}

// A small message goes whole or not at all, as on TCP, where it is one skb: threads that share a stream rely on it. With less
// than half of the ring free a wish for space is answered at half, which is enough for these.
std::size_t least_space(const Stream* s, std::size_t want) {
  return want <= kWholeMax && want <= s->capacity / 2 ? want : 1;
}

Route put_in_ring(Stream* s, const Window& from, std::size_t want, Wakeups* wakeups) {
  Route route;
  if (s->core == nullptr) return route;
  const Gate gate;
  if (!route_to_ring(s, want, &route)) return route;
  RingProducer producer = producer_of(s);
  route.lied = !producer.refresh();
  if (route.lied) return route;
  const bool refused = producer.space() < least_space(s, want);
  if (refused) s->refusals = s->refusals + 1;  // before the wish, which publishes it to whoever is told of the room
  if (refused && !producer.wish_space(&route.lied)) {
    route.full = true;
    route.stalled = !route.lied && note_full(s, producer.head());
    return route;
  }
  for (int i = 0; i < from.count && producer.space() > 0 && !route.fault; ++i) {
    const iovec& part = from.parts[i];
    const std::size_t fits = part.iov_len < producer.space() ? part.iov_len : producer.space();
    const std::size_t written = producer.write(part.iov_base, fits);
    route.taken += written;
    route.fault = written < fits;
  }
  if (route.taken == 0) return route;
  producer.publish();
  wakeups->collect(s);
  // Behind the fence of publish: a freezer that did not see this write to its end relies on our seeing the freeze.
  route.frozen = (outgoing(s).consumer.head.load_relaxed() & kFrozenBit) != 0;  // relaxed: SYNC: frozen, see above
  return route;
}

void count_sent(Stream* s, std::uint64_t n) {
  if (s->core == nullptr) return count_tcp_sent(s, n);
  show_tcp_sent(s, n);
  process().counters.tcp_tx.fetch_add(n);
  const Gate gate;
  tcp_sent(&s->core->send, n);
}

Step kernel_send(const Call& c, std::size_t skip, std::size_t limit) {
  Window from;
  if (!c.parts->window(skip, limit, &from)) return failed(EFAULT);
  const msghdr header = from.header();
  int flags = c.flags | MSG_DONTWAIT;
  if (limit != SIZE_MAX) flags &= ~MSG_MORE;  // these bytes are the peer's wake-up: they must not wait for more
  // Bytes have gone already: the call succeeds with those, so no SIGPIPE now.
  // And a call has one completion: the rest is copied.
  if (skip > 0) flags = (flags | MSG_NOSIGNAL) & ~MSG_ZEROCOPY;
  const ssize_t n = quiet().sendmsg(c.fd, &header, flags);
  if (n < 0) return failed(errno);
  STOP_POINT("tcp-sent");
  count_sent(c.s, static_cast<std::uint64_t>(n));
  return moved(n);
}

// Puts the window into the ring once everybody who waits there can be woken.
Route put_and_wake(const Call& c, const Window& from, std::size_t want) {
  Wakeups wakeups;
  Route route = put_in_ring(c.s, from, want, &wakeups);
  for (int i = 0; route.bells_missing; ++i) {  // again: another waiter may have come in between
    if (i > kWaitersRaceMax) return route.lied = true, route;  // the ring was frozen for a bell that is lost, and the peer took that back
    if (!fetch_bells(c.s) || i == kWaitersRaceMax) c.s->bells_lost.store_relaxed(1);  // relaxed: under the send lock
    route = put_in_ring(c.s, from, want, &wakeups);
  }
  wakeups.ring();
  return route;
}

// Send lock held.
Step send_step(const Call& c, std::size_t skip, std::size_t want) {
  Stream* s = c.s;
  if (s->poisoned.load_acquire()) return failed(ECONNRESET);
  if (s->pending_error.load_relaxed() != 0) {  // relaxed: the exchange decides
    if (const std::uint32_t error = s->pending_error.exchange(0)) return failed(static_cast<int>(error));
  }
  const ErrnoSaver keep;
  // The connection is over for the kernel (reset, or both ends finished): it says so, whatever room the ring has.
  if (s->sticky.load_relaxed() & (kStickyErr | kStickyHup)) s->send_over_tcp.store_relaxed(1);  // relaxed: own or earlier news
  look_for_orphan(c.fd, s, false);
  Window from;
  if (!c.parts->window(skip, want, &from)) return failed(EFAULT);
  const Route route = put_and_wake(c, from, want);
  if (route.lied) {
    poison(c.fd, s);
    return failed(ECONNRESET);
  }
  const bool behind = route.frozen && !give_back(c.fd, s);
  if (route.frozen && s->poisoned.load_acquire()) return failed(ECONNRESET);  // not what the kernel says now, with SIGPIPE
  if (route.frozen && route.taken == 0) {
    if (const std::uint32_t error = s->pending_error.exchange(0)) return failed(static_cast<int>(error));  // TCP's, just now
  }
  if (route.taken > 0) {
    Step step = moved(static_cast<ssize_t>(route.taken));
    step.fault = route.fault;
    return step;
  }
  if (route.fault) return failed(EFAULT);
  if (behind) return failed(EAGAIN);
  if (route.full) {
    PROBE1(ring__full, c.fd);
    look_for_orphan(c.fd, s, true);
    members_want_space(s);
    Step full = failed(EAGAIN);
    full.leave = route.stalled;
    return full;
  }
  return kernel_send(c, skip, route.limit);
}

// The stream went back to TCP in the middle of a blocking call, which never sends less than all: the kernel goes on, counted as
// any call that may block there. False: the stream has been upgraded already.
bool send_rest(const Call& c, std::size_t* done) {
  for (;;) {
    if (!fd_table().names(c.fd, c.s)) return errno = EBADF, true;
    Window from;
    if (!c.parts->window(*done, SIZE_MAX, &from)) return errno = EFAULT, true;
    const msghdr header = from.header();
    ssize_t n = 0;
    const int flags = *done > 0 ? (c.flags | MSG_NOSIGNAL) & ~MSG_ZEROCOPY : c.flags;
    const auto send = [&] { return real().sendmsg(c.fd, &header, flags); };
    bool ours_again = false;
    Call call = c;
    {
      const OnUnwind owed(cancelled_on_stand_in, &call);
      ours_again = !kernel_operation(c.fd, c.s, Flow::kOut, true, &n, send);
    }
    if (ours_again) return false;
    if (n < 0 && *done > 0) keep_for_next_call(c.s, errno);
    if (n <= 0) return true;
    *done += static_cast<std::size_t>(n);
  }
}

// MSG_OOB: the mark is TCP's. The ring is left (or never begun), and the byte goes behind everything sent before.
ssize_t send_urgent(const Call& c) {
  Stream* s = c.s;
  const TransferLock lock(c.fd, s, TransferLock::kSend);
  if (lock.reentered()) return finish_call(0, EAGAIN);
  if (!lock.held()) return kNotOurs;
  s->bells_lost.store_relaxed(1);  // relaxed: under the send lock. From now on over TCP
  std::size_t limit = SIZE_MAX;
  if (s->core != nullptr) {
    Route route;
    {
      const Gate gate;
      route_to_ring(s, 1, &route);
    }
    if (route.frozen && !give_back(c.fd, s)) return finish_call(0, EAGAIN);
    limit = route.limit;
  }
  const Step step = kernel_send(c, 0, limit);
  return step.n >= 0 ? step.n : finish_call(0, step.error);
}

}  // namespace

void look_for_orphan(int fd, Stream* s, bool now) {
  if (!(s->sticky.load_relaxed() & kStickyRdhup) || s->send_over_tcp.load_relaxed()) return;  // relaxed: own or earlier
  const std::uint32_t sends = s->sends_after_fin.fetch_add(1);
  if (!now && sends % kSendsBetweenOrphanLooks != 0) return;
  if (s->core != nullptr && peer_is_dead(fd, s)) s->send_over_tcp.store_relaxed(1);
}

namespace {

// Until the call has sent all, as a blocking one does, or what fits.
ssize_t send_loop(Call* c, std::size_t total) {
  Stream* const s = c->s;
  const int flags = c->flags;
  std::size_t done = 0;
  std::uint64_t deadline = 0;
  bool waited = false;
  Undisturbed steps;  // what fits goes in one, whatever handlers send on the stream
  for (;;) {
    Step step;
    {
      const TransferLock lock(c->fd, s, TransferLock::kSend);
      if (lock.reentered()) return finish_call(done, EAGAIN);
      if (!lock.held() && ((done > 0 && !non_blocking(s, flags)) || c->on_stand_in)) {
        steps.allow();
        if (send_rest(*c, &done)) return done > 0 ? static_cast<ssize_t>(done) : -1;
        steps.again();
        continue;
      }
      if (!lock.held()) return lost_stream(c->fd, s, done, waited);
      step = send_step(*c, done, total - done < kStepBytes ? total - done : kStepBytes);
    }
    if (step.n >= 0) {
      done += static_cast<std::size_t>(step.n);
      if (done == total || step.fault) return static_cast<ssize_t>(done);
      continue;
    }
    if (step.leave) {
      answer_freeze(c->fd, s);
      continue;
    }
    if (step.error != EAGAIN || non_blocking(s, flags)) return finish_call(s, done, step.error);
    waited = true;
    steps.allow();
    const int error = block(c, EPOLLOUT, done, s->send_timeout_ns.load_relaxed(), &deadline);  // relaxed: an option
    if (error != 0) return finish_call(done, error);
    if (done > 0 && c->handlers.any()) return static_cast<ssize_t>(done);  // it may have sent as well
    steps.again();
  }
}

// A small message in more parts than one step takes: in one piece, too. Not inlined: the stack is the program's.
__attribute__((noinline)) ssize_t send_gathered(int fd, Stream* s, const Parts& parts, int flags) {
  char whole[kWholeMax];
  std::size_t n = 0;
  bool bad = false;
  Window window;
  while (!bad && n < parts.total() && parts.window(n, sizeof whole - n, &window)) {
    for (int i = 0; i < window.count && !bad; ++i) {
      const iovec& part = window.parts[i];
      const std::size_t missing = user_copy(whole + n, part.iov_base, part.iov_len);
      n += part.iov_len - missing;
      bad = missing != 0;  // what is in front of it goes
    }
  }
  if (n == 0) return finish_call(0, EFAULT);
  const iovec one = {whole, n};
  return send_stream(fd, s, &one, 1, flags);
}

}  // namespace

ssize_t send_stream(int fd, Stream* s, const iovec* parts, int count, int flags) {
  flags &= ~MSG_FASTOPEN;  // once connected, it means nothing
  Parts memory;
  if (const int error = memory.read(parts, count)) return finish_call(0, error);
  pthread_testcancel();  // the kernel's call is a cancellation point also when it need not wait
  if (flags & MSG_OOB) return send_urgent({fd, s, &memory, flags});
  const std::size_t total = memory.total();
  if (total == 0) return quiet().send(fd, "", 0, flags | MSG_DONTWAIT);  // says EPIPE where the kernel would
  if (count > kPartsMax && total <= kWholeMax) return send_gathered(fd, s, memory, flags);
  Call call = {fd, s, &memory, flags};
  const ssize_t result = send_loop(&call, total);
  return call.on_stand_in ? finish_on_stand_in(call, result) : result;
}

int unsent_bytes(int fd, Stream* s) {
  int in_kernel = 0;
  if (real().ioctl(fd, TIOCOUTQ, &in_kernel) != 0) return -1;
  const TransferLock lock(fd, s, TransferLock::kSend);
  if (!lock.held() || s->core == nullptr) return in_kernel;
  const Gate gate;
  RingProducer producer = producer_of(s);
  if (!producer.refresh()) return in_kernel;
  if (static_cast<Path>(s->core->send.path.load_relaxed()) == Path::kTcpAgain) return in_kernel;
  const std::uint64_t sum = producer.used() + static_cast<std::uint64_t>(in_kernel);
  return sum > INT_MAX ? INT_MAX : static_cast<int>(sum);
}

}  // namespace mpklink
