// SPDX-License-Identifier: MIT
#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <limits>
#include <vector>

#include "clients.h"
#include "failure.h"
#include "message.h"

namespace bench {
namespace {

constexpr int kMaxEvents = 256;

struct Member {
  Fd connection;
  std::uint64_t number = 0;  // of its message
  std::uint64_t start_ns = 0;
  std::uint64_t left = 0;    // messages still to send in this run, the one on its way included
  std::size_t sent = 0, received = 0;
  std::uint32_t watched = EPOLLIN;
};

/// Connections of one epoll set. Each has at most one message on its way.
class Crowd {
 public:
  explicit Crowd(const ClientOptions& options);

  /// The first `active` connections exchange `messages` each, or as many as they come to until `until_ns`; the others stay quiet.
  void exchange(std::size_t active, std::uint64_t messages, std::uint64_t until_ns, Measurement* measurement);

 private:
  void start_message(std::size_t index);
  void step(std::size_t index);
  void send_more(std::size_t index);
  bool receive_more(std::size_t index);
  void finish_message(std::size_t index);
  void watch(std::size_t index, std::uint32_t events);
  void show_message(std::size_t index);

  Fd epoll_;
  std::vector<Member> members_;
  Message message_;  // one for all: it is given the number of the connection that is at work
  std::vector<unsigned char> buffer_;
  std::size_t active_ = 0;
  std::uint64_t until_ns_ = 0;
  Measurement* measurement_ = nullptr;
};

Crowd::Crowd(const ClientOptions& options)
    : epoll_(epoll_create1(EPOLL_CLOEXEC)), members_(options.connections), message_(options.bytes), buffer_(options.bytes) {
  if (epoll_.get() < 0) fail_errno("epoll_create1");
  for (std::size_t i = 0; i < members_.size(); ++i) {
    Member& m = members_[i];
    m.connection = connect_to(options.address);
    m.number = static_cast<std::uint64_t>(i) << 32;  // a message that comes back on another connection is a wrong one
    set_nonblocking(m.connection.get());
    epoll_event event = {};
    event.events = m.watched;
    event.data.u64 = i;
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, m.connection.get(), &event) != 0) fail_errno("epoll_ctl");
  }
}

void Crowd::exchange(std::size_t active, std::uint64_t messages, std::uint64_t until_ns, Measurement* measurement) {
  if (messages == 0) return;
  active_ = active;
  until_ns_ = until_ns;
  measurement_ = measurement;
  for (std::size_t i = 0; i < active; ++i) {
    members_[i].left = messages;
    start_message(i);
  }
  std::array<epoll_event, kMaxEvents> events;
  while (active_ > 0) {
    const int n = epoll_wait(epoll_.get(), events.data(), kMaxEvents, -1);
    if (n < 0 && errno != EINTR) fail_errno("epoll_wait");
    for (int i = 0; i < n; ++i) step(events[static_cast<std::size_t>(i)].data.u64);
  }
}

void Crowd::start_message(std::size_t index) {
  Member& m = members_[index];
  ++m.number;
  m.sent = m.received = 0;
  m.start_ns = now_ns();
  send_more(index);
}

void Crowd::step(std::size_t index) {
  Member& m = members_[index];
  if (m.left == 0) fail("connection {} is idle and was reported ready: the server has closed it, or sent what nobody asked for", index);
  if (m.sent < message_.size()) {
    send_more(index);
  } else if (receive_more(index)) {
    finish_message(index);
  }
}

void Crowd::show_message(std::size_t index) { message_.set_number(members_[index].number); }

void Crowd::send_more(std::size_t index) {
  Member& m = members_[index];
  show_message(index);
  m.sent += send_some(m.connection.get(), message_.data() + m.sent, message_.size() - m.sent);
  watch(index, m.sent < message_.size() ? EPOLLOUT : EPOLLIN);
}

bool Crowd::receive_more(std::size_t index) {
  Member& m = members_[index];
  const std::size_t n = receive_some(m.connection.get(), buffer_.data(), message_.size() - m.received);
  show_message(index);
  message_.check(m.received, buffer_.data(), n);
  m.received += n;
  return m.received == message_.size();
}

void Crowd::finish_message(std::size_t index) {
  Member& m = members_[index];
  const std::uint64_t end_ns = now_ns();
  measurement_->add(end_ns - m.start_ns);
  m.left = end_ns < until_ns_ ? m.left - 1 : 0;
  if (m.left > 0) {
    start_message(index);
  } else {
    --active_;
  }
}

void Crowd::watch(std::size_t index, std::uint32_t events) {
  Member& m = members_[index];
  if (m.watched == events) return;
  m.watched = events;
  epoll_event event = {};
  event.events = events;
  event.data.u64 = index;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, m.connection.get(), &event) != 0) fail_errno("epoll_ctl");
}

/// Lets all connections do some messages, so that they are worth an upgrade.
void use_all(const ClientOptions& options, Crowd* crowd) {
  Measurement not_wanted("", "", options.bytes);
  crowd->exchange(options.connections, options.requests_first, std::numeric_limits<std::uint64_t>::max(), &not_wanted);
}

void wait_for_end_of_stdin() {
  const std::uint64_t until_ns = now_ns() + to_ns(kHoldSeconds);
  pollfd p = {STDIN_FILENO, POLLIN, 0};
  char buffer[256];
  while (now_ns() < until_ns && poll(&p, 1, kHoldSeconds * 1000) > 0) {
    if (read(STDIN_FILENO, buffer, sizeof buffer) <= 0) return;
  }
}

}  // namespace

void run_many(const ClientOptions& options, Measurement* measurement) {
  Crowd crowd(options);
  use_all(options, &crowd);
  measurement->start();
  crowd.exchange(options.busy, options.max_operations, now_ns() + to_ns(options.seconds), measurement);
  measurement->stop();
}

void run_hold(const ClientOptions& options) {
  Crowd crowd(options);
  use_all(options, &crowd);
  puts("READY");
  fflush(stdout);
  wait_for_end_of_stdin();
}

}  // namespace bench
