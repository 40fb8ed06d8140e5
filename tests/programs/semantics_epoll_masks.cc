// SPDX-License-Identifier: MIT
// The exact event masks of epoll and poll through the life of a stream, and the edges. `NAME list` prints the cases.
#include <signal.h>

#include "epoll_case.h"

using namespace testlib;

namespace {

constexpr uint32_t kNorm = EPOLLRDNORM | EPOLLWRNORM;
constexpr uint32_t kReads = EPOLLIN | EPOLLRDNORM;
constexpr uint32_t kWrites = EPOLLOUT | EPOLLWRNORM;
constexpr uint32_t kAll = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLERR | EPOLLHUP | kNorm | EPOLLRDBAND | EPOLLWRBAND | EPOLLMSG;

// One stream in a set for each interest; what all of them say at a time.
class Interests {
 public:
  explicit Interests(int fd) : fd_(fd) {
    for (int i = 0; i < kCount; i++) sets_[i].add(fd, kInterests[i]);
  }
  // Level-triggered: `state` is all that is true of the stream now. ERR and HUP come asked for or not.
  void expect(uint32_t state) const {
    for (int i = 0; i < kCount; i++) CHECK_EQ(sets_[i].now(fd_), state & (kInterests[i] | EPOLLERR | EPOLLHUP));
    for (const uint32_t interest : kInterests) {
      const auto events = static_cast<short>(interest & 0x7fff);
      CHECK_EQ(poll_now(fd_, events), state & ((interest & 0x7fff) | EPOLLERR | EPOLLHUP));
    }
  }
  // The state may take a moment to come.
  void settle(uint32_t state) const {
    const int64_t deadline = now_ms() + 5000;
    while (sets_[0].now(fd_) != state && now_ms() < deadline) sleep_ms(1);
    expect(state);
  }

 private:
  static constexpr int kCount = 8;
  static constexpr uint32_t kInterests[kCount] = {kAll,      EPOLLIN,    EPOLLOUT, EPOLLRDHUP,
                                                  EPOLLIN | EPOLLRDHUP, EPOLLRDNORM, EPOLLWRNORM, 0};
  int fd_;
  Epoll sets_[kCount];
};

void half_close_server(int fd, const Sync& sync) {
  Streams s(fd, sync);
  const Interests all(fd);
  all.expect(kWrites);
  s.send(10);
  all.expect(kReads | kWrites);
  s.half_close();
  all.settle(kReads | kWrites | EPOLLRDHUP);
  s.take(10);
  all.expect(kReads | kWrites | EPOLLRDHUP);  // end of file can be read for ever
  expect_eof(fd);
  all.expect(kReads | kWrites | EPOLLRDHUP);
  s.give(10);  // the other direction goes on
  s.drain(10);
  all.expect(kReads | kWrites | EPOLLRDHUP);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  all.settle(kReads | kWrites | EPOLLRDHUP | EPOLLHUP);
  expect_eof(fd);
  all.expect(kReads | kWrites | EPOLLRDHUP | EPOLLHUP);
}

void own_shutdown_server(int fd, const Sync& sync) {
  // Our half first: writing is "ready" (EPIPE), reading goes on.
  Streams s(fd, sync);
  const Interests all(fd);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  all.expect(kWrites);
  s.send(10);
  all.expect(kReads | kWrites);
  s.take(10);
  all.expect(kWrites);
  s.half_close();
  all.settle(kReads | kWrites | EPOLLRDHUP | EPOLLHUP);
  expect_eof(fd);
}

void shut_read_server(int fd, const Sync& sync) {
  Streams s(fd, sync);
  const Interests all(fd);
  CHECK_EQ(shutdown(fd, SHUT_RD), 0);
  all.expect(kReads | kWrites | EPOLLRDHUP);
  expect_eof(fd);
  all.expect(kReads | kWrites | EPOLLRDHUP);
}

void peer_closes_server(int fd, const Sync& sync) {
  Streams s(fd, sync);
  const Interests all(fd);
  s.send(10);
  s.close_peer();
  all.settle(kReads | kWrites | EPOLLRDHUP);
  s.take(10);
  expect_eof(fd);
  all.expect(kReads | kWrites | EPOLLRDHUP);
}

void reset_server(int fd, const Sync& sync) {
  Streams s(fd, sync);
  const Interests all(fd);
  all.expect(kWrites);
  s.reset();
  constexpr uint32_t kDead = kReads | kWrites | EPOLLRDHUP | EPOLLHUP;
  all.settle(kDead | EPOLLERR);
  char byte;
  CHECK_ERRNO(recv(fd, &byte, 1, 0), ECONNRESET);
  all.expect(kDead);  // the error has been told
  CHECK_EQ(recv(fd, &byte, 1, 0), 0);
  all.expect(kDead);
}

void reset_so_error_server(int fd, const Sync& sync) {
  Streams s(fd, sync);
  const Interests all(fd);
  s.reset();
  constexpr uint32_t kDead = kReads | kWrites | EPOLLRDHUP | EPOLLHUP;
  all.settle(kDead | EPOLLERR);
  int error = 0;
  socklen_t size = sizeof error;
  CHECK_EQ(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size), 0);
  CHECK_EQ(error, ECONNRESET);
  all.expect(kDead);
}

