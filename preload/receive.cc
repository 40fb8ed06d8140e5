// SPDX-License-Identifier: MIT
// The receiving direction of a managed stream.
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/syscall.h>

#include "preload/epoll_set.h"
#include "preload/fd_table.h"
#include "preload/kernel_path.h"
#include "preload/log.h"
#include "preload/on_unwind.h"
#include "preload/pair.h"
#include "preload/patience.h"
#include "preload/readiness.h"
#include "preload/revoke.h"
#include "preload/transfer_lock.h"
#include "preload/transfer_step.h"
#include "shm/raw_syscall.h"

namespace mpklink {
namespace {

constexpr std::uint32_t kEmptyReadsBeforeKernel = 8;

void count_received(Stream* s, std::uint64_t n) {
  if (s->core == nullptr) return count_tcp_received(s, n);
  show_tcp_received(s, n);
  process().counters.tcp_rx.fetch_add(n);
  auto& count = s->core->receive.tcp_received;
  count.store_relaxed(count.load_relaxed() + n);  // relaxed: under the receive lock
}

struct Look {
  Path path = Path::kTcp;
  std::size_t taken = 0;
  bool filled = false;
  bool fault = false;
  bool lied = false;
  bool refusing = false;  // our own shutdown refuses what comes over TCP, or is about to
  bool shut = false;      // and the peer knew, before we looked, what the ring has
  bool moved = false;     // the path changed just now, or the peer wants its bytes back
};

// Takes from the ring what fits. Gate open.
void take_from_ring(RingConsumer* consumer, const Window& to, int flags, Look* look) {
  for (int i = 0; i < to.count; ++i) {
    const iovec& part = to.parts[i];
    const std::size_t there = consumer->available() - (flags & MSG_PEEK ? look->taken : 0);
    const std::size_t want = part.iov_len < there ? part.iov_len : there;
    // MSG_TRUNC on TCP: the bytes are thrown away (recv(2)).
    const std::size_t got =
        flags & MSG_TRUNC ? want : consumer->peek(flags & MSG_PEEK ? look->taken : 0, part.iov_base, want);
    if (!(flags & MSG_PEEK)) consumer->consume(got);
    look->taken += got;
    look->fault = got < want;
    look->filled = got == part.iov_len;
    if (!look->filled) return;
  }
}

// A look for the program found something to read beyond what there is now. Either it is there after all, or frozen, or the peer has taken it
// back, which is a lie: a receive that may block, as the program had reason to believe it would not, must not wait for it. Gate open, receive
// lock held. The tail is looked at once more, as it was further than this when `told` was written.
bool took_back(const Stream* s, RingConsumer* consumer) {
  return s->told.load_relaxed() == kToldLie || !consumer->refresh() ||  // relaxed: loaded before
         (consumer->available() == 0 && !consumer->frozen());
}

// One gate: which path, and what the ring has.
Look look_at_ring(Stream* s, const Window& to, int flags, Wakeups* wakeups) {
  Look look;
  if (s->core == nullptr) return look;
  if (s->ended.load_relaxed()) {  // relaxed: under the receive lock
    look.path = Path::kTcpAgain;
    return look;
  }
  const Gate gate;
  ReceiveState& state = s->core->receive;
  const auto before = static_cast<Path>(state.path.load_relaxed());  // relaxed: under the receive lock
  look.refusing = s->core->shut_begun.load_acquire() == kShutBoth;
  look.shut = incoming(s).consumer.closed.load_acquire() == kShut;  // SYNC: closed
  look.path = receive_path(&state, incoming(s), &look.lied);
  if (!look.lied && look.path == Path::kRing) {
    RingConsumer consumer = consumer_of(s);
    look.lied = !consumer.refresh();
    if (__builtin_expect(s->told.load_acquire() > consumer.end(), 0) && !look.lied) {
      look.lied = took_back(s, &consumer);
      look.path = receive_path(&state, incoming(s), &look.lied);
    }
    if (!look.lied && consumer.available() > 0 && look.path == Path::kRing) {
      take_from_ring(&consumer, to, flags, &look);
      // Frozen while we copied: none of it was taken, all of it comes over TCP.
      const bool kept = flags & MSG_PEEK ? !consumer.frozen() : consumer.publish(&look.lied);
      if (!kept) {
        look.taken = 0;
        look.fault = false;
        look.path = receive_path(&state, incoming(s), &look.lied);
      } else if (!(flags & MSG_PEEK) && consumer.take_wish()) {
        wakeups->collect(s);
      }
    }
  }
  look.moved = look.path != before || (incoming(s).producer.look_back.load_relaxed() != 0 &&  // relaxed: a hint
                                       !s->answered.load_relaxed());
  return look;
}

// After bytes came over TCP: counts them and sees whether the ring comes next. True: the path changed.
bool count_and_follow(Stream* s, ssize_t n, int flags) {
  if (flags & MSG_PEEK) return false;
  if (s->core == nullptr) {
    count_received(s, static_cast<std::uint64_t>(n));
    return false;
  }
  const Gate gate;
  count_received(s, static_cast<std::uint64_t>(n));
  ReceiveState& state = s->core->receive;
  const auto path = static_cast<Path>(state.path.load_relaxed());  // relaxed: under the receive lock
  if (path == Path::kTcpAgain) {
    // Both directions came back, and now their last bytes: the channel can go.
    return static_cast<Path>(s->core->send.path.load_relaxed()) == Path::kTcpAgain &&  // relaxed: a hint
           incoming(s).producer.returned.load_acquire() != 0;                          // SYNC: returned
  }
  if (path != Path::kTcp) return false;
  bool lied = false;  // said again, and answered, by the next operation
  return receive_path(&state, incoming(s), &lied) != Path::kTcp;
}

ssize_t kernel_receive(const Call& c, std::size_t skip, std::size_t limit) {
  Window to;
  if (!c.parts->window(skip, limit, &to)) return errno = EFAULT, -1;
  msghdr header = to.header();
  return quiet().recvmsg(c.fd, &header, (c.flags | MSG_DONTWAIT) & ~MSG_WAITALL);
}

// Bytes that are looked at and not taken: behind the `n` last ones of TCP the ring goes on. Returns how many of it were added.
std::size_t peek_behind(const Call& c, std::size_t n) {
  Stream* s = c.s;
  Window to;
  if (s->core == nullptr || n >= c.parts->total() || !c.parts->window(n, SIZE_MAX, &to)) return 0;
  const Gate gate;
  const ReceiveState& state = s->core->receive;
  if (static_cast<Path>(state.path.load_relaxed()) != Path::kTcp) return 0;  // relaxed: under the receive lock
  // SYNC: switch_at. Only compared: what a false one shows is the peer's own bytes.
  if (incoming(s).producer.switch_at.load_acquire() != state.tcp_received.load_relaxed() + n + 1) return 0;
  RingConsumer consumer = consumer_of(s);
  if (!consumer.refresh() || consumer.available() == 0) return 0;
  Look look;
  take_from_ring(&consumer, to, c.flags, &look);
  return consumer.frozen() ? 0 : look.taken;  // frozen: they come over TCP
}

bool unread_by_peer(Stream* s) {
  const Gate gate;
  RingProducer producer = producer_of(s);
  return producer.refresh() && producer.used() > 0 && !producer.frozen() && !outgoing(s).consumer.closed.load_acquire();
}

// The stream was frozen, and the peer ended, or our own shutdown did, before all that was unread was given back: the rest is still in the
// ring. What came over TCP since the switch is as much of it as was given back; what was given back behind our shutdown
// did not get through.
Step rescue(const Call& c, std::size_t skip, std::size_t limit) {
  Stream* s = c.s;
  Window to;
  if (!c.parts->window(skip, limit, &to)) return failed(EFAULT);
  const Gate gate;
  const Direction& in = incoming(s);
  ReceiveState& state = s->core->receive;
  if (static_cast<Path>(state.path.load_relaxed()) != Path::kTcpAgain) return moved(0);  // relaxed: receive lock
  if (s->ended.load_relaxed()) return moved(0);                                          // relaxed: as well
  const bool refused = s->core->shut_begun.load_acquire() == kShutBoth && all_counted(s);
  if (in.producer.returned.load_acquire() != 0 && !refused) return moved(0);             // SYNC: returned
  const std::uint64_t at = in.producer.switch_at.load_acquire();                         // SYNC: switch_at
  std::uint64_t received = state.tcp_received.load_relaxed();
  RingConsumer consumer = consumer_of(s);
  if (at == 0 || received < at - 1 || !consumer.refresh()) return moved(0);
  std::uint64_t offset = received - (at - 1);
  std::size_t taken = 0;
  for (int i = 0; i < to.count && offset < consumer.available(); ++i) {
    const iovec& part = to.parts[i];
    const std::size_t got = consumer.peek(offset, part.iov_base, part.iov_len);
    offset += got;
    taken += got;
    if (got < part.iov_len) break;
  }
  if (!(c.flags & MSG_PEEK)) state.tcp_received.store_relaxed(received + taken);
  return moved(static_cast<ssize_t>(taken));
}

// The ring is empty and the kernel says the peer has finished. A process that died with our bytes unread in its ring would
// have been a reset on TCP, whose queue the kernel knows.
Step end_of_input(const Call& c, std::size_t skip, std::size_t limit, bool shut) {
  Stream* s = c.s;
  const int fd = c.fd;
  if (s->core == nullptr) return moved(0);
  const Step rest = rescue(c, skip, limit);
  if (rest.n != 0) return rest;
  if (shut) s->ended.store_relaxed(1);  // relaxed: under the receive lock. TCP refuses what comes later
  // Kept back while there was something to rescue, whether our shutdown came to its end or failed.
  if (const std::uint32_t error = s->pending_error.exchange(0)) return failed(static_cast<int>(error));
  if (!alone(s)) return rest;
  // Both ends have finished sending: the kernel's connection is over and its socket unfindable, whoever still reads the ring.
  if (s->send_over_tcp.load_acquire() || !unread_by_peer(s) || s->end_reported.load_relaxed()) return moved(0);
  // Asked again once it is dead: it may have read the rest between the two looks, and then ended well.
  if (!peer_is_dead(fd, s) || s->send_over_tcp.load_acquire() || !unread_by_peer(s)) return moved(0);
  if (s->end_reported.exchange(1) != 0) return moved(0);
  log(LogLevel::kWarn, FMT_COMPILE("fd {}: the peer died with unread bytes; TCP would have reset the connection"), fd);
  return failed(ECONNRESET);
}

// The ring was frozen with bytes in it, and the sender is about to give them back, or has, and the kernel is about to deliver them, or
// it will at its next operation. *promised: some look has told the program of them, and none of the processes that share this end has frozen
// the ring since: then the sender has all the time it wants.
bool still_to_come(Stream* s, bool* promised) {
  const Gate gate;
  const bool called_back = outgoing(s).producer.look_back.load_acquire() != 0;                    // SYNC: look_back. Ours
  *promised = !called_back && s->told.load_relaxed() > s->core->consumer.head.load_relaxed();  // relaxed: earlier looks
  return not_received(s) > 0;
}

bool must_ask_kernel(Stream* s, Path path) {
  if (path != Path::kRing || s->sticky.load_relaxed() != 0) return true;  // relaxed: own or earlier news
  // A program that only ever tries, never waits, must see the end too: ask now and then.
  const std::uint32_t empty = s->empty_reads.load_relaxed() + 1;  // relaxed: under the receive lock
  s->empty_reads.store_relaxed(empty % kEmptyReadsBeforeKernel);
  return empty == kEmptyReadsBeforeKernel;
}

Step look_and_wake(const Call& c, std::size_t skip, std::size_t limit, Look* look) {
  Window to;
  if (!c.parts->window(skip, limit, &to)) return failed(EFAULT);
  Wakeups wakeups;
  *look = look_at_ring(c.s, to, c.flags, &wakeups);
  wakeups.ring();
  if (look->lied) {
    poison(c.fd, c.s);
    return failed(ECONNRESET);
  }
  if (look->taken == 0) return failed(look->fault ? EFAULT : EAGAIN);
  Step step = moved(static_cast<ssize_t>(look->taken));
  step.more = look->filled && look->path == Path::kRing;
  step.fault = look->fault;
  return step;
}

// Receive lock held. *follow: the path changed, the stream's epoll sets must look again.
Step receive_step(const Call& c, std::size_t skip, std::size_t limit, bool* follow) {
  Stream* s = c.s;
  if (s->poisoned.load_acquire()) return failed(ECONNRESET);
  Look look;
  Step step = look_and_wake(c, skip, limit, &look);
  *follow = look.moved;
  if (step.error != EAGAIN) return step;
  // The answer to our shutdown comes behind what is still to be rescued.
  if (!(look.refusing && look.path == Path::kTcpAgain)) {
    if (const std::uint32_t error = s->pending_error.exchange(0)) return failed(static_cast<int>(error));
  }
  if (!must_ask_kernel(s, look.path)) return failed(EAGAIN);

  const ErrnoSaver keep;
  ssize_t n = 1;
  if (look.path == Path::kRing) {
    // Bytes in the kernel were sent behind everything in the ring, but perhaps since we looked at it: look first, take later.
    char byte = 0;
    n = quiet().recv(c.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (n > 0) {
      step = look_and_wake(c, skip, limit, &look);
      *follow = *follow || look.moved;
      if (step.error != EAGAIN) return step;
    }
  }
  if (n > 0) n = kernel_receive(c, skip, limit);
  if (n > 0 && (c.flags & MSG_PEEK)) n += static_cast<ssize_t>(peek_behind(c, static_cast<std::size_t>(n)));
  if (n > 0) {
    Step of_kernel = moved(n);
    const bool moved_on = count_and_follow(s, n, c.flags);
    *follow = moved_on || *follow;
    if (!(c.flags & MSG_PEEK)) s->told.store_relaxed(0);  // relaxed: under the receive lock. What a look promised was one receive
    // The ring has more for this call, perhaps, or what was in it is on its way, piece by piece.
    of_kernel.more = moved_on || (look.path == Path::kTcpAgain && !s->stay_plain.load_relaxed() && still_to_come(s, &of_kernel.promised));  // relaxed: set once
    return of_kernel;
  }
  const int error = n < 0 ? errno : 0;
  if (error == EAGAIN) {
    s->sticky.fetch_and(~std::uint32_t{kStickyIn});
    Step nothing = failed(EAGAIN);
    // Where we froze the ring ourselves the sender may not be at it at all (revoke.cc has waited).
    nothing.on_its_way = look.path == Path::kTcpAgain && !s->stay_plain.load_relaxed() && still_to_come(s, &nothing.promised);  // relaxed: set once
    return nothing;
  }
  if (error == EFAULT) return failed(EFAULT);
  s->sticky.fetch_or(kStickyRdhup);
  if (look.path == Path::kRing) {
    // What the peer put into the ring before it finished is visible only now.
    step = look_and_wake(c, skip, limit, &look);
    if (step.error != EAGAIN) {
      if (error != 0) s->pending_error.store_relaxed(static_cast<std::uint32_t>(error));  // relaxed: under the lock
      return step;
    }
  }
  if (error == 0) return end_of_input(c, skip, limit, look.shut);
  if (look.refusing) {  // the peer's answer to our end came while there was something to read
    step = rescue(c, skip, limit);
    if (step.n > 0) s->pending_error.store_relaxed(static_cast<std::uint32_t>(error));  // relaxed: under the lock
    if (step.n != 0) return step;
    if (look.shut) s->ended.store_relaxed(1);  // relaxed: as above
  }
  return failed(error);
}

// recv(2) of zero bytes waits until there is something to receive (read(2) of zero does not; its hook asks the kernel).
ssize_t receive_nothing(Call* call) {
  const Call& c = *call;
  std::uint64_t deadline = 0;
  for (;;) {
    char byte = 0;
    if (unread_bytes(c.fd, c.s) > 0 || quiet().recv(c.fd, &byte, 0, MSG_DONTWAIT) == 0) return 0;
    if (errno != EAGAIN) return -1;
    if (non_blocking(c.s, c.flags)) return finish_call(0, EAGAIN);
    const int error = block(call, EPOLLIN, 0, c.s->receive_timeout_ns.load_relaxed(), &deadline);  // relaxed: an option
    if (error != 0) return finish_call(0, error);
  }
}

// The stream went back to TCP in the middle of a call that waits for all, or whose number is closed: the kernel goes on, counted as any call that may
// block there, or the next upgrade would not know that somebody sleeps on the socket alone. False: it has been upgraded already.
bool receive_rest(const Call& c, std::size_t done, ssize_t* result) {
  *result = done > 0 ? static_cast<ssize_t>(done) : -1;
  if (!fd_table().names(c.fd, c.s)) return errno = EBADF, true;
  Window to;
  if (!c.parts->window(done, SIZE_MAX, &to)) return errno = EFAULT, true;
  msghdr header = to.header();
  ssize_t n = 0;
  bool ours_again = false;
  Call call = c;
  {
    const OnUnwind owed(cancelled_on_stand_in, &call);
    ours_again = !kernel_operation(c.fd, c.s, Flow::kIn, true, &n, [&] { return real().recvmsg(c.fd, &header, c.flags); });
  }
  if (ours_again) return false;
  if (n < 0 && done > 0) keep_for_next_call(c.s, errno);
  if (n >= 0) *result = static_cast<ssize_t>(done) + n;
  return true;
}

// MSG_PEEK with MSG_WAITALL waits for all, which stay where they are: no event says that there are more, so it is by time. False:
// what there is is the answer.
bool peek_again(const Call& c, std::size_t got, std::size_t total, std::uint64_t* deadline) {
  constexpr std::uint64_t kPeekNapNs = 1000000;
  if (!(c.flags & MSG_WAITALL) || got >= total || got >= c.s->capacity || non_blocking(c.s, c.flags)) return false;
  if (c.s->sticky.load_relaxed() & kStickyRdhup) return false;  // relaxed: own or earlier news
  const std::uint64_t timeout = c.s->receive_timeout_ns.load_relaxed();  // relaxed: an option
  if (timeout != 0 && *deadline == 0) *deadline = now_ns() + timeout;
  if (timeout != 0 && now_ns() >= *deadline) return false;
  pollfd end = {c.fd, POLLRDHUP, 0};
  const timespec nap = {0, kPeekNapNs};
  const int n = real().ppoll(&end, 1, &nap, nullptr);
  if (n > 0) note_kernel_events(c.s, static_cast<std::uint32_t>(static_cast<unsigned short>(end.revents)));
  return n >= 0;
}

// A sender that is at it needs some tens of microseconds, and its turn on a busy machine. One that is not is waited for once.
constexpr std::uint64_t kNapsNs = 500000000;
constexpr std::uint64_t kImpatientNs = 100000000;  // before a stream is given up for lost, all patience gone

// *since: when the first was. `least`: so long in any case. False: no more of them.
bool nap(int fd, Stream* s, std::uint64_t* since, std::uint64_t least) {
  const std::uint64_t now = now_ns();
  if (*since == 0) {
    *since = now;
    if (pin(fd, s)) {
      answer_in_this_process(s);
      unpin(s);
    }
  }
  const std::uint64_t waited = now - *since;
  if (waited < kMomentNs) {
    sched_yield();
    return true;
  }
  if (waited >= least && !patience_left()) return false;
  if (waited > kNapsNs) return patience_lost(waited), false;
  const timespec time = {0, 100000};
  raw_syscall(SYS_nanosleep, reinterpret_cast<long>(&time), 0);  // raw: no cancellation point
  return true;
}

// Bytes that a look promised do not come: their sender froze them and did not give them back at once, as we do (give_back). A call that
// may block would wait for as long as it likes.
void poison_liar(const Call& c) {
  const TransferLock lock(c.fd, c.s, TransferLock::kReceive);
  if (lock.held()) poison(c.fd, c.s);
}

// Until the call has its bytes, the end or an error.
ssize_t receive_loop(Call* c, std::size_t total) {
  Stream* const s = c->s;
  const int flags = c->flags;
  // As sock_rcvlowat: a blocking call waits for so many.
  const std::size_t mark = low_water(s);
  const std::size_t target = mark < total ? mark : total;
  std::size_t done = 0;
  std::uint64_t deadline = 0;
  bool waited = false;
  std::uint64_t naps_since = 0;
  Undisturbed steps;  // what there is comes in one, whatever handlers receive from the stream
  for (;;) {
    Step step;
    bool follow = false;
    {
      const TransferLock lock(c->fd, s, TransferLock::kReceive);
      if (lock.reentered()) return finish_call(done, EAGAIN);
      if (!lock.held() && ((done > 0 && (flags & MSG_WAITALL)) || (done == 0 && c->on_stand_in))) {
        ssize_t result = 0;
        steps.allow();
        if (receive_rest(*c, done, &result)) return result;
        steps.again();
        continue;
      }
      if (!lock.held()) return lost_stream(c->fd, s, done, waited);
      step = receive_step(*c, done, total - done, &follow);
    }
    if (follow) path_moved(c->fd, s);
    if (step.n > 0 && (flags & MSG_PEEK)) {
      waited = true;
      steps.allow();
      if (!peek_again(*c, static_cast<std::size_t>(step.n), total, &deadline)) return step.n;
      steps.again();
      continue;
    }
    if (step.n > 0) {
      s->late = false;
      done += static_cast<std::size_t>(step.n);
      const bool enough = done >= target || non_blocking(s, flags);
      if (done == total || step.fault || !((flags & MSG_WAITALL) || step.more || !enough)) return static_cast<ssize_t>(done);
      continue;
    }
    if (step.n == 0) return static_cast<ssize_t>(done);
    // Bytes that were announced as readable are between ring and socket: a call that may not wait (any more) waits for those.
    // One that may wait, and for as long as it takes, waits for those that a look has promised.
    const bool waits = step.on_its_way && done == 0 && !non_blocking(s, flags);
    const bool for_ever = waits && s->receive_timeout_ns.load_relaxed() == 0;  // relaxed: an option
    if (step.on_its_way && (waits ? step.promised && for_ever : !s->late)) {
      waited = true;
      steps.allow();
      const bool late = !nap(c->fd, s, &naps_since, waits ? kImpatientNs : kMomentNs);
      steps.again();
      if (late && waits) poison_liar(*c);
      s->late = late;
      continue;
    }
    if (step.error != EAGAIN || non_blocking(s, flags)) return finish_call(s, done, step.error);
    if (done > 0 && !(flags & MSG_WAITALL) && done >= target) return static_cast<ssize_t>(done);
    waited = true;
    if (step.on_its_way) ask_for_the_rest(c->fd, s);
    steps.allow();
    const int error = block(c, EPOLLIN, done, s->receive_timeout_ns.load_relaxed(), &deadline);  // relaxed: an option
    if (error != 0) return finish_call(done, error);
    if (done > 0 && c->handlers.any()) return static_cast<ssize_t>(done);  // it may have received as well
    steps.again();
  }
}

}  // namespace

ssize_t receive_stream(int fd, Stream* s, const iovec* parts, int count, int flags) {
  if (flags & (MSG_OOB | MSG_ERRQUEUE)) return kNotOurs;
  Parts memory;
  if (const int error = memory.read(parts, count)) return finish_call(0, error);
  Call call = {fd, s, &memory, flags};
  pthread_testcancel();  // the kernel's call is a cancellation point also when it need not wait
  const ssize_t result = memory.total() == 0 ? receive_nothing(&call) : receive_loop(&call, memory.total());
  return call.on_stand_in ? finish_on_stand_in(call, result) : result;
}

int unread_bytes(int fd, Stream* s) {
  int in_kernel = 0;
  if (real().ioctl(fd, FIONREAD, &in_kernel) != 0) return -1;
  const TransferLock lock(fd, s, TransferLock::kReceive);
  if (!lock.held() || s->core == nullptr || s->ended.load_relaxed()) return in_kernel;  // relaxed: under the receive lock
  const Gate gate;
  RingConsumer consumer = consumer_of(s);
  // Before the switch the kernel's bytes come first, and not all of them need have arrived yet.
  const auto path = static_cast<Path>(s->core->receive.path.load_relaxed());  // relaxed: under the receive lock
  if (path != Path::kRing || consumer.frozen() || !consumer.refresh()) return in_kernel;
  const std::uint64_t sum = consumer.available() + static_cast<std::uint64_t>(in_kernel);
  return sum > INT_MAX ? INT_MAX : static_cast<int>(sum);
}

int bytes_left(int fd) {
  Stream* s = fd_table().stream(fd);
  if (s == nullptr) return 0;
  const ErrnoSaver keep;
  if (s->sticky.load_relaxed() == 0) {  // relaxed: own or earlier news. Nothing has come by way of the kernel
    const TransferLock lock(fd, s, TransferLock::kReceive);
    if (lock.held() && s->core != nullptr) {
      const Gate gate;
      RingConsumer consumer = consumer_of(s);
      const auto path = static_cast<Path>(s->core->receive.path.load_relaxed());  // relaxed: under the receive lock
      if (path == Path::kRing && consumer.refresh() && !consumer.frozen()) return static_cast<int>(consumer.available());
    }
  }
  const int unread = unread_bytes(fd, s);
  if (unread > 0) return unread;
  return s->sticky.load_relaxed() & kStickyRdhup ? 1 : 0;
}

}  // namespace mpklink
