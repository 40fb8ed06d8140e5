// SPDX-License-Identifier: MIT
// The other end of most semantics_* cases: a client that does what the server asks of it over the side channel, at once or when
// the server sleeps, and reports what it saw.
#pragma once

#include <poll.h>
#include <sys/ioctl.h>

#include "asleep.h"
#include "case_main.h"

namespace testlib {

inline constexpr uint64_t kUp = 71, kDown = 72;  // pattern seeds: client → server, server → client

enum class Do : int {
  kSend,       // `bytes` of the pattern
  kTrickle,    // one byte every 40 ms until the next order, at most `bytes`
  kUrgent,     // one byte of the pattern as urgent data
  kTry,        // sends one byte; reports the error
  kDrain,      // reads `bytes` of the pattern
  kReadToEnd,  // reads until end of file or an error; reports how many bytes and which error
  kHalfClose,  // shutdown(SHUT_WR)
  kClose,
  kReset,      // close with SO_LINGER 0
  kLeave,      // no more orders
};

struct Order {
  Do what;
  pid_t when_asleep;  // the thread that has to sleep first; 0: at once
  uint64_t bytes;
};

struct Report {
  uint64_t bytes;
  int error;
};

inline void close_with_reset(int fd) {
  const struct linger l = {1, 0};
  CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l), 0);
  CHECK_EQ(close(fd), 0);
}

// Reads the pattern from `offset` on until there is no more.
inline Report read_to_end(int fd, uint64_t seed, uint64_t offset) {
  char buffer[kStep];
  Report report = {0, 0};
  for (;;) {
    const ssize_t n = recv(fd, buffer, sizeof buffer, 0);
    if (n < 0) report.error = errno;
    if (n <= 0) return report;
    pattern_check(buffer, static_cast<size_t>(n), seed, offset + report.bytes);
    report.bytes += static_cast<uint64_t>(n);
  }
}

// One end's view of a pattern stream that it sends, and of one that it reads.
struct Obedient {
  int fd;
  const Sync& sync;
  uint64_t sent = 0, taken = 0;

  void send_some(uint64_t bytes) {
    send_pattern(fd, kUp, sent, bytes);
    sent += bytes;
  }
  uint64_t trickle(uint64_t most) {
    struct pollfd next = {sync.fd(), POLLIN, 0};
    uint64_t done = 0;
    while (done < most && poll(&next, 1, 40) == 0) {
      send_some(1);
      done++;
    }
    return done;
  }
  void urgent() {
    const char byte = static_cast<char>(pattern_byte(kUp, sent++));
    CHECK_EQ(send(fd, &byte, 1, MSG_OOB), 1);
  }
  Report obey(const Order& order) {
    if (order.when_asleep != 0) await_asleep(order.when_asleep);
    Report report = {order.bytes, 0};
    switch (order.what) {
      case Do::kSend: send_some(order.bytes); break;
      case Do::kTrickle: report.bytes = trickle(order.bytes); break;
      case Do::kUrgent: urgent(); break;
      case Do::kTry: report.error = send(fd, "", 1, MSG_NOSIGNAL) < 0 ? errno : 0; break;
      case Do::kDrain:
        recv_pattern(fd, kDown, taken, order.bytes);
        taken += order.bytes;
        break;
      case Do::kReadToEnd:
        report = read_to_end(fd, kDown, taken);
        taken += report.bytes;
        break;
      case Do::kHalfClose: CHECK_EQ(shutdown(fd, SHUT_WR), 0); break;
      case Do::kClose: CHECK_EQ(close(fd), 0); break;
      case Do::kReset: close_with_reset(fd); break;
      case Do::kLeave: break;
    }
    return report;
  }
};

inline void obedient_client(int fd, const Sync& sync) {
  Obedient self = {fd, sync};
  for (;;) {
    Order order;
    CHECK_EQ(recv(sync.fd(), &order, sizeof order, MSG_WAITALL), sizeof order);
    const Report report = self.obey(order);
    CHECK_EQ(write(sync.fd(), &report, sizeof report), sizeof report);
    if (order.what == Do::kLeave) return;
  }
}

// The server's end of an obedient_client.
class Peer {
 public:
  Peer(int fd, const Sync& sync) : fd_(fd), sync_(sync) {}
  ~Peer() { now(Do::kLeave); }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;

