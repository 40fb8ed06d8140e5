// SPDX-License-Identifier: MIT
// Both ends of the semantics_epoll_* cases: a peer that does what it is told over the side channel, on any number of streams, and an
// epoll set that checks what it returns.
#pragma once

#include <poll.h>
#include <sys/epoll.h>

#include "case_main.h"

namespace testlib {

inline constexpr int kStreamsMax = 32;
inline uint64_t seed_up(int stream) { return 500 + static_cast<uint64_t>(stream); }
inline uint64_t seed_down(int stream) { return 600 + static_cast<uint64_t>(stream); }

enum class Command : int { kOpen, kSend, kDrain, kHalfClose, kClose, kReset, kAck, kPause, kEnd };

struct Order {
  Command command;
  int stream;
  long number;
};

inline void close_by_reset(int fd) {
  const struct linger now = {1, 0};
  CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now), 0);
  CHECK_EQ(close(fd), 0);
}

// Stream 0 is the case's own connection; kOpen makes the next one, to port `number`.
inline void told_client(int first, const Sync& sync) {
  int fds[kStreamsMax] = {first};
  uint64_t sent[kStreamsMax] = {}, drained[kStreamsMax] = {};
  for (;;) {
    Order order;
    CHECK_EQ(recv(sync.fd(), &order, sizeof order, MSG_WAITALL), sizeof order);
    const int i = order.stream;
    const auto bytes = static_cast<size_t>(order.number);
    switch (order.command) {
      case Command::kOpen:
        fds[i] = connect_to("127.0.0.1", static_cast<int>(order.number));
        no_delay(fds[i]);
        warm_client(fds[i]);
        break;
      case Command::kSend:
        send_pattern(fds[i], seed_up(i), sent[i], bytes);
        sent[i] += bytes;
        break;
      case Command::kDrain:
        recv_pattern(fds[i], seed_down(i), drained[i], bytes);
        drained[i] += bytes;
        break;
      case Command::kHalfClose:
        CHECK_EQ(shutdown(fds[i], SHUT_WR), 0);
        break;
      case Command::kClose:
        CHECK_EQ(close(fds[i]), 0);
        break;
      case Command::kReset:
        close_by_reset(fds[i]);
        break;
      case Command::kAck:
        sync.post();
        break;
      case Command::kPause:
        sleep_ms(order.number);
        break;
      case Command::kEnd:
        return;
    }
  }
}

// The server's end: its streams, and the peer's obedience. What a method asks for has happened when it returns.
class Streams {
 public:
  Streams(int fd, const Sync& sync) : sync_(sync) { fds_[0] = fd; }
  ~Streams() {
    tell(Command::kEnd, 0);
    if (listener_ >= 0) close(listener_);
  }
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;

  // One more stream, warmed up: its index.
  int more() {
    if (listener_ < 0) listener_ = listen_on("127.0.0.1");
    CHECK(count_ < kStreamsMax);
    tell(Command::kOpen, count_, port_of(listener_));
    fds_[count_] = accept_one(listener_);
    no_delay(fds_[count_]);
    warm_server(fds_[count_]);
    return count_++;
  }
  void more_up_to(int count) {
    while (count_ < count) more();
  }
  int count() const { return count_; }
  int fd(int i = 0) const { return fds_[i]; }

  void send(long bytes, int i = 0) const { ask(Command::kSend, i, bytes); }
  void drain(long bytes, int i = 0) const { ask(Command::kDrain, i, bytes); }
  void half_close(int i = 0) const { ask(Command::kHalfClose, i); }
  void close_peer(int i = 0) const { ask(Command::kClose, i); }
  void reset(int i = 0) const { ask(Command::kReset, i); }
  // Sends after a pause, in which this end goes to sleep; the caller needs `acked` once.
  void send_later(long bytes, int i = 0) const {
    tell(Command::kPause, i, 30);
    tell(Command::kSend, i, bytes);
    tell(Command::kAck, i);
  }
  void drain_later(long bytes, int i = 0) const {
    tell(Command::kPause, i, 30);
    tell(Command::kDrain, i, bytes);
    tell(Command::kAck, i);
  }
  void acked() const { sync_.wait(); }

