// SPDX-License-Identifier: MIT
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "preload/data_path.h"
#include "preload/export.h"
#include "preload/revoke.h"
#include "preload/sendfile.h"
#include "shm/user_copy.h"

using namespace mpklink;

namespace {

// readv(2) of nothing never waits; a bad array is the kernel's to refuse.
bool nothing_to_move(const iovec* parts, int count) {
  std::size_t total = 0;
  return check_parts(parts, count, &total) != 0 || total == 0;
}

bool bad_parts(int count) { return count < 0 || count > IOV_MAX; }

// __read_chk and its kin: the program's own check against its buffer's size (debug/read_chk.c).
void check_buffer(size_t n, size_t buffer) {
  if (n > buffer) abort();
}

std::uint64_t nanoseconds(const timespec& t) {
  return static_cast<std::uint64_t>(t.tv_sec) * 1000000000u + static_cast<std::uint64_t>(t.tv_nsec);
}

// A descriptor that goes to another process over a Unix socket: from then on two tables know the connection.
void note_passed_descriptors(const msghdr* message) {
  if (message->msg_controllen < sizeof(cmsghdr)) return;
  auto* header = const_cast<msghdr*>(message);
  for (cmsghdr* c = CMSG_FIRSTHDR(header); c != nullptr; c = CMSG_NXTHDR(header, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
      if (Stream* s = stream_of(fd)) revoke(fd, s, Reason::kPassed);
    }
  }
}

// Received descriptors are new numbers.
void forget_received_descriptors(msghdr* message) {
  for (cmsghdr* c = CMSG_FIRSTHDR(message); c != nullptr; c = CMSG_NXTHDR(message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
      fresh_fd(fd);
    }
  }
}

// The program's header, read once. False: not for us, or bad memory, which the kernel refuses.
bool read_header(int fd, const msghdr* message, msghdr* copy) {
  return stream_of(fd) != nullptr && user_copy(copy, message, sizeof *copy) == 0 && copy->msg_iovlen <= IOV_MAX;
}

ssize_t receive_message_any(int fd, msghdr* message, int flags) {
  msghdr header;
  if (!read_header(fd, message, &header)) {
    const ssize_t n = real().recvmsg(fd, message, flags);
    if (n >= 0 && message->msg_controllen > 0) forget_received_descriptors(message);
    return n;
  }
  bool by_kernel = false;
  const ssize_t n = receive_any(fd, header.msg_iov, static_cast<int>(header.msg_iovlen), flags, [&] {
    by_kernel = true;
    return real().recvmsg(fd, message, flags);
  });
  if (n >= 0 && !by_kernel) {
    header.msg_namelen = 0;  // as TCP: no address, no control data
    header.msg_controllen = 0;
    header.msg_flags = 0;
    user_copy(message, &header, sizeof header);
  }
  return n;
}

ssize_t send_message_any(int fd, const msghdr* message, int flags) {
  msghdr header;
  if (!read_header(fd, message, &header)) {
    if (stream_of(fd) == nullptr && message != nullptr && message->msg_control != nullptr) note_passed_descriptors(message);
    return real().sendmsg(fd, message, flags);
  }
  return send_any(fd, header.msg_iov, static_cast<int>(header.msg_iovlen), flags,
                  [&] { return real().sendmsg(fd, message, flags); });
}

ssize_t send_file_any(int fd, int in_fd, off64_t* offset, size_t count) {
  const auto call = [&] { return real().sendfile64(fd, in_fd, offset, count); };
  while (Stream* s = stream_of(fd)) {
    const State state = state_of(s);
    ssize_t n = 0;
    if (managed(state)) {
      n = send_file(fd, s, in_fd, offset, count);
      if (n == kNotOurs) continue;
      if (n > 0 && state != State::kShared) after_operation(fd, s);
      return n;
    }
    if (state == State::kCandidate) {
      if (kernel_operation(fd, s, Flow::kOut, true, &n, call)) return n;
      continue;
    }
    n = call();
    if (n > 0 && state == State::kPlain) s->tcp_sent.fetch_add(static_cast<uint64_t>(n));
    return n;
  }
  return call();
}

}  // namespace

