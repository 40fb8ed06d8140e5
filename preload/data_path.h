// SPDX-License-Identifier: MIT
// The one way into a stream for the data hooks: managed, carried by the kernel, or none of ours.
#pragma once
#include <errno.h>

#include "preload/hook_scope.h"
#include "preload/kernel_path.h"
#include "preload/revoke.h"
#include "preload/status.h"
#include "preload/tap.h"
#include "preload/transfer.h"

namespace mpklink {

// The program's call in the kernel, unchanged.
class KernelCall {
 public:
  template <class Call>
  explicit KernelCall(const Call& call) : call_(&call), run_([](const void* it) { return (*static_cast<const Call*>(it))(); }) {}
  ssize_t operator()() const { return run_(call_); }

 private:
  const void* call_;
  ssize_t (*run_)(const void*);
};

// It has moved bytes. A shared stream only counts (preload/lifetime.h): what two threads lose does not matter.
inline void note_operation(int fd, Stream* s, State state) {
  if (state != State::kShared) return after_operation(fd, s);
  s->operations.store_relaxed(s->operations.load_relaxed() + 1);  // relaxed: a hint
}

ssize_t receive_stream_any(int fd, const iovec* parts, int count, int flags, const KernelCall& call);
ssize_t send_stream_any(int fd, const iovec* parts, int count, int flags, const KernelCall& call);
ssize_t send_file_stream_any(int fd, int in_fd, off64_t* offset, std::size_t count, const KernelCall& call);

// For what is no stream nothing is added to the call but the look at the table.
template <class Call>
ssize_t receive_any(int fd, const iovec* parts, int count, int flags, const Call& call) {
  return stream_of(fd) == nullptr ? call() : receive_stream_any(fd, parts, count, flags, KernelCall(call));
}
template <class Call>
ssize_t send_any(int fd, const iovec* parts, int count, int flags, const Call& call) {
  return stream_of(fd) == nullptr ? call() : send_stream_any(fd, parts, count, flags, KernelCall(call));
}

}  // namespace mpklink
