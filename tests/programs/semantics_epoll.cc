// SPDX-License-Identifier: MIT
// epoll on a TCP stream, event by event. `NAME list` prints the cases.
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

#include "case_main.h"

using namespace testlib;

namespace {

constexpr uint64_t kUp = 51, kDown = 52;

// ---- the peer: does what it is told over the side channel -------------------------------------------------------------

enum Command : int { kSend = 1, kDrain = 2, kHalfClose = 3, kFinish = 4 };

struct Order {
  int command;
  int bytes;
};

void obedient_client(int fd, const Sync& sync) {
  uint64_t sent = 0, drained = 0;
  for (;;) {
    Order order;
    CHECK_EQ(recv(sync.fd(), &order, sizeof order, MSG_WAITALL), sizeof order);
    const auto bytes = static_cast<size_t>(order.bytes);
    switch (order.command) {
      case kSend:
        sleep_ms(20);
        send_pattern(fd, kUp, sent, bytes);
        sent += bytes;
        break;
      case kDrain:
        recv_pattern(fd, kDown, drained, bytes);
        drained += bytes;
        break;
      case kHalfClose:
        CHECK_EQ(shutdown(fd, SHUT_WR), 0);
        break;
      default:
        close(fd);
        return;
    }
  }
}

// The server's end: the stream in an epoll set.
class Watched {
 public:
  Watched(int fd, const Sync& sync, uint32_t events) : fd_(fd), sync_(sync), epoll_(epoll_create1(EPOLL_CLOEXEC)) {
    CHECK(epoll_ >= 0);
    control(EPOLL_CTL_ADD, events);
  }
  ~Watched() {
    order(kFinish);
    close(epoll_);
    close(fd_);
  }
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

  int epoll() const { return epoll_; }
  void control(int operation, uint32_t events) {
    struct epoll_event event = {};
    event.events = events;
    event.data.u64 = 0x1234567890abcdefu;  // all 64 bits come back
    CHECK_EQ(epoll_ctl(epoll_, operation, fd_, &event), 0);
  }
  void order(Command command, int bytes = 0) const {
    const Order o = {command, bytes};
    CHECK_EQ(write(sync_.fd(), &o, sizeof o), sizeof o);
  }
  // The events of the stream; 0 when nothing happens for `timeout_ms`.
  uint32_t wait(int timeout_ms = 5000) const {
    struct epoll_event events[4];
    const int n = epoll_wait(epoll_, events, 4, timeout_ms);
    if (n == 0) return 0;
    CHECK_EQ(n, 1);
    CHECK(events[0].data.u64 == 0x1234567890abcdefu);
    return events[0].events;
  }
  uint32_t now() const { return wait(0); }
  // Nothing comes, also a little later.
  void quiet() const { CHECK_EQ(wait(60), 0); }
  void take(size_t bytes) {
    recv_pattern(fd_, kUp, taken_, bytes);
    taken_ += bytes;
  }
  // Writes until nothing fits; the number of bytes.
  size_t fill(size_t step = 8192) {
    const size_t total = fill_up(fd_, kDown, written_, 2048, step);
    written_ += total;
    return total;
  }
  void expect_would_block() const {
    char byte;
    CHECK_ERRNO(recv(fd_, &byte, 1, MSG_DONTWAIT), EAGAIN);
  }
  void end() const { expect_eof(fd_); }