  // Done when this returns.
  Report now(Do what, uint64_t bytes = 0) {
    settle();
    order(what, 0, bytes);
    return settle();
  }
  // Done as soon as the calling thread sleeps. Several are done one after the other, each when it sleeps (again).
  void when_asleep(Do what, uint64_t bytes = 0) { order(what, gettid(), bytes); }
  void start(Do what, uint64_t bytes = 0) { order(what, 0, bytes); }
  // Waits for the orders that were only started; the last report.
  Report settle() {
    Report report = {0, 0};
    for (; outstanding_ > 0; outstanding_--) {
      CHECK_EQ(recv(sync_.fd(), &report, sizeof report, MSG_WAITALL), sizeof report);
    }
    return report;
  }

  // `bytes` more are there to be read, without having been touched.
  void arrive(size_t bytes) {
    now(Do::kSend, bytes);
    unread_ += bytes;
    const int64_t deadline = now_ms() + 5000;
    for (int available = 0; static_cast<size_t>(available) < unread_; sleep_ms(1)) {
      CHECK(now_ms() < deadline);
      CHECK_EQ(ioctl(fd_, FIONREAD, &available), 0);
    }
  }
  // The stream goes on where it should: `bytes` of it are read, or have been read into `data`.
  void take(size_t bytes) {
    recv_pattern(fd_, kUp, taken_, bytes);
    count(bytes);
  }
  void took(const void* data, size_t bytes) {
    look(data, bytes);
    count(bytes);
  }
  // What was peeked at.
  void look(const void* data, size_t bytes, size_t after = 0) const { pattern_check(data, bytes, kUp, taken_ + after); }
  // Read bytes whose values nobody looks at.
  void count(size_t bytes) {
    taken_ += bytes;
    unread_ -= bytes < unread_ ? bytes : unread_;
  }
  uint8_t next_byte() const { return pattern_byte(kUp, taken_); }

  // Our own direction.
  void put(size_t bytes) {
    send_pattern(fd_, kDown, put_, bytes);
    put_ += bytes;
  }
  void prepare(void* data, size_t bytes) const { pattern_fill(data, bytes, kDown, put_); }
  void wrote(size_t bytes) { put_ += bytes; }
  // Until nothing fits; the number of bytes that did.
  uint64_t fill() {
    if (put_ > drained_) drained();
    const uint64_t bytes = fill_up(fd_, kDown, put_);
    put_ += bytes;
    return bytes;
  }
  // On top of what is there already, perhaps nothing.
  uint64_t fill_more() {
    const uint64_t bytes = fill_up(fd_, kDown, put_, 0);
    put_ += bytes;
    return bytes;
  }
  void drained() {
    now(Do::kDrain, put_ - drained_);
    drained_ = put_;
  }
  // The same without waiting for it.
  void start_draining() {
    const uint64_t bytes = put_ - drained_;
    drained_ = put_;  // first: the sleeping thread may count more as soon as the peer reads
    start(Do::kDrain, bytes);
  }

  void await_events(short events) const {
    struct pollfd p = {fd_, events, 0};
    CHECK_EQ(poll(&p, 1, 5000), 1);
    CHECK((p.revents & events) == events);
  }
  // Both directions still carry bytes; then both ends close in order.
  void finish() {
    if (put_ > drained_) drained();
    put(100);
    drained();
    now(Do::kSend, 100);
    take(100);
    now(Do::kHalfClose);
    expect_eof(fd_);
    CHECK_EQ(shutdown(fd_, SHUT_WR), 0);
    const Report report = now(Do::kReadToEnd);
    CHECK_EQ(report.bytes, 0);
    CHECK_EQ(report.error, 0);
    now(Do::kClose);
    CHECK_EQ(close(fd_), 0);
  }

 private:
  void order(Do what, pid_t when_asleep, uint64_t bytes) {
    const Order o = {what, when_asleep, bytes};
    CHECK_EQ(write(sync_.fd(), &o, sizeof o), sizeof o);
    outstanding_++;
  }

  int fd_;
  const Sync& sync_;
  int outstanding_ = 0;
  size_t unread_ = 0;
  uint64_t taken_ = 0, put_ = 0, drained_ = 0;
};

}  // namespace testlib
