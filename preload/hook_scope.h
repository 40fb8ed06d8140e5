// SPDX-License-Identifier: MIT
// What every hook does first.
#pragma once
#include <pthread.h>

#include "preload/fd_table.h"
#include "preload/process.h"
#include "preload/rendezvous.h"
#include "preload/stream.h"

namespace mpklink {

// The stream behind fd, or null: the kernel's business alone.
inline Stream* stream_of(int fd) { return fd_table().stream(fd); }

// A new descriptor number: whatever the table knew of it was closed without our seeing it.
inline int fresh_fd(int fd) {
  if (fd >= 0 && !fd_table().empty(fd) && !in_foreign_child()) forget_fd(fd);
  return fd;
}

// For a call that is no cancellation point, although what it does here is. Nor may a handler jump out of it.
class CancellationOff {
 public:
  CancellationOff() { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before_); }
  ~CancellationOff() { pthread_setcancelstate(before_, nullptr); }
  CancellationOff(const CancellationOff&) = delete;
  CancellationOff& operator=(const CancellationOff&) = delete;

 private:
  Undisturbed undisturbed_;
  int before_ = 0;
};

}  // namespace mpklink