 private:
  int fd_;
  const Sync& sync_;
  int epoll_;
  uint64_t taken_ = 0, written_ = 0;
};

// ---- the cases --------------------------------------------------------------------------------------------------------

void level_server(int fd, const Sync& sync) {
  Watched w(fd, sync, EPOLLIN);
  w.quiet();
  w.order(kSend, 100);
  CHECK_EQ(w.wait(), EPOLLIN);
  CHECK_EQ(w.now(), EPOLLIN);  // as long as there is data
  w.take(40);
  CHECK_EQ(w.now(), EPOLLIN);
  w.take(60);
  CHECK_EQ(w.now(), 0);
  w.control(EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
  CHECK_EQ(w.wait(), EPOLLOUT);
  CHECK_EQ(w.now(), EPOLLOUT);
  w.order(kSend, 10);
  w.control(EPOLL_CTL_MOD, EPOLLIN);
  CHECK_EQ(w.wait(), EPOLLIN);
  w.control(EPOLL_CTL_MOD, 0);
  CHECK_EQ(w.now(), 0);  // not interested
  w.control(EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
  CHECK_EQ(w.now(), EPOLLIN | EPOLLOUT);
  w.take(10);
}

void edge_server(int fd, const Sync& sync) {
  Watched w(fd, sync, EPOLLIN | EPOLLET);
  w.quiet();
  w.order(kSend, 100);
  CHECK_EQ(w.wait(), EPOLLIN);
  w.quiet();  // once, although nothing was read
  w.order(kSend, 100);
  CHECK_EQ(w.wait(), EPOLLIN);  // new data is a new edge, old data unread
  w.take(50);
  w.quiet();  // a partial read is no edge
  w.take(150);
  w.expect_would_block();
  w.quiet();
  w.order(kSend, 1);
  CHECK_EQ(w.wait(), EPOLLIN);
  w.take(1);
}

void edge_out_server(int fd, const Sync& sync) {
  Watched w(fd, sync, EPOLLIN | EPOLLOUT | EPOLLET);
  CHECK_EQ(w.wait(), EPOLLOUT);  // ready when added: reported once
  w.quiet();
  const size_t full = w.fill();
  (void)w.now();  // room that TCP made while it was being filled
  w.quiet();
  w.order(kDrain, static_cast<int>(full));
  CHECK_EQ(w.wait() & ~uint32_t{EPOLLIN}, EPOLLOUT);  // room again: an edge
}

// A message that finds some room, but not enough, is refused: more room is an edge all the same.
void edge_out_small_server(int fd, const Sync& sync) {
  Watched w(fd, sync, EPOLLIN | EPOLLOUT | EPOLLET);
  CHECK_EQ(w.wait(), EPOLLOUT);
  const size_t full = w.fill(100);
  (void)w.now();
  w.quiet();
  w.order(kDrain, static_cast<int>(full));
  CHECK_EQ(w.wait() & ~uint32_t{EPOLLIN}, EPOLLOUT);
}

void oneshot_server(int fd, const Sync& sync) {
  Watched w(fd, sync, EPOLLIN | EPOLLONESHOT);
  w.order(kSend, 100);
  CHECK_EQ(w.wait(), EPOLLIN);
  w.quiet();  // disarmed
  w.order(kSend, 100);
  w.quiet();
  w.control(EPOLL_CTL_MOD, EPOLLIN | EPOLLONESHOT);
  CHECK_EQ(w.wait(), EPOLLIN);  // rearmed: what is there is reported
  w.take(200);
  w.quiet();
  w.control(EPOLL_CTL_MOD, EPOLLIN | EPOLLONESHOT | EPOLLET);
  w.quiet();
  w.order(kSend, 5);
  CHECK_EQ(w.wait(), EPOLLIN);
  w.take(5);
}

void rearm_server(int fd, const Sync& sync) {
  // EPOLL_CTL_MOD with EPOLLET reports again what is ready at that time.
  Watched w(fd, sync, EPOLLIN | EPOLLET);
  w.order(kSend, 100);
  CHECK_EQ(w.wait(), EPOLLIN);
  w.quiet();
  w.control(EPOLL_CTL_MOD, EPOLLIN | EPOLLET);
  CHECK_EQ(w.now(), EPOLLIN);
  w.quiet();
  w.control(EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT | EPOLLET);
  CHECK_EQ(w.now(), EPOLLIN | EPOLLOUT);
  w.quiet();
  w.take(100);
}

void add_ready_server(int fd, const Sync& sync) {
  // Data that is there when the descriptor is added; del and add again.
  Watched w(fd, sync, 0);
  w.order(kSend, 100);
  struct pollfd p = {fd, POLLIN, 0};
  CHECK_EQ(poll(&p, 1, 5000), 1);
  CHECK_EQ(w.now(), 0);
  CHECK_EQ(epoll_ctl(w.epoll(), EPOLL_CTL_DEL, fd, nullptr), 0);
  w.control(EPOLL_CTL_ADD, EPOLLIN | EPOLLET);
  CHECK_EQ(w.now(), EPOLLIN);
  w.quiet();
  CHECK_EQ(epoll_ctl(w.epoll(), EPOLL_CTL_DEL, fd, nullptr), 0);
  w.quiet();
  struct epoll_event event = {};
  CHECK_ERRNO(epoll_ctl(w.epoll(), EPOLL_CTL_MOD, fd, &event), ENOENT);
  CHECK_ERRNO(epoll_ctl(w.epoll(), EPOLL_CTL_DEL, fd, nullptr), ENOENT);
  w.control(EPOLL_CTL_ADD, EPOLLIN);
  CHECK_ERRNO(epoll_ctl(w.epoll(), EPOLL_CTL_ADD, fd, &event), EEXIST);
  CHECK_EQ(w.now(), EPOLLIN);
  w.take(100);
}

void hangup_server(int fd, const Sync& sync) {
  Watched w(fd, sync, EPOLLIN | EPOLLRDHUP | EPOLLET);
  w.order(kSend, 100);
  CHECK_EQ(w.wait(), EPOLLIN);
  w.order(kHalfClose);
  CHECK_EQ(w.wait(), EPOLLIN | EPOLLRDHUP);  // the end is an edge
  w.take(100);
  w.end();
  w.control(EPOLL_CTL_MOD, EPOLLIN);
  CHECK_EQ(w.now(), EPOLLIN);  // level: end of file is readable for ever
  CHECK_EQ(w.now(), EPOLLIN);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  CHECK_EQ(w.wait(), EPOLLIN | EPOLLHUP);
  w.control(EPOLL_CTL_MOD, 0);
  CHECK_EQ(w.now(), EPOLLHUP);  // cannot be masked
}

void nested_server(int fd, const Sync& sync) {
  // An epoll set in another one, and poll on an epoll set.
  Watched w(fd, sync, EPOLLIN);
  const int outer = epoll_create1(EPOLL_CLOEXEC);
  CHECK(outer >= 0);
  struct epoll_event event = {}, got = {};
  event.events = EPOLLIN;
  event.data.fd = w.epoll();
  CHECK_EQ(epoll_ctl(outer, EPOLL_CTL_ADD, w.epoll(), &event), 0);
  struct pollfd p = {w.epoll(), POLLIN, 0};
  CHECK_EQ(epoll_wait(outer, &got, 1, 50), 0);
  CHECK_EQ(poll(&p, 1, 0), 0);
  w.order(kSend, 100);
  CHECK_EQ(epoll_wait(outer, &got, 1, 5000), 1);
  CHECK_EQ(got.data.fd, w.epoll());
  CHECK_EQ(poll(&p, 1, 5000), 1);
  CHECK_EQ(p.revents, POLLIN);
  CHECK_EQ(w.now(), EPOLLIN);
  w.take(100);
  CHECK_EQ(epoll_wait(outer, &got, 1, 50), 0);
  CHECK_EQ(poll(&p, 1, 50), 0);
  w.order(kSend, 1);
  CHECK_EQ(poll(&p, 1, 5000), 1);  // asleep in poll on the epoll set
  w.take(1);
  close(outer);
}

void mixed_server(int fd, const Sync& sync) {
  // A timer, a pipe and the stream in one set: none starves the others while the stream is always ready.
  Watched w(fd, sync, EPOLLIN | EPOLLOUT);
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  const int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  CHECK(timer >= 0);
  struct epoll_event event = {};
  event.events = EPOLLIN;
  event.data.fd = timer;
  CHECK_EQ(epoll_ctl(w.epoll(), EPOLL_CTL_ADD, timer, &event), 0);
  event.data.fd = ends[0];
  CHECK_EQ(epoll_ctl(w.epoll(), EPOLL_CTL_ADD, ends[0], &event), 0);
  const struct itimerspec soon = {{0, 0}, {0, 20000000}};
  CHECK_EQ(timerfd_settime(timer, 0, &soon, nullptr), 0);
  CHECK_EQ(write(ends[1], "x", 1), 1);
  bool timer_seen = false, pipe_seen = false, stream_seen = false;
  const int64_t deadline = now_ms() + 5000;
  while (!(timer_seen && pipe_seen && stream_seen)) {
    CHECK(now_ms() < deadline);
    struct epoll_event got;  // room for one event only
    CHECK_EQ(epoll_wait(w.epoll(), &got, 1, 5000), 1);
    if (got.data.u64 == 0x1234567890abcdefu) {
      stream_seen = true;
    } else if (got.data.fd == timer) {
      timer_seen = true;
      CHECK_EQ(epoll_ctl(w.epoll(), EPOLL_CTL_DEL, timer, nullptr), 0);
    } else {
      CHECK_EQ(got.data.fd, ends[0]);
      pipe_seen = true;
      CHECK_EQ(epoll_ctl(w.epoll(), EPOLL_CTL_DEL, ends[0], nullptr), 0);
    }
  }
  CHECK_EQ(w.now(), EPOLLOUT);
  close(timer);
  close(ends[0]);
  close(ends[1]);
}

void errors_server(int fd, const Sync& sync) {
  Watched w(fd, sync, EPOLLIN);
  struct epoll_event got[2];
  CHECK_ERRNO(epoll_wait(w.epoll(), got, hidden(0), 0), EINVAL);
  CHECK_ERRNO(epoll_wait(w.epoll(), got, hidden(-1), 0), EINVAL);
  CHECK_ERRNO(epoll_wait(fd, got, 1, 0), EINVAL);
  CHECK_ERRNO(epoll_wait(4000, got, 1, 0), EBADF);
  CHECK_ERRNO(epoll_ctl(w.epoll(), EPOLL_CTL_ADD, w.epoll(), got), EINVAL);
  CHECK_ERRNO(epoll_ctl(w.epoll(), EPOLL_CTL_ADD, 4000, got), EBADF);
  const int64_t start = now_ms();
  CHECK_EQ(epoll_wait(w.epoll(), got, 2, 120), 0);
  CHECK(now_ms() - start >= 115);
  const struct timespec some = {0, 120000000};
  CHECK_EQ(epoll_pwait2(w.epoll(), got, 2, &some, nullptr), 0);
  CHECK(now_ms() - start >= 230);
  errno = 4711;
  w.order(kSend, 1);
  CHECK_EQ(w.wait(), EPOLLIN);
  CHECK_EQ(errno, 4711);  // a success leaves errno alone
  w.take(1);
}

volatile sig_atomic_t g_signals = 0;
void on_signal(int) { g_signals = g_signals + 1; }

void* signal_later(void* argument) {
  sleep_ms(100);
  CHECK_EQ(pthread_kill(*static_cast<pthread_t*>(argument), SIGUSR1), 0);
  return nullptr;
}

void signals_server(int fd, const Sync& sync) {
  Watched w(fd, sync, EPOLLIN);
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  CHECK_EQ(sigaction(SIGUSR1, &action, nullptr), 0);
  pthread_t self = pthread_self();
  const pthread_t thread = start_thread(signal_later, &self);
  struct epoll_event got;
  CHECK_ERRNO(epoll_wait(w.epoll(), &got, 1, 5000), EINTR);  // whatever SA_RESTART says
  join_thread(thread);
  sigset_t usr1, none;
  sigemptyset(&none);
  sigemptyset(&usr1);
  sigaddset(&usr1, SIGUSR1);
  CHECK_EQ(pthread_sigmask(SIG_BLOCK, &usr1, nullptr), 0);
  CHECK_EQ(pthread_kill(self, SIGUSR1), 0);
  CHECK_ERRNO(epoll_pwait(w.epoll(), &got, 1, 5000, &none), EINTR);
  CHECK_EQ(g_signals, 2);
  CHECK_EQ(pthread_sigmask(SIG_UNBLOCK, &usr1, nullptr), 0);
}

// Two threads asleep in one epoll set: a message wakes one, the end of the program wakes both.
struct Sleeper {
  const Watched* watched;
  int woken;
};

void* sleep_in_epoll(void* argument) {
  auto* s = static_cast<Sleeper*>(argument);
  struct epoll_event got;
  CHECK_EQ(epoll_wait(s->watched->epoll(), &got, 1, 10000), 1);
  CHECK(got.events & EPOLLIN);
  s->woken = 1;
  return nullptr;
}

void two_waiters_server(int fd, const Sync& sync) {
  Watched w(fd, sync, EPOLLIN);
  Sleeper sleepers[2] = {{&w, 0}, {&w, 0}};
  pthread_t threads[2];
  for (int i = 0; i < 2; i++) threads[i] = start_thread(sleep_in_epoll, &sleepers[i]);
  sleep_ms(100);
  w.order(kSend, 100);  // level-triggered and unread: in the end both see it
  for (pthread_t t : threads) join_thread(t);
  CHECK_EQ(sleepers[0].woken + sleepers[1].woken, 2);
  w.take(100);
}

void closed_server(int fd, const Sync& sync) {
  // A descriptor that is closed leaves the set by itself, unless a duplicate keeps it alive.
  Watched w(fd, sync, 0);
  const int copy = dup(fd);
  CHECK(copy >= 0);
  struct epoll_event event = {}, got = {};
  event.events = EPOLLIN;
  event.data.fd = copy;
  CHECK_EQ(epoll_ctl(w.epoll(), EPOLL_CTL_ADD, copy, &event), 0);  // two registrations of one stream
  w.order(kSend, 100);
  CHECK_EQ(epoll_wait(w.epoll(), &got, 1, 5000), 1);
  CHECK_EQ(got.data.fd, copy);
  CHECK_EQ(epoll_ctl(w.epoll(), EPOLL_CTL_DEL, copy, nullptr), 0);
  CHECK_EQ(close(copy), 0);
  CHECK_EQ(epoll_wait(w.epoll(), &got, 1, 30), 0);
  w.control(EPOLL_CTL_MOD, EPOLLIN);
  CHECK_EQ(w.now(), EPOLLIN);
  w.take(100);
}

const Case kCases[] = {
    {"level", level_server, obedient_client},
    {"edge", edge_server, obedient_client},
    {"edge_out", edge_out_server, obedient_client},
    {"edge_out_small", edge_out_small_server, obedient_client},
    {"oneshot", oneshot_server, obedient_client},
    {"rearm", rearm_server, obedient_client},
    {"add_ready", add_ready_server, obedient_client},
    {"hangup", hangup_server, obedient_client},
    {"nested", nested_server, obedient_client},
    {"mixed", mixed_server, obedient_client},
    {"errors", errors_server, obedient_client},
    {"signals", signals_server, obedient_client},
    {"two_waiters", two_waiters_server, obedient_client},
    {"closed", closed_server, obedient_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