  void take(size_t bytes, int i = 0) {
    recv_pattern(fds_[i], seed_up(i), taken_[i], bytes);
    taken_[i] += bytes;
  }
  void expect_empty(int i = 0) const {
    char byte;
    CHECK_ERRNO(recv(fds_[i], &byte, 1, MSG_DONTWAIT), EAGAIN);
  }
  long fill(int i = 0) {
    const uint64_t total = fill_up(fds_[i], seed_down(i), written_[i]);
    written_[i] += total;
    return static_cast<long>(total);
  }
  void give(size_t bytes, int i = 0) {
    send_pattern(fds_[i], seed_down(i), written_[i], bytes);
    written_[i] += bytes;
  }
  uint64_t taken(int i = 0) const { return taken_[i]; }

 private:
  void tell(Command command, int i, long number = 0) const {
    const Order order = {command, i, number};
    CHECK_EQ(write(sync_.fd(), &order, sizeof order), sizeof order);
  }
  void ask(Command command, int i, long number = 0) const {
    tell(command, i, number);
    tell(Command::kAck, i);
    acked();
  }

  const Sync& sync_;
  int listener_ = -1;
  int count_ = 1;
  int fds_[kStreamsMax] = {};
  uint64_t taken_[kStreamsMax] = {}, written_[kStreamsMax] = {};
};

class Epoll {
 public:
  Epoll() : fd_(epoll_create1(EPOLL_CLOEXEC)) { CHECK(fd_ >= 0); }
  ~Epoll() {
    if (fd_ >= 0) close(fd_);
  }
  Epoll(const Epoll&) = delete;
  Epoll& operator=(const Epoll&) = delete;

  int fd() const { return fd_; }
  void shut() {
    CHECK_EQ(close(fd_), 0);
    fd_ = -1;
  }

  int control(int operation, int fd, uint32_t events, uint64_t data) const {
    struct epoll_event event = {};
    event.events = events;
    event.data.u64 = data;
    return epoll_ctl(fd_, operation, fd, &event);
  }
  void add(int fd, uint32_t events, uint64_t data) const { CHECK_EQ(control(EPOLL_CTL_ADD, fd, events, data), 0); }
  void add(int fd, uint32_t events) const { add(fd, events, key(fd)); }
  void mod(int fd, uint32_t events) const { CHECK_EQ(control(EPOLL_CTL_MOD, fd, events, key(fd)), 0); }
  void del(int fd) const { CHECK_EQ(epoll_ctl(fd_, EPOLL_CTL_DEL, fd, nullptr), 0); }

  // All 64 bits come back.
  static uint64_t key(int fd) { return 0xfedcba9800000000u + static_cast<uint64_t>(fd); }

  // The events of `fd`, the only one that has any; 0: nothing within the time.
  uint32_t wait(int fd, int timeout_ms = 5000) const {
    struct epoll_event got[4];
    const int n = epoll_wait(fd_, got, 4, timeout_ms);
    if (n == 0) return 0;
    CHECK_EQ(n, 1);
    CHECK_EQ(got[0].data.u64, key(fd));
    return got[0].events;
  }
  uint32_t now(int fd) const { return wait(fd, 0); }
  // Nothing, also a little later.
  void quiet() const {
    struct epoll_event got[4];
    CHECK_EQ(epoll_wait(fd_, got, 4, 50), 0);
  }

 private:
  int fd_;
};

// What poll says of one descriptor, without waiting.
inline int poll_now(int fd, short events = POLLIN) {
  struct pollfd p = {fd, events, 0};
  const int n = poll(&p, 1, 0);
  CHECK(n >= 0);
  CHECK_EQ(n, p.revents != 0);
  return p.revents;
}

}  // namespace testlib
