// SPDX-License-Identifier: MIT
// The one way into a stream for the data hooks: managed, carried by the kernel, or none of ours.
#pragma once
#include <errno.h>

#include "preload/hook_scope.h"
#include "preload/kernel_path.h"
#include "preload/revoke.h"
#include "preload/transfer.h"

namespace mpklink {

// An error that an earlier call came by behind its bytes.
inline bool kept_error(Stream* s) {
  if (__builtin_expect(s->pending_error.load_relaxed() == 0, 1)) return false;  // relaxed: the exchange decides
  const std::uint32_t error = s->pending_error.exchange(0);
  if (error != 0) errno = static_cast<int>(error);
  return error != 0;
}

// It has moved bytes. A shared stream only counts (preload/lifetime.h): what two threads lose does not matter.
inline void note_operation(int fd, Stream* s, State state) {
  if (state != State::kShared) return after_operation(fd, s);
  s->operations.store_relaxed(s->operations.load_relaxed() + 1);  // relaxed: a hint
}

// `call` does the program's call in the kernel, unchanged.
template <class Call>
ssize_t receive_any(int fd, const iovec* parts, int count, int flags, Call call) {
  const bool counts = !(flags & MSG_PEEK);
  while (Stream* s = stream_of(fd)) {
    const State state = state_of(s);
    if (managed(state)) {
      if (!ours(s)) leave_softly(fd, s);
      const ssize_t n = receive_stream(fd, s, parts, count, flags);
      if (n != kNotOurs) {
        if (n > 0) note_operation(fd, s, state);
        return n;
      }
      if (flags & (MSG_OOB | MSG_ERRQUEUE)) break;
      continue;
    }
    if (kept_error(s)) return -1;
    ssize_t n = 0;
    if (state == State::kCandidate) {
      if (kernel_operation(fd, s, Flow::kIn, counts, &n, call)) return n;
      continue;
    }
    n = call();
    if (n > 0 && counts && state == State::kPlain) s->tcp_received.fetch_add(static_cast<std::uint64_t>(n));
    return n;
  }
  return call();
}

template <class Call>
ssize_t send_any(int fd, const iovec* parts, int count, int flags, Call call) {
  while (Stream* s = stream_of(fd)) {
    const State state = state_of(s);
    if ((flags & MSG_OOB) && state == State::kCandidate) make_plain(s, Reason::kOob);
    // Its completion is the kernel's to tell. (An accepted socket may have SO_ZEROCOPY from its listener, which is asked at the upgrade.)
    const bool zero_copy = s->zero_copy.load_relaxed() != 0 || (state == State::kCandidate && !s->connector);  // relaxed: an option
    if (__builtin_expect(flags & MSG_ZEROCOPY, 0) && zero_copy && s->stay_plain.load_relaxed() == 0) {  // relaxed: set once
      revoke(fd, s, Reason::kZeroCopy);
      continue;
    }
    if (managed(state)) {
      if (!ours(s)) leave_softly(fd, s);
      const ssize_t n = send_stream(fd, s, parts, count, flags);
      if (n != kNotOurs) {
        if (n > 0) note_operation(fd, s, state);
        return n;
      }
      continue;
    }
    if (kept_error(s)) return -1;
    ssize_t n = 0;
    if (state == State::kCandidate) {
      if (kernel_operation(fd, s, Flow::kOut, true, &n, call)) return n;
      continue;
    }
    n = call();
    if (n > 0 && state == State::kPlain) s->tcp_sent.fetch_add(static_cast<std::uint64_t>(n));
    return n;
  }
  return call();
}

}  // namespace mpklink