void unmasked_server(int fd, const Sync& sync) {
  // events = 0, level and edge: the end of both directions is told all the same.
  Streams s(fd, sync);
  const Epoll level, edge;
  level.add(fd, 0);
  edge.add(fd, EPOLLET);
  s.send(10);
  s.half_close();
  level.quiet();
  edge.quiet();
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  CHECK_EQ(level.wait(fd), EPOLLHUP);
  CHECK_EQ(level.wait(fd), EPOLLHUP);
  CHECK_EQ(edge.wait(fd), EPOLLHUP);
  edge.quiet();
  s.take(10);
  expect_eof(fd);
}

void edges_server(int fd, const Sync& sync) {
  Streams s(fd, sync);
  const Epoll e;
  e.add(fd, EPOLLIN | EPOLLRDHUP | EPOLLET);
  e.quiet();
  for (int round = 0; round < 5; round++) {
    s.send(10);
    CHECK_EQ(e.now(fd), EPOLLIN);
    CHECK_EQ(e.now(fd), 0);
  }
  s.take(20);
  CHECK_EQ(e.now(fd), 0);  // bytes are left, no new ones came
  s.send(10);
  CHECK_EQ(e.now(fd), EPOLLIN);
  s.take(40);
  s.expect_empty();
  e.quiet();
  s.send_later(1);
  CHECK_EQ(e.wait(fd), EPOLLIN);
  s.acked();
  e.quiet();
  // Several arrivals before one look are one edge.
  for (int i = 0; i < 3; i++) s.send(10);
  CHECK_EQ(e.now(fd), EPOLLIN);
  CHECK_EQ(e.now(fd), 0);
  s.take(31);
  s.half_close();
  CHECK_EQ(e.wait(fd), EPOLLIN | EPOLLRDHUP);
  e.quiet();
  expect_eof(fd);
  e.quiet();
}

void once_server(int fd, const Sync& sync) {
  // EPOLLONESHOT with EPOLLET, and what re-arms it.
  Streams s(fd, sync);
  const Epoll e;
  constexpr uint32_t kOnce = EPOLLIN | EPOLLET | EPOLLONESHOT;
  e.add(fd, kOnce);
  for (int round = 0; round < 3; round++) {
    s.send_later(10);
    CHECK_EQ(e.wait(fd), EPOLLIN);
    s.acked();
    s.send(10);
    e.quiet();
    e.mod(fd, kOnce);
    CHECK_EQ(e.now(fd), EPOLLIN);
    CHECK_EQ(e.now(fd), 0);
    s.take(20);
    e.mod(fd, kOnce);
    CHECK_EQ(e.now(fd), 0);
  }
  e.mod(fd, EPOLLIN | EPOLLOUT | EPOLLONESHOT);
  CHECK_EQ(e.now(fd), EPOLLOUT);
  s.half_close();
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  e.quiet();  // disarmed means ERR and HUP too
  e.mod(fd, kOnce);
  CHECK_EQ(e.wait(fd), EPOLLIN | EPOLLHUP);
  expect_eof(fd);
}

void writable_server(int fd, const Sync& sync) {
  // Only OUT: full, not writable; writable when the peer has read, at once and asleep, level and edge.
  Streams s(fd, sync);
  const Epoll level, edge;
  level.add(fd, EPOLLOUT);
  edge.add(fd, EPOLLOUT | EPOLLET);
  CHECK_EQ(level.now(fd), EPOLLOUT);
  CHECK_EQ(edge.now(fd), EPOLLOUT);
  edge.quiet();
  s.send(10);  // nothing that concerns these
  CHECK_EQ(edge.now(fd), 0);
  for (int round = 0; round < 2; round++) {
    const long full = s.fill();
    (void)edge.now(fd);  // room that TCP made while it was being filled
    CHECK_EQ(level.now(fd), 0);
    edge.quiet();
    if (round == 0) {
      s.drain_later(full);
      CHECK_EQ(level.wait(fd), EPOLLOUT);
      s.acked();
      CHECK_EQ(edge.wait(fd), EPOLLOUT);
    } else {
      s.drain_later(full);
      CHECK_EQ(edge.wait(fd), EPOLLOUT);
      s.acked();
      CHECK_EQ(level.wait(fd), EPOLLOUT);
    }
    (void)edge.now(fd);  // TCP may make room in two steps
    edge.quiet();
  }
  s.take(10);
}

