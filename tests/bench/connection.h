// SPDX-License-Identifier: MIT
#pragma once

#include <poll.h>

#include <cstdint>
#include <vector>

#include "message.h"
#include "options.h"

namespace bench {

/// The server's side of a connection: what to do when it is ready. On a non-blocking socket it never waits; on a blocking one, it is
/// always ready.
class Connection {
 public:
  Connection(Fd fd, const ServeOptions& options);

  int fd() const { return fd_.get(); }
  /// POLLIN or POLLOUT.
  short wanted() const { return wanted_; }
  /// One receive, one send, or one of each. False: it is over.
  bool advance();

 private:
  bool echo();
  bool answer();
  bool sink();
  bool source();

  Fd fd_;
  const Kind kind_;
  short wanted_;
  std::vector<unsigned char> buffer_;
  std::size_t received_ = 0, sent_ = 0;  // of an echo's message
  const StreamBytes* stream_ = nullptr;
  std::uint64_t offset_ = 0;
  bool content_ = true;
};

}  // namespace bench
