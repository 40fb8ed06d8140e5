// SPDX-License-Identifier: MIT
// One interface over the ways a Unix program waits for many descriptors, so that one event loop can be run on each of them.
#pragma once

#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>

#include "testlib.h"

namespace testlib {

inline constexpr int kMaxWatched = 512;

struct Ready {
  int fd;
  bool readable, writable;
};

// select | pselect | poll | ppoll | epoll | epoll-et | epoll-oneshot. Descriptors are watched for reading, writing or both; after each
// `wait` the caller says again what it wants by `want` (needed by epoll-oneshot, ignored where nothing changed).
class Waiter {
 public:
  enum class Kind { kSelect, kPselect, kPoll, kPpoll, kLevel, kEdge, kOneshot };

  explicit Waiter(const char* name) : kind_(parse(name)) {
    if (is_epoll()) {
      epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
      CHECK(epoll_fd_ >= 0);
    }
  }
  ~Waiter() {
    if (epoll_fd_ >= 0) close(epoll_fd_);
  }
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

  bool edge() const { return kind_ == Kind::kEdge; }

  // A tracer or a stop signal makes epoll_wait fail with EINTR although no handler ran (signal(7)): `wait` then gives 0.
  void expect_eintr() { eintr_expected_ = true; }

  void add(int fd, bool read, bool write) {
    CHECK(count_ < kMaxWatched);
    watched_[count_++] = {fd, read, write};
    if (is_epoll()) control(EPOLL_CTL_ADD, watched_[count_ - 1]);
  }

  void want(int fd, bool read, bool write) {
    Ready& w = find(fd);
    const bool changed = w.readable != read || w.writable != write;
    w.readable = read;
    w.writable = write;
    if (kind_ == Kind::kOneshot || (kind_ == Kind::kLevel && changed)) control(EPOLL_CTL_MOD, w);
  }

  // Before close(fd).
  void remove(int fd) {
    Ready& w = find(fd);
    if (is_epoll()) CHECK_EQ(epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, fd, nullptr), 0);
    w = watched_[--count_];
  }

  // Blocks until something is ready (or `timeout_ms`); the number of entries of `out` filled in.
  int wait(Ready* out, int capacity, int timeout_ms = -1) {
    switch (kind_) {
      case Kind::kSelect:
      case Kind::kPselect:
        return wait_select(out, capacity, timeout_ms);
      case Kind::kPoll:
      case Kind::kPpoll:
        return wait_poll(out, capacity, timeout_ms);
      default:
        return wait_epoll(out, capacity, timeout_ms);
    }
  }

 private:
  static Kind parse(const char* name) {
    static const struct {
      const char* name;
      Kind kind;
    } kinds[] = {{"select", Kind::kSelect}, {"pselect", Kind::kPselect}, {"poll", Kind::kPoll},
                 {"ppoll", Kind::kPpoll},   {"epoll", Kind::kLevel},     {"epoll-et", Kind::kEdge},
                 {"epoll-oneshot", Kind::kOneshot}};
    for (const auto& k : kinds)
      if (strcmp(k.name, name) == 0) return k.kind;
    CHECK(!"unknown --wait");
    return Kind::kPoll;
  }

  bool is_epoll() const { return kind_ == Kind::kLevel || kind_ == Kind::kEdge || kind_ == Kind::kOneshot; }

  Ready& find(int fd) {
    for (int i = 0; i < count_; i++)
      if (watched_[i].fd == fd) return watched_[i];
    CHECK(!"descriptor not watched");
    return watched_[0];
  }

  void control(int operation, const Ready& w) {
    struct epoll_event event = {};
    event.data.fd = w.fd;
    if (kind_ == Kind::kEdge) {
      event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    } else {
      event.events = (w.readable ? EPOLLIN : 0u) | (w.writable ? EPOLLOUT : 0u) | (kind_ == Kind::kOneshot ? EPOLLONESHOT : 0u);
    }
    CHECK_EQ(epoll_ctl(epoll_fd_, operation, w.fd, &event), 0);
  }

