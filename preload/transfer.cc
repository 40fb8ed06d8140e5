// SPDX-License-Identifier: MIT
#include "preload/transfer.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>

#include "preload/epoll_set.h"
#include "preload/fd_table.h"
#include "preload/identity.h"
#include "preload/log.h"
#include "preload/pair.h"
#include "preload/transfer_lock.h"
#include "preload/wait.h"

namespace mpklink {
namespace {

constexpr std::uint32_t kEmptyReadsBeforeKernel = 8;
constexpr std::uint32_t kSendsBetweenOrphanLooks = 16;
constexpr int kWaitersRaceMax = 8;
constexpr int kPartsMax = 16;  // iovec entries handled in one step; the outer loop goes on with the rest

// One attempt: bytes moved, 0 for the end of input, or -1 with errno (EAGAIN: would block).
struct Step {
  ssize_t n = -1;
  int error = EAGAIN;
  bool more = false;  // the parts looked at are full: there may be more for the others
};

Step moved(ssize_t n) { return {n, 0}; }
Step failed(int error) { return {-1, error}; }

// The first entries of `parts` behind `skip` bytes, at most `limit` bytes. Returns their number.
int window(const iovec* parts, int count, std::size_t skip, std::size_t limit, iovec (&out)[kPartsMax]) {
  int n = 0;
  for (int i = 0; i < count && n < kPartsMax && limit > 0; ++i) {
    if (skip >= parts[i].iov_len) {
      skip -= parts[i].iov_len;
      continue;
    }
    out[n].iov_base = static_cast<char*>(parts[i].iov_base) + skip;
    out[n].iov_len = parts[i].iov_len - skip;
    if (out[n].iov_len > limit) out[n].iov_len = limit;
    limit -= out[n].iov_len;
    skip = 0;
    ++n;
  }
  return n;
}

// A lie in shared memory: the stream is over for both sides, the process lives.
void poison(int fd, Stream* s) {
  log(LogLevel::kError, FMT_COMPILE("the peer's indices are impossible; fd {} is reset"), fd);
  const ErrnoSaver keep;
  const linger reset = {1, 0};
  real().setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  real().shutdown(fd, SHUT_RDWR);
  s->send_over_tcp.store_relaxed(1);
  s->sticky.fetch_or(kStickyErr | kStickyRdhup | kStickyHup);
  s->poisoned.store_release(1);
}

void count_tcp_received(Stream* s, std::uint64_t n) {
  if (s->core == nullptr) {
    s->tcp_received.fetch_add(n);
    return;
  }
  process().counters.tcp_rx.fetch_add(n);
  auto& count = s->core->receive.tcp_received;
  count.store_relaxed(count.load_relaxed() + n);  // relaxed: under the receive lock
}

// ---------------------------------------------------------------------------------------------- receiving

struct Look {
  Path path = Path::kTcp;
  std::size_t taken = 0;
  bool filled = false;
  bool lied = false;
  bool moved = false;  // the path changed just now
};

// One gate: which path, and what the ring has. `to` is a copy that was checked against the guarded range: the program's
// own array may change under us.
Look look_at_ring(Stream* s, const iovec* to, int n, int flags, Wakeups* wakeups) {
  Look look;
  if (s->core == nullptr) return look;
  const Gate gate;
  ReceiveState& state = s->core->receive;
  const auto before = static_cast<Path>(state.path.load_relaxed());  // relaxed: under the receive lock
  look.path = receive_path(&state, incoming(s).producer, &look.lied);
  if (!look.lied && look.path == Path::kRing) {
    RingConsumer consumer = consumer_of(s);
    look.lied = !consumer.refresh();
    if (!look.lied && consumer.available() > 0) {
      for (int i = 0; i < n; ++i) {
        std::size_t got = 0;
        if (flags & MSG_TRUNC) {  // TCP: the bytes are thrown away (recv(2))
          got = to[i].iov_len < consumer.available() ? to[i].iov_len : consumer.available();
          consumer.consume(got);
        } else if (flags & MSG_PEEK) {
          got = consumer.peek(look.taken, to[i].iov_base, to[i].iov_len);
        } else {
          got = consumer.peek(0, to[i].iov_base, to[i].iov_len);
          consumer.consume(got);
        }
        look.taken += got;
        look.filled = got == to[i].iov_len;
        if (!look.filled) break;
      }
      if (!(flags & MSG_PEEK)) {
        consumer.publish();
        if (consumer.take_wish()) wakeups->collect(s);
      }
    } else if (!look.lied && ring_ended(&state, incoming(s).producer, s->core->consumer.head.load_relaxed())) {
      look.path = Path::kTcpAgain;
    }
  }
  look.moved = look.path != before;
  return look;
}

// After bytes came over TCP: counts them and sees whether the ring comes next. True: the path changed.
bool count_and_follow(Stream* s, ssize_t n, int flags) {
  if (flags & MSG_PEEK) return false;
  if (s->core == nullptr) {
    count_tcp_received(s, static_cast<std::uint64_t>(n));
    return false;
  }
  const Gate gate;
  count_tcp_received(s, static_cast<std::uint64_t>(n));
  ReceiveState& state = s->core->receive;
  if (static_cast<Path>(state.path.load_relaxed()) != Path::kTcp) return false;  // relaxed: under the receive lock
  bool lied = false;  // said again, and answered, by the next operation
  return receive_path(&state, incoming(s).producer, &lied) == Path::kRing;
}

ssize_t kernel_receive(int fd, const iovec* parts, int count, std::size_t skip, int flags) {
  iovec to[kPartsMax];
  msghdr header = {};
  header.msg_iov = to;
  header.msg_iovlen = static_cast<std::size_t>(window(parts, count, skip, SIZE_MAX, to));
  return real().recvmsg(fd, &header, (flags | MSG_DONTWAIT) & ~MSG_WAITALL);
}

bool unread_by_peer(Stream* s) {
  const Gate gate;
  RingProducer producer = producer_of(s);
  return producer.refresh() && producer.used() > 0 && !outgoing(s).consumer.closed.load_acquire();
}

// Nobody has the other end of the TCP connection open any more.
bool peer_is_dead(int fd, const Stream* s) {
  const int orphan = peer_is_orphan(fd);
  if (orphan >= 0) return orphan != 0;
  return peer_gone(s->pair);  // its process, then: the next best
}

// The ring is empty and the kernel says the peer has finished. A process that died with our bytes unread in its ring would
// have been a reset on TCP, whose queue the kernel knows.
Step end_of_input(int fd, Stream* s) {
  if (s->core == nullptr || s->forked.load_relaxed()) return moved(0);  // relaxed: set once
  // Both ends have finished sending: the kernel's connection is over and its socket unfindable, whoever still reads the ring.
  if (s->send_over_tcp.load_acquire() || !unread_by_peer(s) || s->end_reported.load_relaxed()) return moved(0);
  // Asked again once it is dead: it may have read the rest between the two looks, and then ended well.
  if (!peer_is_dead(fd, s) || s->send_over_tcp.load_acquire() || !unread_by_peer(s)) return moved(0);
  if (s->end_reported.exchange(1) != 0) return moved(0);
  log(LogLevel::kWarn, FMT_COMPILE("fd {}: the peer died with unread bytes; TCP would have reset the connection"), fd);
  return failed(ECONNRESET);
}

bool must_ask_kernel(Stream* s, Path path) {
  if (path != Path::kRing || s->sticky.load_relaxed() != 0) return true;  // relaxed: own or earlier news
  // A program that only ever tries, never waits, must see the end too: ask now and then.
  const std::uint32_t empty = s->empty_reads.load_relaxed() + 1;  // relaxed: under the receive lock
  s->empty_reads.store_relaxed(empty % kEmptyReadsBeforeKernel);
  return empty == kEmptyReadsBeforeKernel;
}

struct ReceiveArguments {
  int fd;
  Stream* s;
  const iovec* parts;
  int count;
  int flags;
};

Step look_and_wake(const ReceiveArguments& a, std::size_t skip, Look* look) {
  iovec to[kPartsMax];
  const int n = window(a.parts, a.count, skip, SIZE_MAX, to);
  if (touches_guarded(to, n)) return failed(EFAULT);
  Wakeups wakeups;
  *look = look_at_ring(a.s, to, n, a.flags, &wakeups);
  wakeups.ring();
  if (look->lied) {
    poison(a.fd, a.s);
    return failed(ECONNRESET);
  }
  Step step = look->taken > 0 ? moved(static_cast<ssize_t>(look->taken)) : failed(EAGAIN);
  step.more = look->filled && look->path == Path::kRing;
  return step;
}

// Receive lock held. *follow: the path changed, the stream's epoll sets must look again.
Step receive_step(const ReceiveArguments& a, std::size_t skip, bool* follow) {
  Stream* s = a.s;
  if (s->poisoned.load_acquire()) return failed(ECONNRESET);
  Look look;
  Step step = look_and_wake(a, skip, &look);
  *follow = look.moved;
  if (step.error != EAGAIN) return step;
  if (const std::uint32_t error = s->pending_error.exchange(0)) return failed(static_cast<int>(error));
  if (!must_ask_kernel(s, look.path)) return failed(EAGAIN);

  const ErrnoSaver keep;
  ssize_t n = 1;
  if (look.path == Path::kRing) {
    // Bytes in the kernel were sent behind everything in the ring, but perhaps since we looked at it: look first, take later.
    char byte = 0;
    n = real().recv(a.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (n > 0) {
      step = look_and_wake(a, skip, &look);
      *follow = *follow || look.moved;
      if (step.error != EAGAIN) return step;
    }
  }
  if (n > 0) n = kernel_receive(a.fd, a.parts, a.count, skip, a.flags);
  if (n > 0) {
    *follow = count_and_follow(s, n, a.flags) || *follow;
    return moved(n);
  }
  const int error = n < 0 ? errno : 0;
  if (error == EAGAIN) {
    s->sticky.fetch_and(~std::uint32_t{kStickyIn});
    return failed(EAGAIN);
  }
  s->sticky.fetch_or(kStickyRdhup);
  if (look.path == Path::kRing) {
    // What the peer put into the ring before it finished is visible only now.
    step = look_and_wake(a, skip, &look);
    if (step.error != EAGAIN) {
      if (error != 0) s->pending_error.store_relaxed(static_cast<std::uint32_t>(error));  // relaxed: under the lock
      return step;
    }
    if (error == 0) return end_of_input(a.fd, s);
  }
  return n == 0 ? moved(0) : failed(error);
}

// Whether a blocking call that a signal interrupted goes on by itself. The wait underneath is ppoll, which never restarts,
// so the answer is looked up: every installed handler has SA_RESTART, or (when handlers differ) it does not.
bool restart_after_signal() {
  bool any = false;
  for (int number = 1; number < NSIG; ++number) {
    struct sigaction action = {};
    if (::sigaction(number, nullptr, &action) != 0) continue;
    if (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN) continue;
    any = true;
    if (!(action.sa_flags & SA_RESTART)) return false;
  }
  return any;
}

// Waits as a blocking call does. 0: try again; otherwise the errno to return.
int block(Stream* s, int fd, std::uint32_t event, std::uint64_t timeout_ns, std::uint64_t* deadline) {
  if (timeout_ns != 0 && *deadline == 0) *deadline = now_ns() + timeout_ns;
  switch (wait_stream(s, fd, event, *deadline)) {
    case Waited::kReady: return 0;
    case Waited::kTimeout: return EAGAIN;
    case Waited::kInterrupted: break;
  }
  if (timeout_ns == 0 && restart_after_signal()) return 0;  // with a timeout set it is EINTR always (signal(7))
  return EINTR;
}

ssize_t finish(std::size_t done, int error) {
  if (done > 0) return static_cast<ssize_t>(done);
  errno = error;
  return -1;
}

// The descriptor no longer names the managed stream. One that went back to TCP is the kernel's business; one that was closed
// while this thread slept on it must not be used again: its number may be another file's by now.
ssize_t lost(int fd, const Stream* s, std::size_t done, bool waited) {
  if (done > 0) return static_cast<ssize_t>(done);
  if (!waited || fd_table().stream(fd) == s) return kNotOurs;
  errno = EBADF;
  return -1;
}

// ---------------------------------------------------------------------------------------------- sending

// Whether this direction may leave TCP now. Gate open, send lock held.
bool may_switch(Stream* s) {
  if (s->forked.load_relaxed() || s->bells_lost.load_relaxed()) return false;  // relaxed: set under the send lock
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
  bool lied = false;
  bool bells_missing = false;  // nothing was done: fetch them first
};

bool leave_ring(Stream* s) {
  // Somebody sleeps whom we cannot wake (no descriptor left for his bell), or we are the child of a fork, which cannot be
  // handed bells: what follows goes over TCP, whose bytes wake by themselves.
  return s->bells_lost.load_relaxed() ||  // relaxed: under the send lock
         s->owner_generation != process().generation.load_relaxed();  // relaxed: changes by fork only
}

// Decides the path of the next bytes. Gate open, send lock held. True: the ring takes them.
bool route_to_ring(Stream* s, std::size_t want, Route* route) {
  if (s->core == nullptr || s->send_over_tcp.load_relaxed()) return false;  // relaxed: own word
  SendState& state = s->core->send;
  auto path = static_cast<Path>(state.path.load_relaxed());  // relaxed: under the send lock
  if (path == Path::kTcp && may_switch(s)) {
    begin_switch(&state, &outgoing(s).producer, want);
    path = Path::kDraining;
  }
  if (path == Path::kDraining) route->limit = state.tcp_left.load_relaxed();
  if (path != Path::kRing) return false;
  if (outgoing(s).consumer.closed.load_acquire()) {  // SYNC: closed
    s->send_over_tcp.store_relaxed(1);
    return false;
  }
  if (leave_ring(s)) {
    end_ring(&state, &outgoing(s).producer, s->core->producer.tail.load_relaxed());
    return false;
  }
  route->over_tcp = false;
  route->bells_missing = !bells_at_hand(s);
  return !route->bells_missing;
}

// `from` is a copy that was checked against the guarded range.
Route put_in_ring(Stream* s, const iovec* from, int n, std::size_t want, Wakeups* wakeups) {
  Route route;
  if (s->core == nullptr) return route;
  const Gate gate;
  if (!route_to_ring(s, want, &route)) return route;
  RingProducer producer = producer_of(s);
  route.lied = !producer.refresh();
  if (route.lied) return route;
  if (producer.space() == 0 && !producer.wish_space(&route.lied)) {
    route.full = true;
    return route;
  }
  for (int i = 0; i < n && producer.space() > 0; ++i) route.taken += producer.write(from[i].iov_base, from[i].iov_len);
  producer.publish();
  wakeups->collect(s);
  return route;
}

void count_tcp_sent(Stream* s, ssize_t n) {
  if (s->core == nullptr) {
    s->tcp_sent.fetch_add(static_cast<std::uint64_t>(n));
    return;
  }
  process().counters.tcp_tx.fetch_add(static_cast<std::uint64_t>(n));
  const Gate gate;
  tcp_sent(&s->core->send, static_cast<std::uint64_t>(n));
}

// After the peer's FIN nothing in the kernel tells us that its process has died: look, first and now and then.
void look_for_orphan(int fd, Stream* s, bool full) {
  if (!(s->sticky.load_relaxed() & kStickyRdhup) || s->send_over_tcp.load_relaxed()) return;  // relaxed: own or earlier
  const std::uint32_t sends = s->sends_after_fin.fetch_add(1);
  if (!full && sends % kSendsBetweenOrphanLooks != 0) return;
  if (s->core != nullptr && peer_is_dead(fd, s)) s->send_over_tcp.store_relaxed(1);
}

Step kernel_send(int fd, Stream* s, const iovec* parts, int count, std::size_t skip, std::size_t limit, int flags) {
  iovec from[kPartsMax];
  msghdr header = {};
  header.msg_iov = from;
  header.msg_iovlen = static_cast<std::size_t>(window(parts, count, skip, limit, from));
  if (limit != SIZE_MAX) flags &= ~MSG_MORE;  // these bytes are the peer's wake-up: they must not wait for more
  // Bytes have gone already: the call succeeds with those, so no SIGPIPE now.
  if (skip > 0) flags |= MSG_NOSIGNAL;
  const ssize_t n = real().sendmsg(fd, &header, flags | MSG_DONTWAIT);
  if (n < 0) return failed(errno);
  count_tcp_sent(s, n);
  return moved(n);
}

// Send lock held.
Step send_step(const ReceiveArguments& a, std::size_t skip, std::size_t want) {
  Stream* s = a.s;
  if (s->poisoned.load_acquire()) return failed(ECONNRESET);
  const ErrnoSaver keep;
  look_for_orphan(a.fd, s, false);
  iovec from[kPartsMax];
  const int parts = window(a.parts, a.count, skip, SIZE_MAX, from);
  if (touches_guarded(from, parts)) return failed(EFAULT);
  Wakeups wakeups;
  Route route = put_in_ring(s, from, parts, want, &wakeups);
  if (route.bells_missing) {
    if (!fetch_bells(s)) s->bells_lost.store_relaxed(1);  // relaxed: under the send lock
    route = put_in_ring(s, from, parts, want, &wakeups);
    // Another waiter came in between.
    for (int i = 0; route.bells_missing; ++i) {
      if (i == kWaitersRaceMax || !fetch_bells(s)) s->bells_lost.store_relaxed(1);  // relaxed: under the send lock
      route = put_in_ring(s, from, parts, want, &wakeups);
    }
  }
  wakeups.ring();
  if (route.lied) {
    poison(a.fd, s);
    return failed(ECONNRESET);
  }
  if (route.taken > 0) return moved(static_cast<ssize_t>(route.taken));
  if (route.full) {
    look_for_orphan(a.fd, s, true);
    return failed(EAGAIN);
  }
  return kernel_send(a.fd, s, a.parts, a.count, skip, route.limit, a.flags);
}

bool non_blocking(const Stream* s, int flags);

// recv(2) of zero bytes waits until there is something to receive (read(2) of zero does not; its hook asks the kernel).
ssize_t receive_nothing(int fd, Stream* s, int flags) {
  std::uint64_t deadline = 0;
  for (;;) {
    char byte = 0;
    if (unread_bytes(fd, s) > 0 || real().recv(fd, &byte, 0, MSG_DONTWAIT) == 0) return 0;
    if (errno != EAGAIN) return -1;
    if (non_blocking(s, flags)) return finish(0, EAGAIN);
    const int error = block(s, fd, EPOLLIN, s->receive_timeout_ns.load_relaxed(), &deadline);  // relaxed: an option
    if (error != 0) return finish(0, error);
  }
}

bool non_blocking(const Stream* s, int flags) {
  return (flags & MSG_DONTWAIT) || s->nonblocking.load_relaxed();  // relaxed: set by fcntl earlier in this thread's eyes
}

// MSG_OOB: the mark is TCP's. The ring ends (or never begins), and the byte goes behind everything sent before.
ssize_t send_urgent(int fd, Stream* s, const iovec* parts, int count, int flags) {
  const TransferLock lock(fd, s, TransferLock::kSend);
  if (lock.reentered()) return finish(0, EAGAIN);
  if (!lock.held()) return kNotOurs;
  s->bells_lost.store_relaxed(1);  // relaxed: under the send lock. From now on over TCP
  std::size_t limit = SIZE_MAX;
  if (s->core != nullptr) {
    const Gate gate;
    Route route;
    route_to_ring(s, 1, &route);
    limit = route.limit;
  }
  const Step step = kernel_send(fd, s, parts, count, 0, limit, flags);
  return step.n >= 0 ? step.n : finish(0, step.error);
}

}  // namespace

std::size_t total_bytes(const iovec* parts, int count) {
  std::size_t total = 0;
  for (int i = 0; i < count; ++i) {
    if (parts[i].iov_len > static_cast<std::size_t>(SSIZE_MAX) - total) return SIZE_MAX;
    total += parts[i].iov_len;
  }
  return total;
}

bool touches_guarded(const iovec* parts, int count) {
  const GuardedRange& range = process().guard.range();
  for (int i = 0; i < count; ++i) {
    if (range.touches(parts[i].iov_base, parts[i].iov_len)) return true;
  }
  return false;
}

ssize_t receive_stream(int fd, Stream* s, const iovec* parts, int count, int flags) {
  if (flags & (MSG_OOB | MSG_ERRQUEUE)) return kNotOurs;
  const std::size_t total = total_bytes(parts, count);
  if (total == SIZE_MAX) return finish(0, EINVAL);
  if (touches_guarded(parts, count)) return finish(0, EFAULT);
  if (total == 0) return receive_nothing(fd, s, flags);
  const ReceiveArguments arguments = {fd, s, parts, count, flags};
  std::size_t done = 0;
  std::uint64_t deadline = 0;
  bool waited = false;
  for (;;) {
    Step step;
    bool follow = false;
    {
      const TransferLock lock(fd, s, TransferLock::kReceive);
      if (lock.reentered()) return finish(done, EAGAIN);
      if (!lock.held()) return lost(fd, s, done, waited);
      step = receive_step(arguments, done, &follow);
    }
    if (follow) refresh_members(s);
    if (step.n > 0) {
      done += static_cast<std::size_t>(step.n);
      if (done == total || (flags & MSG_PEEK) || !((flags & MSG_WAITALL) || step.more)) return static_cast<ssize_t>(done);
      continue;
    }
    if (step.n == 0) return static_cast<ssize_t>(done);
    if (step.error != EAGAIN || non_blocking(s, flags)) return finish(done, step.error);
    if (done > 0 && !(flags & MSG_WAITALL)) return static_cast<ssize_t>(done);
    waited = true;
    const int error = block(s, fd, EPOLLIN, s->receive_timeout_ns.load_relaxed(), &deadline);  // relaxed: an option
    if (error != 0) return finish(done, error);
  }
}

ssize_t send_stream(int fd, Stream* s, const iovec* parts, int count, int flags) {
  if (flags & MSG_OOB) return send_urgent(fd, s, parts, count, flags);
  flags &= ~(MSG_ZEROCOPY | MSG_FASTOPEN);  // without SO_ZEROCOPY, and once connected, they mean nothing
  const std::size_t total = total_bytes(parts, count);
  if (total == SIZE_MAX) return finish(0, EINVAL);
  if (touches_guarded(parts, count)) return finish(0, EFAULT);
  if (total == 0) return 0;
  const ReceiveArguments arguments = {fd, s, parts, count, flags};
  std::size_t done = 0;
  std::uint64_t deadline = 0;
  bool waited = false;
  for (;;) {
    Step step;
    {
      const TransferLock lock(fd, s, TransferLock::kSend);
      if (lock.reentered()) return finish(done, EAGAIN);
      if (!lock.held()) return lost(fd, s, done, waited);
      step = send_step(arguments, done, total - done);
    }
    if (step.n >= 0) {
      done += static_cast<std::size_t>(step.n);
      if (done == total) return static_cast<ssize_t>(done);
      continue;
    }
    if (step.error != EAGAIN || non_blocking(s, flags)) return finish(done, step.error);
    waited = true;
    const int error = block(s, fd, EPOLLOUT, s->send_timeout_ns.load_relaxed(), &deadline);  // relaxed: an option
    if (error != 0) return finish(done, error);
  }
}

int unread_bytes(int fd, Stream* s) {
  int in_kernel = 0;
  if (real().ioctl(fd, FIONREAD, &in_kernel) != 0) return -1;
  const TransferLock lock(fd, s, TransferLock::kReceive);
  if (!lock.held() || s->core == nullptr) return in_kernel;
  const Gate gate;
  RingConsumer consumer = consumer_of(s);
  if (!consumer.refresh()) return in_kernel;
  const std::uint64_t sum = consumer.available() + static_cast<std::uint64_t>(in_kernel);
  return sum > INT_MAX ? INT_MAX : static_cast<int>(sum);
}

int unsent_bytes(int fd, Stream* s) {
  int in_kernel = 0;
  if (real().ioctl(fd, TIOCOUTQ, &in_kernel) != 0) return -1;
  const TransferLock lock(fd, s, TransferLock::kSend);
  if (!lock.held() || s->core == nullptr) return in_kernel;
  const Gate gate;
  RingProducer producer = producer_of(s);
  if (!producer.refresh()) return in_kernel;
  const std::uint64_t sum = producer.used() + static_cast<std::uint64_t>(in_kernel);
  return sum > INT_MAX ? INT_MAX : static_cast<int>(sum);
}

}  // namespace mpklink
