// SPDX-License-Identifier: MIT
// What every hook does first.
#pragma once
#include <pthread.h>

#include "preload/fd_table.h"
#include "preload/on_unwind.h"
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

// For a call that is no cancellation point, although what it does here is.
class CancellationOff {
 public:
  CancellationOff() : owed_(restore, this) { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before_); }
  ~CancellationOff() { restore(this); }
  CancellationOff(const CancellationOff&) = delete;
  CancellationOff& operator=(const CancellationOff&) = delete;

 private:
  static void restore(void* self) { pthread_setcancelstate(static_cast<CancellationOff*>(self)->before_, nullptr); }

  int before_ = PTHREAD_CANCEL_ENABLE;
  const OnUnwind owed_;
};

}  // namespace mpklink
