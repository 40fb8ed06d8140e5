// SPDX-License-Identifier: MIT
// The lock of one direction of a stream: against other threads, and, once the stream was inherited over a fork, against
// the other process. Never held over a call that can block.
#pragma once
#include <cstdint>

#include "preload/stream.h"

namespace mpklink {

class TransferLock {
 public:
  enum Side { kSend, kReceive };
  enum When { kInUse, kEnding };  // kEnding: the table has forgotten the stream, or may
  TransferLock(int fd, Stream* s, Side side, When when = kInUse);
  ~TransferLock();
  TransferLock(const TransferLock&) = delete;
  TransferLock& operator=(const TransferLock&) = delete;

  bool held() const { return lock_ != nullptr; }    // and `fd` still names the managed stream
  bool reentered() const { return reentered_; }     // a signal handler came into the middle of an operation of its thread

 private:
  SpinLock* lock_ = nullptr;
  Atomic<std::uint32_t>* shared_owner_ = nullptr;
  bool reentered_ = false;
};

}  // namespace mpklink