void in_and_out_server(int fd, const Sync& sync) {
  // IN while full: the edge for data must not claim room; the edge for room comes later.
  Streams s(fd, sync);
  const Epoll e;
  e.add(fd, EPOLLIN | EPOLLOUT | EPOLLET);
  CHECK_EQ(e.now(fd), EPOLLOUT);
  const long full = s.fill();
  (void)e.now(fd);
  e.quiet();
  s.send_later(10);
  CHECK_EQ(e.wait(fd), EPOLLIN);
  s.acked();
  s.take(10);
  e.quiet();
  s.drain_later(full);
  CHECK_EQ(e.wait(fd), EPOLLOUT);
  s.acked();
  s.send(1);
  CHECK_EQ(e.wait(fd), EPOLLIN | EPOLLOUT);  // an edge tells all that is true
  s.take(1);
}

// ---- time and signals ------------------------------------------------------------------------------------------------

int64_t now_ns() {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * int64_t{1000000000} + t.tv_nsec;
}

void timeouts_server(int fd, const Sync& sync) {
  // Never early, to the nanosecond; at once when there is something.
  Streams s(fd, sync);
  const Epoll e;
  e.add(fd, EPOLLIN);
  struct epoll_event got[2];
  const long nanoseconds[] = {0, 1, 999, 50000, 1000000, 1500000, 20000001};
  for (const long ns : nanoseconds) {
    const struct timespec time = {0, ns};
    const int64_t start = now_ns();
    CHECK_EQ(epoll_pwait2(e.fd(), got, 2, &time, nullptr), 0);
    CHECK(now_ns() - start >= ns);
  }
  const int milliseconds[] = {0, 1, 3, 50};
  for (const int ms : milliseconds) {
    const int64_t start = now_ns();
    CHECK_EQ(epoll_wait(e.fd(), got, 2, ms), 0);
    CHECK(now_ns() - start >= ms * int64_t{1000000});
  }
  const struct timespec wrong = {0, 1000000000};
  CHECK_ERRNO(epoll_pwait2(e.fd(), got, 2, &wrong, nullptr), EINVAL);
  s.send_later(1);
  CHECK_EQ(epoll_pwait2(e.fd(), got, 2, nullptr, nullptr), 1);  // for ever
  s.acked();
  CHECK_EQ(epoll_wait(e.fd(), got, 2, -1), 1);
  CHECK_EQ(epoll_wait(e.fd(), got, 2, 0), 1);
  CHECK_EQ(epoll_wait(e.fd(), got, 2, -5), 1);
  s.take(1);
}

volatile sig_atomic_t g_signals = 0;
void on_signal(int) { g_signals = g_signals + 1; }

void masks_server(int fd, const Sync& sync) {
  Streams s(fd, sync);
  const Epoll e;
  e.add(fd, EPOLLIN);
  struct sigaction action = {};
  action.sa_handler = on_signal;
  CHECK_EQ(sigaction(SIGUSR1, &action, nullptr), 0);
  sigset_t usr1, none;
  sigemptyset(&none);
  sigemptyset(&usr1);
  sigaddset(&usr1, SIGUSR1);
  CHECK_EQ(pthread_sigmask(SIG_BLOCK, &usr1, nullptr), 0);
  CHECK_EQ(pthread_kill(pthread_self(), SIGUSR1), 0);
  struct epoll_event got;
  CHECK_EQ(epoll_pwait(e.fd(), &got, 1, 20, &usr1), 0);  // blocked as before: not interrupted
  CHECK_EQ(epoll_pwait(e.fd(), &got, 1, 20, nullptr), 0);
  CHECK_EQ(g_signals, 0);
  s.send(1);
  CHECK_EQ(epoll_pwait(e.fd(), &got, 1, 1000, &none), 1);  // an event goes before a signal, which stays pending
  CHECK_EQ(g_signals, 0);
  s.take(1);
  CHECK_ERRNO(epoll_pwait(e.fd(), &got, 1, 1000, &none), EINTR);
  CHECK_EQ(g_signals, 1);
  CHECK_EQ(pthread_kill(pthread_self(), SIGUSR1), 0);
  const struct timespec second = {1, 0};
  CHECK_ERRNO(epoll_pwait2(e.fd(), &got, 1, &second, &none), EINTR);
  CHECK_EQ(g_signals, 2);
  sigset_t now;
  CHECK_EQ(pthread_sigmask(SIG_BLOCK, nullptr, &now), 0);
  CHECK_EQ(sigismember(&now, SIGUSR1), 1);  // restored
  CHECK_EQ(pthread_sigmask(SIG_UNBLOCK, &usr1, nullptr), 0);
}

const Case kCases[] = {
    {"half_close", half_close_server, told_client},
    {"own_shutdown", own_shutdown_server, told_client},
    {"shut_read", shut_read_server, told_client},
    {"peer_closes", peer_closes_server, told_client},
    {"reset", reset_server, told_client},
    {"reset_so_error", reset_so_error_server, told_client},
    {"unmasked", unmasked_server, told_client},
    {"edges", edges_server, told_client},
    {"once", once_server, told_client},
    {"writable", writable_server, told_client},
    {"in_and_out", in_and_out_server, told_client},
    {"timeouts", timeouts_server, told_client},
    {"masks", masks_server, told_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
