// SPDX-License-Identifier: MIT
#include "waiter.h"

#include <poll.h>
#include <sys/epoll.h>

#include "failure.h"

namespace bench {

static_assert(POLLIN == EPOLLIN && POLLOUT == EPOLLOUT);

Waiter::Waiter(Mode mode, int fd) : mode_(mode), fd_(fd) {
  if (mode == Mode::kBlocking) return;
  set_nonblocking(fd);
  if (mode != Mode::kEpoll) return;
  epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  epoll_event event = {};
  event.events = EPOLLIN;
  watched_ = POLLIN;
  if (epoll_.get() < 0 || epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) fail_errno("epoll");
}

void Waiter::send(const unsigned char* data, std::size_t size) {
  if (mode_ == Mode::kBlocking) return send_all(fd_, data, size);
  for (std::size_t done = 0;;) {
    done += send_some(fd_, data + done, size - done);
    if (done == size) return;
    wait(POLLOUT);
  }
}

void Waiter::receive(unsigned char* to, std::size_t size) {
  if (mode_ == Mode::kBlocking) return receive_all(fd_, to, size);
  for (std::size_t done = 0; done < size;) {
    wait(POLLIN);
    done += receive_some(fd_, to + done, size - done);
  }
}

void Waiter::wait(short events) {
  if (mode_ == Mode::kPoll) {
    wait_poll(events);
  } else {
    wait_epoll(events);
  }
}

void Waiter::wait_poll(short events) {
  pollfd p = {fd_, events, 0};
  if (poll(&p, 1, -1) < 0 && errno != EINTR) fail_errno("poll");
}

void Waiter::wait_epoll(short events) {
  epoll_event event = {};
  if (watched_ != events) {
    event.events = static_cast<std::uint32_t>(events);
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd_, &event) != 0) fail_errno("epoll_ctl");
    watched_ = events;
  }
  if (epoll_wait(epoll_.get(), &event, 1, -1) < 0 && errno != EINTR) fail_errno("epoll_wait");
}

}  // namespace bench
