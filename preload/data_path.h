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

// An operation of a stream that is managed. kNotOurs: it is not (any more), or only the kernel can do this.
ssize_t receive_managed(int fd, Stream* s, const iovec* parts, int count, int flags);
ssize_t send_managed(int fd, Stream* s, const iovec* parts, int count, int flags);
// Of any stream.
ssize_t receive_stream_any(int fd, const iovec* parts, int count, int flags, const KernelCall& call);
ssize_t send_stream_any(int fd, const iovec* parts, int count, int flags, const KernelCall& call);
ssize_t send_file_stream_any(int fd, int in_fd, off64_t* offset, std::size_t count, const KernelCall& call);

// For what is no stream nothing is added to the call but the look at the table.
template <class Call>
ssize_t receive_any(int fd, const iovec* parts, int count, int flags, const Call& call) {
  Stream* const s = stream_of(fd);
  if (s == nullptr) return call();
  const ssize_t n = receive_managed(fd, s, parts, count, flags);
  return __builtin_expect(n != kNotOurs, 1) ? n : receive_stream_any(fd, parts, count, flags, KernelCall(call));
}
template <class Call>
ssize_t send_any(int fd, const iovec* parts, int count, int flags, const Call& call) {
  Stream* const s = stream_of(fd);
  if (s == nullptr) return call();
  const ssize_t n = flags & MSG_ZEROCOPY ? kNotOurs : send_managed(fd, s, parts, count, flags);
  return __builtin_expect(n != kNotOurs, 1) ? n : send_stream_any(fd, parts, count, flags, KernelCall(call));
}

}  // namespace mpklink