extern "C" {

ssize_t mpklink_read(int fd, void* buf, size_t n) {
  if (n == 0) return real().read(fd, buf, n);  // never waits, whatever there is to read
  const iovec part = {buf, n};
  return receive_any(fd, &part, 1, 0, [&] { return real().read(fd, buf, n); });
}
ssize_t mpklink___read_chk(int fd, void* buf, size_t n, size_t buf_len) {
  check_buffer(n, buf_len);
  return mpklink_read(fd, buf, n);
}
ssize_t mpklink_recv(int fd, void* buf, size_t n, int flags) {
  const iovec part = {buf, n};
  return receive_any(fd, &part, 1, flags, [&] { return real().recv(fd, buf, n, flags); });
}
ssize_t mpklink___recv_chk(int fd, void* buf, size_t n, size_t buf_len, int flags) {
  check_buffer(n, buf_len);
  return mpklink_recv(fd, buf, n, flags);
}
ssize_t mpklink_recvfrom(int fd, void* buf, size_t n, int flags, struct sockaddr* from, socklen_t* len) {
  const iovec part = {buf, n};
  bool by_kernel = false;
  const ssize_t got = receive_any(fd, &part, 1, flags, [&] {
    by_kernel = true;
    return real().recvfrom(fd, buf, n, flags, from, len);
  });
  if (got >= 0 && !by_kernel && from != nullptr && len != nullptr) {
    const socklen_t none = 0;  // as TCP: no address
    user_copy(len, &none, sizeof none);
  }
  return got;
}
ssize_t mpklink___recvfrom_chk(int fd, void* buf, size_t n, size_t buf_len, int flags, struct sockaddr* from,
                               socklen_t* len) {
  check_buffer(n, buf_len);
  return mpklink_recvfrom(fd, buf, n, flags, from, len);
}
ssize_t mpklink_readv(int fd, const struct iovec* parts, int count) {
  if (stream_of(fd) == nullptr || bad_parts(count) || nothing_to_move(parts, count)) return real().readv(fd, parts, count);
  return receive_any(fd, parts, count, 0, [&] { return real().readv(fd, parts, count); });
}
ssize_t mpklink_recvmsg(int fd, struct msghdr* message, int flags) { return receive_message_any(fd, message, flags); }

ssize_t mpklink_write(int fd, const void* buf, size_t n) {
  const iovec part = {const_cast<void*>(buf), n};
  return send_any(fd, &part, 1, 0, [&] { return real().write(fd, buf, n); });
}
ssize_t mpklink_send(int fd, const void* buf, size_t n, int flags) {
  const iovec part = {const_cast<void*>(buf), n};
  return send_any(fd, &part, 1, flags, [&] { return real().send(fd, buf, n, flags); });
}
ssize_t mpklink_sendto(int fd, const void* buf, size_t n, int flags, const struct sockaddr* to, socklen_t len) {
  const iovec part = {const_cast<void*>(buf), n};
  return send_any(fd, &part, 1, flags, [&] { return real().sendto(fd, buf, n, flags, to, len); });
}
ssize_t mpklink_writev(int fd, const struct iovec* parts, int count) {
  if (stream_of(fd) == nullptr || bad_parts(count)) return real().writev(fd, parts, count);
  return send_any(fd, parts, count, 0, [&] { return real().writev(fd, parts, count); });
}
ssize_t mpklink_sendmsg(int fd, const struct msghdr* message, int flags) { return send_message_any(fd, message, flags); }

ssize_t mpklink_sendfile(int out, int in, off_t* offset, size_t count) noexcept {
  static_assert(sizeof(off_t) == sizeof(off64_t));
  return send_file_any(out, in, offset, count);
}
ssize_t mpklink_sendfile64(int out, int in, off64_t* offset, size_t count) noexcept {
  return send_file_any(out, in, offset, count);
}

// The kernel's loop (net/socket.c, __sys_recvmmsg): an error after the first message is the next call's.
int mpklink_recvmmsg(int fd, struct mmsghdr* messages, unsigned n, int flags, struct timespec* timeout) {
  if (stream_of(fd) == nullptr) return real().recvmmsg(fd, messages, n, flags, timeout);
  // The time is looked at after each message only (recvmmsg(2), BUGS).
  const std::uint64_t deadline = timeout == nullptr ? 0 : now_ns() + nanoseconds(*timeout);
  unsigned done = 0;
  int each = flags & ~MSG_WAITFORONE;
  while (done < n) {
    const ssize_t got = receive_message_any(fd, &messages[done].msg_hdr, each);
    if (got < 0) return done > 0 ? static_cast<int>(done) : -1;
    messages[done++].msg_len = static_cast<unsigned>(got);
    if (flags & MSG_WAITFORONE) each |= MSG_DONTWAIT;
    if (deadline != 0 && now_ns() >= deadline) break;
  }
  return static_cast<int>(done);
}
int mpklink_sendmmsg(int fd, struct mmsghdr* messages, unsigned n, int flags) {
  if (stream_of(fd) == nullptr) {
    for (unsigned i = 0; i < n; ++i) {
      if (messages[i].msg_hdr.msg_control != nullptr) note_passed_descriptors(&messages[i].msg_hdr);
    }
    return real().sendmmsg(fd, messages, n, flags);
  }
  unsigned done = 0;
  while (done < n) {
    const ssize_t sent = send_message_any(fd, &messages[done].msg_hdr, flags);
    if (sent < 0) return done > 0 ? static_cast<int>(done) : -1;
    messages[done++].msg_len = static_cast<unsigned>(sent);
  }
  return static_cast<int>(done);
}

// Not emulated: a socket that is spliced goes back to TCP.
ssize_t mpklink_splice(int in, off64_t* in_offset, int out, off64_t* out_offset, size_t n, unsigned flags) {
  const int ends[] = {in, out};
  for (const int fd : ends) {
    if (Stream* s = stream_of(fd)) revoke(fd, s, Reason::kSplice);
  }
  return real().splice(in, in_offset, out, out_offset, n, flags);
}

}  // extern "C"

MPKLINK_EXPORT(read)
MPKLINK_EXPORT_AS(__read, read)
MPKLINK_EXPORT(__read_chk)
MPKLINK_EXPORT(recv)
MPKLINK_EXPORT(__recv_chk)
MPKLINK_EXPORT(recvfrom)
MPKLINK_EXPORT(__recvfrom_chk)
MPKLINK_EXPORT(readv)
MPKLINK_EXPORT(recvmsg)
MPKLINK_EXPORT(write)
MPKLINK_EXPORT_AS(__write, write)
MPKLINK_EXPORT(send)
MPKLINK_EXPORT_AS(__send, send)
MPKLINK_EXPORT(sendto)
MPKLINK_EXPORT(writev)
MPKLINK_EXPORT(sendmsg)
MPKLINK_EXPORT(sendfile)
MPKLINK_EXPORT(sendfile64)
MPKLINK_EXPORT(recvmmsg)
MPKLINK_EXPORT(sendmmsg)
MPKLINK_EXPORT_AS(__sendmmsg, sendmmsg)
MPKLINK_EXPORT(splice)
