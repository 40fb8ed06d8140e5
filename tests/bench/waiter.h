// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>

#include "options.h"

namespace bench {

/// Moves whole messages over one connection, in the way that a program of its mode would.
class Waiter {
 public:
  /// Makes `fd` non-blocking, except in mode blocking.
  Waiter(Mode mode, int fd);

  void send(const unsigned char* data, std::size_t size);
  void receive(unsigned char* to, std::size_t size);

 private:
  void wait(short events);
  void wait_poll(short events);
  void wait_epoll(short events);

  const Mode mode_;
  const int fd_;
  Fd epoll_;
  short watched_ = 0;  // what the epoll set waits for
};

}  // namespace bench
