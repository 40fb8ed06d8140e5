// SPDX-License-Identifier: MIT
// What poll(2) would say of a stream, from its rings and from what the kernel told last.
#pragma once
#include <cstdint>

#include "preload/stream.h"

namespace mpklink {

struct Readiness {
  std::uint32_t events = 0;  // EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLLRDNORM, EPOLLWRNORM
  bool give_back = false;        // the peer wants back what is unread (answer_freeze)
  std::uint32_t ask_kernel = 0;  // which of IN, OUT, ERR only the kernel knows; IN, OUT: that direction is (again) on TCP
};

// Gate open; the channel kept mapped by a lock, a pin or a membership. With OUT in `interest` and the ring full, leaves a wish for
// space with the peer, so that its consumer wakes us.
Readiness ring_readiness(Stream* s, std::uint32_t interest);

// Gate closed. Asks the kernel for the events in `ask`, one system call; also learns of FIN and errors.
std::uint32_t kernel_readiness(Stream* s, int fd, std::uint32_t ask);

// The kernel reported `events` (EPOLL*) for the TCP socket.
void note_kernel_events(Stream* s, std::uint32_t events);

}  // namespace mpklink