  int wait_select(Ready* out, int capacity, int timeout_ms) {
    fd_set reads, writes;
    FD_ZERO(&reads);
    FD_ZERO(&writes);
    int top = -1;
    for (int i = 0; i < count_; i++) {
      CHECK(watched_[i].fd < FD_SETSIZE);
      if (watched_[i].readable) FD_SET(watched_[i].fd, &reads);
      if (watched_[i].writable) FD_SET(watched_[i].fd, &writes);
      if (watched_[i].fd > top) top = watched_[i].fd;
    }
    struct timeval tv = {timeout_ms / 1000, timeout_ms % 1000 * 1000};
    struct timespec ts = {timeout_ms / 1000, timeout_ms % 1000 * 1000000L};
    const int n = kind_ == Kind::kSelect
                      ? select(top + 1, &reads, &writes, nullptr, timeout_ms < 0 ? nullptr : &tv)
                      : pselect(top + 1, &reads, &writes, nullptr, timeout_ms < 0 ? nullptr : &ts, nullptr);
    CHECK(n >= 0);
    int bits = 0, filled = 0;
    for (int i = 0; i < count_; i++) {
      const bool r = FD_ISSET(watched_[i].fd, &reads), w = FD_ISSET(watched_[i].fd, &writes);
      CHECK(!r || watched_[i].readable);
      CHECK(!w || watched_[i].writable);
      bits += (r ? 1 : 0) + (w ? 1 : 0);
      if ((r || w) && filled < capacity) out[filled++] = {watched_[i].fd, r, w};
    }
    CHECK_EQ(bits, n);  // select's result is the number of bits
    return filled;
  }

  int wait_poll(Ready* out, int capacity, int timeout_ms) {
    struct pollfd fds[kMaxWatched];
    for (int i = 0; i < count_; i++) {
      fds[i] = {watched_[i].fd, static_cast<short>((watched_[i].readable ? POLLIN : 0) | (watched_[i].writable ? POLLOUT : 0)), -1};
    }
    struct timespec ts = {timeout_ms / 1000, timeout_ms % 1000 * 1000000L};
    const int n = kind_ == Kind::kPoll ? poll(fds, static_cast<nfds_t>(count_), timeout_ms)
                                       : ppoll(fds, static_cast<nfds_t>(count_), timeout_ms < 0 ? nullptr : &ts, nullptr);
    CHECK(n >= 0);
    int nonzero = 0, filled = 0;
    for (int i = 0; i < count_; i++) {
      const int events = fds[i].revents;
      if (events == 0) continue;
      nonzero++;
      CHECK((events & ~(fds[i].events | POLLERR | POLLHUP)) == 0);
      if (filled < capacity)
        out[filled++] = {fds[i].fd, (events & (POLLIN | POLLERR | POLLHUP)) != 0, (events & (POLLOUT | POLLERR | POLLHUP)) != 0};
    }
    CHECK_EQ(nonzero, n);  // poll's result is the number of entries with revents
    return filled;
  }

  int wait_epoll(Ready* out, int capacity, int timeout_ms) {
    struct epoll_event events[64];
    const int limit = capacity < 64 ? capacity : 64;
    const int n = epoll_wait(epoll_fd_, events, limit, timeout_ms);
    if (n < 0 && errno == EINTR && eintr_expected_) return 0;
    CHECK(n >= 0 && n <= limit);
    for (int i = 0; i < n; i++) {
      for (int j = 0; j < i; j++) CHECK(events[j].data.fd != events[i].data.fd);  // never the same one twice
      find(events[i].data.fd);
      const uint32_t e = events[i].events;
      CHECK(e != 0);
      out[i] = {events[i].data.fd, (e & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP)) != 0,
                (e & (EPOLLOUT | EPOLLERR | EPOLLHUP)) != 0};
    }
    return n;
  }

  Kind kind_;
  int epoll_fd_ = -1;
  bool eintr_expected_ = false;
  int count_ = 0;
  Ready watched_[kMaxWatched];
};

}  // namespace testlib
