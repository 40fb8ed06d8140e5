// SPDX-License-Identifier: MIT
#include "preload/data_path.h"

#include <unistd.h>

#include "preload/sendfile.h"
#include "shm/user_copy.h"

namespace mpklink {
namespace {

// An error that an earlier call came by behind its bytes.
inline bool kept_error(Stream* s) {
  if (__builtin_expect(s->pending_error.load_relaxed() == 0, 1)) return false;  // relaxed: the exchange decides
  const std::uint32_t error = s->pending_error.exchange(0);
  if (error != 0) errno = static_cast<int>(error);
  return error != 0;
}

// An operation is over; tools see it.
inline ssize_t received(const Atomic<std::uint32_t>* wanted, Stream* s, const iovec* parts, int count, int flags, ssize_t n) {
  if (n > 0 && !(flags & MSG_PEEK)) show_received(s, static_cast<std::uint64_t>(n));
  if (__builtin_expect(wanted->load_relaxed() != 0, 0)) tap_received(s, parts, count, n, flags);  // relaxed: a wish
  return n;
}
inline ssize_t sent(const Atomic<std::uint32_t>* wanted, Stream* s, const iovec* parts, int count, ssize_t n) {
  if (n > 0) show_sent(s, static_cast<std::uint64_t>(n));
  if (__builtin_expect(wanted->load_relaxed() != 0, 0)) tap_sent(s, parts, count, n);  // relaxed: as above
  return n;
}

__attribute__((cold)) void use_inherited(int fd, Stream* s) {
  show_inherited(fd, s);
  leave_softly(fd, s);
}

}  // namespace

ssize_t receive_managed(int fd, Stream* s, const iovec* parts, int count, int flags) {
  const auto* const wanted = look_at_requests(fd, s);
  const State state = state_of(s);
  if (!managed(state)) return kNotOurs;
  if (!ours(s)) use_inherited(fd, s);
  const ssize_t n = receive_stream(fd, s, parts, count, flags);
  if (n == kNotOurs) return n;
  if (n > 0) note_operation(fd, s, state);
  return received(wanted, s, parts, count, flags, n);
}

ssize_t send_managed(int fd, Stream* s, const iovec* parts, int count, int flags) {
  const auto* const wanted = look_at_requests(fd, s);
  const State state = state_of(s);
  if (!managed(state)) return kNotOurs;
  if (!ours(s)) use_inherited(fd, s);
  const ssize_t n = send_stream(fd, s, parts, count, flags);
  if (n == kNotOurs) return n;
  if (n > 0) note_operation(fd, s, state);
  return sent(wanted, s, parts, count, n);
}

ssize_t receive_stream_any(int fd, const iovec* parts, int count, int flags, const KernelCall& call) {
  const bool counts = !(flags & MSG_PEEK);
  while (Stream* s = stream_of(fd)) {
    const auto* const wanted = look_at_requests(fd, s);
    ssize_t n = receive_managed(fd, s, parts, count, flags);
    if (n != kNotOurs) return n;
    const State state = state_of(s);
    if (managed(state)) {
      if (flags & (MSG_OOB | MSG_ERRQUEUE)) break;
      continue;
    }
    if (kept_error(s)) return -1;
    show_inherited(fd, s);
    if (state == State::kCandidate) {
      if (kernel_operation(fd, s, Flow::kIn, counts, &n, call)) return received(wanted, s, parts, count, flags, n);
      continue;
    }
    n = call();
    if (n > 0 && counts && state == State::kPlain) count_tcp_received(s, static_cast<std::uint64_t>(n));
    return received(wanted, s, parts, count, flags, n);
  }
  return call();
}

ssize_t send_stream_any(int fd, const iovec* parts, int count, int flags, const KernelCall& call) {
  while (Stream* s = stream_of(fd)) {
    const auto* const wanted = look_at_requests(fd, s);
    const State state = state_of(s);
    if ((flags & MSG_OOB) && state == State::kCandidate) make_plain(s, Reason::kOob);
    // Its completion is the kernel's to tell. (An accepted socket may have SO_ZEROCOPY from its listener, which is asked at the upgrade.)
    const bool zero_copy = s->zero_copy.load_relaxed() != 0 || (state == State::kCandidate && !s->connector);  // relaxed: an option
    if (__builtin_expect(flags & MSG_ZEROCOPY, 0) && zero_copy && s->stay_plain.load_relaxed() == 0) {  // relaxed: set once
      revoke(fd, s, Reason::kZeroCopy);
      continue;
    }
    if (managed(state)) {
      const ssize_t n = send_managed(fd, s, parts, count, flags);
      if (n != kNotOurs) return n;
      continue;
    }
    if (kept_error(s)) return -1;
    show_inherited(fd, s);
    ssize_t n = 0;
    if (state == State::kCandidate) {
      if (kernel_operation(fd, s, Flow::kOut, true, &n, call)) return sent(wanted, s, parts, count, n);
      continue;
    }
    n = call();
    if (n > 0 && state == State::kPlain) count_tcp_sent(s, static_cast<std::uint64_t>(n));
    return sent(wanted, s, parts, count, n);
  }
  return call();
}

namespace {

ssize_t sent_file(Stream* s, int in_fd, const off64_t* offset, ssize_t n) {
  if (n > 0) show_sent(s, static_cast<std::uint64_t>(n));
  if (!tap_wanted()) return n;
  const ErrnoSaver keep;
  off64_t end = 0;
  if (offset == nullptr) {
    end = ::lseek64(in_fd, 0, SEEK_CUR);
  } else if (user_copy(&end, offset, sizeof end) != 0) {
    return n;
  }
  tap_sent_file(s, in_fd, end, n);
  return n;
}

}  // namespace

ssize_t send_file_stream_any(int fd, int in_fd, off64_t* offset, std::size_t count, const KernelCall& call) {
  while (Stream* s = stream_of(fd)) {
    look_at_requests(fd, s);
    const State state = state_of(s);
    ssize_t n = 0;
    if (managed(state)) {
      if (!ours(s)) use_inherited(fd, s);
      n = send_file(fd, s, in_fd, offset, count);
      if (n == kNotOurs) continue;
      if (n > 0) note_operation(fd, s, state);
      return sent_file(s, in_fd, offset, n);
    }
    show_inherited(fd, s);
    if (state == State::kCandidate) {
      if (kernel_operation(fd, s, Flow::kOut, true, &n, call)) return sent_file(s, in_fd, offset, n);
      continue;
    }
    n = call();
    if (n > 0 && state == State::kPlain) count_tcp_sent(s, static_cast<std::uint64_t>(n));
    return sent_file(s, in_fd, offset, n);
  }
  return call();
}

}  // namespace mpklink
