// SPDX-License-Identifier: MIT
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "preload/control_data.h"
#include "preload/data_path.h"
#include "preload/export.h"
#include "preload/fault.h"
#include "preload/hooks.h"
#include "preload/revoke.h"
#include "shm/user_copy.h"

using namespace mpklink;

namespace {

// recv(2) and send(2) cut a length that read(2) refuses (lib/iov_iter.c, import_ubuf).
size_t shortened(size_t n) { return n < 0x7ffff000 ? n : 0x7ffff000; }

// readv(2) of nothing never waits.
bool nothing_to_move(const iovec* parts, int count) {
  std::size_t total = 0;
  return check_parts(parts, count, &total) == 0 && total == 0;
}

bool bad_parts(int count) { return count < 0 || count > IOV_MAX; }

// __read_chk and its kin: the program's own check against its buffer's size (debug/read_chk.c).
void check_buffer(size_t n, size_t buffer) {
  if (n > buffer) abort();
}

std::uint64_t nanoseconds(const timespec& t) {
  return static_cast<std::uint64_t>(t.tv_sec) * 1000000000u + static_cast<std::uint64_t>(t.tv_nsec);
}

void keep_error(int fd, int error) {
  if (Stream* s = stream_of(fd)) keep_for_next_call(s, error);
}

// As the kernel: what was left of the time.
void leave_rest(timespec* timeout, std::uint64_t deadline) {
  const std::uint64_t now = now_ns();
  const std::uint64_t left = deadline > now ? deadline - now : 0;
  const timespec rest = {static_cast<time_t>(left / 1000000000), static_cast<long>(left % 1000000000)};
  user_copy(timeout, &rest, sizeof rest);
}

// The rest of a message would be missing in front of the next one (net/socket.c, __sys_sendmmsg: msg_data_left).
bool sent_partly(const msghdr& header, ssize_t sent) {
  std::size_t total = 0;
  return check_parts(header.msg_iov, static_cast<int>(header.msg_iovlen), &total) == 0 && static_cast<std::size_t>(sent) < total;
}

// recvmmsg(2) begins with the socket's error, before any data (net/socket.c, do_recvmmsg).
int take_socket_error(int fd) {
  int error = 0;
  socklen_t size = sizeof error;
  return mpklink_getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 ? error : 0;
}

// A descriptor that goes to another process over a Unix socket: from then on two tables know the connection.
// Bad memory and bad lengths are the kernel's to refuse.
void note_passed_descriptors(const msghdr* message) {
  msghdr header = {};
  if (fd_table().unused() || user_copy(&header, message, sizeof header) != 0 || header.msg_control == nullptr) return;
  const auto* at = static_cast<const unsigned char*>(header.msg_control);
  std::size_t left = header.msg_controllen;
  cmsghdr c = {};
  while (left >= sizeof c && user_copy(&c, at, sizeof c) == 0 && c.cmsg_len >= sizeof c && c.cmsg_len <= left) {
    const bool rights = c.cmsg_level == SOL_SOCKET && c.cmsg_type == SCM_RIGHTS;
    for (std::size_t i = CMSG_LEN(0); rights && i + sizeof(int) <= c.cmsg_len; i += sizeof(int)) {
      int fd = -1;
      if (user_copy(&fd, at + i, sizeof fd) != 0) return;
      if (Stream* s = stream_of(fd)) revoke(fd, s, Reason::kPassed);
    }
    const std::size_t step = CMSG_ALIGN(c.cmsg_len);
    if (step >= left) return;
    at += step;
    left -= step;
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
  return stream_of(fd) != nullptr && user_copy(copy, message, sizeof *copy) == 0 && copy->msg_iovlen <= IOV_MAX &&
         static_cast<int>(copy->msg_namelen) >= 0;
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
    header.msg_namelen = 0;  // as TCP: no address
    header.msg_flags = 0;
    const Stream* s = stream_of(fd);
    if (s != nullptr && s->inq.load_relaxed() != 0) {  // relaxed: an option
      put_control(&header, IPPROTO_TCP, TCP_CM_INQ, bytes_left(fd));
    } else {
      header.msg_controllen = 0;
    }
    user_copy(message, &header, sizeof header);
  }
  return n;
}

ssize_t send_message_any(int fd, const msghdr* message, int flags) {
  msghdr header;
  if (!read_header(fd, message, &header)) {
    if (stream_of(fd) == nullptr) note_passed_descriptors(message);
    return real().sendmsg(fd, message, flags);
  }
  const Stream* s = stream_of(fd);
  if (s != nullptr && managed(state_of(s)) && (header.msg_controllen > 0 || header.msg_name != nullptr)) {
    // Whether the kernel accepts them: it looks at both before any byte (net/ipv4/tcp.c, tcp_sendmsg_locked).
    msghdr nothing = header;
    nothing.msg_iovlen = 0;
    if (real().sendmsg(fd, &nothing, (flags & MSG_NOSIGNAL) | MSG_DONTWAIT) < 0) return -1;
  }
  return send_any(fd, header.msg_iov, static_cast<int>(header.msg_iovlen), flags,
                  [&] { return real().sendmsg(fd, message, flags); });
}

// No cancellation point, unlike the waits it is made of here.
ssize_t send_file_any(int fd, int in_fd, off64_t* offset, size_t count) {
  const CancellationOff quiet;
  const auto call = [&] { return real().sendfile64(fd, in_fd, offset, count); };
  return stream_of(fd) == nullptr ? call() : send_file_stream_any(fd, in_fd, offset, count, KernelCall(call));
}

// What the flags of preadv2 and pwritev2 mean on a socket (Linux 6.18): no buffering or position to be particular about.
constexpr int kNoSignal = 0x100, kNoAppend = 0x20;  // RWF_NOSIGNAL, RWF_NOAPPEND: newer than the headers

bool message_flags(int flags, int* of_message) {
  constexpr int kNoEffect = RWF_HIPRI | RWF_DSYNC | RWF_SYNC | RWF_APPEND | kNoAppend;
  *of_message = (flags & RWF_NOWAIT ? MSG_DONTWAIT : 0) | (flags & kNoSignal ? MSG_NOSIGNAL : 0);
  if (!(flags & ~(kNoEffect | RWF_NOWAIT | kNoSignal))) return true;
  errno = EOPNOTSUPP;
  return false;
}

}  // namespace

extern "C" {

ssize_t mpklink_read(int fd, void* buf, size_t n) {
  if (n == 0 || n > SSIZE_MAX) return real().read(fd, buf, n);  // never waits, or is refused
  const iovec part = {buf, n};
  return receive_any(fd, &part, 1, 0, [&] { return real().read(fd, buf, n); });
}
ssize_t mpklink___read_chk(int fd, void* buf, size_t n, size_t buf_len) {
  check_buffer(n, buf_len);
  return mpklink_read(fd, buf, n);
}
ssize_t mpklink_recv(int fd, void* buf, size_t n, int flags) {
  const iovec part = {buf, shortened(n)};
  return receive_any(fd, &part, 1, flags, [&] { return real().recv(fd, buf, n, flags); });
}
ssize_t mpklink___recv_chk(int fd, void* buf, size_t n, size_t buf_len, int flags) {
  check_buffer(n, buf_len);
  return mpklink_recv(fd, buf, n, flags);
}
ssize_t mpklink_recvfrom(int fd, void* buf, size_t n, int flags, struct sockaddr* from, socklen_t* len) {
  const iovec part = {buf, shortened(n)};
  bool by_kernel = false;
  const ssize_t got = receive_any(fd, &part, 1, flags, [&] {
    by_kernel = true;
    return real().recvfrom(fd, buf, n, flags, from, len);
  });
  if (got >= 0 && !by_kernel && from != nullptr && len != nullptr) {
    const socklen_t none = 0;  // as TCP: no address
    if (user_copy(len, &none, sizeof none) != 0) return errno = EFAULT, -1;
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
// Without a position these are readv and writev; with one the kernel refuses a socket.
ssize_t mpklink_preadv2(int fd, const struct iovec* parts, int count, off_t offset, int flags) {
  const auto call = [&] { return real().preadv2(fd, parts, count, offset, flags); };
  if (offset != -1 || stream_of(fd) == nullptr || bad_parts(count) || nothing_to_move(parts, count)) return call();
  int of_message = 0;
  return message_flags(flags, &of_message) ? receive_any(fd, parts, count, of_message, call) : -1;
}
ssize_t mpklink_recvmsg(int fd, struct msghdr* message, int flags) { return receive_message_any(fd, message, flags); }

ssize_t mpklink_write(int fd, const void* buf, size_t n) {
  const iovec part = {const_cast<void*>(buf), n};
  if (n > SSIZE_MAX) return quiet().write(fd, buf, n);  // refused
  return send_any(fd, &part, 1, 0, [&] { return real().write(fd, buf, n); });
}
ssize_t mpklink_send(int fd, const void* buf, size_t n, int flags) {
  const iovec part = {const_cast<void*>(buf), shortened(n)};
  return send_any(fd, &part, 1, flags, [&] { return real().send(fd, buf, n, flags); });
}
ssize_t mpklink_sendto(int fd, const void* buf, size_t n, int flags, const struct sockaddr* to, socklen_t len) {
  const iovec part = {const_cast<void*>(buf), shortened(n)};
  const bool odd = stream_of(fd) != nullptr && to != nullptr && (len > sizeof(sockaddr_storage) || !can_read(to, len));
  if (odd) return real().sendto(fd, buf, n, flags, to, len);  // refused before any byte
  return send_any(fd, &part, 1, flags, [&] { return real().sendto(fd, buf, n, flags, to, len); });
}
ssize_t mpklink_writev(int fd, const struct iovec* parts, int count) {
  if (stream_of(fd) == nullptr || bad_parts(count)) return real().writev(fd, parts, count);
  return send_any(fd, parts, count, 0, [&] { return real().writev(fd, parts, count); });
}
ssize_t mpklink_pwritev2(int fd, const struct iovec* parts, int count, off_t offset, int flags) {
  const auto call = [&] { return real().pwritev2(fd, parts, count, offset, flags); };
  if (offset != -1 || stream_of(fd) == nullptr || bad_parts(count)) return call();
  int of_message = 0;
  return message_flags(flags, &of_message) ? send_any(fd, parts, count, of_message, call) : -1;
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
  if (stream_of(fd) == nullptr) {
    const int got = real().recvmmsg(fd, messages, n, flags, timeout);
    for (int i = 0; i < got; ++i) forget_received_descriptors(&messages[i].msg_hdr);
    return got;
  }
  // The time is looked at after each message only (recvmmsg(2), BUGS).
  timespec time = {};
  if (timeout != nullptr && user_copy(&time, timeout, sizeof time) != 0) return errno = EFAULT, -1;
  if (time.tv_sec < 0 || time.tv_nsec < 0 || time.tv_nsec >= 1000000000) return errno = EINVAL, -1;
  if (const int error = take_socket_error(fd)) return errno = error, -1;
  const std::uint64_t deadline = timeout == nullptr ? 0 : now_ns() + nanoseconds(time);
  unsigned done = 0;
  int each = flags & ~MSG_WAITFORONE;
  while (done < n) {
    const ssize_t got = receive_message_any(fd, &messages[done].msg_hdr, each);
    if (got < 0) {
      if (done == 0) return -1;
      keep_error(fd, errno);  // it is the next call's
      return static_cast<int>(done);
    }
    messages[done++].msg_len = static_cast<unsigned>(got);
    if (flags & MSG_WAITFORONE) each |= MSG_DONTWAIT;
    if (deadline != 0 && now_ns() >= deadline) break;
  }
  if (timeout != nullptr) leave_rest(timeout, deadline);
  return static_cast<int>(done);
}
int mpklink_sendmmsg(int fd, struct mmsghdr* messages, unsigned n, int flags) {
  if (stream_of(fd) == nullptr) {
    constexpr unsigned kMost = 1024;  // UIO_MAXIOV: what one call sends
    for (unsigned i = 0; !fd_table().unused() && i < n && i < kMost; ++i) note_passed_descriptors(&messages[i].msg_hdr);
    return real().sendmmsg(fd, messages, n, flags);
  }
  unsigned done = 0;
  while (done < n) {
    const ssize_t sent = send_message_any(fd, &messages[done].msg_hdr, flags);
    if (sent < 0) return done > 0 ? static_cast<int>(done) : -1;
    messages[done++].msg_len = static_cast<unsigned>(sent);
    if (sent_partly(messages[done - 1].msg_hdr, sent)) break;
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
MPKLINK_EXPORT(preadv2)
MPKLINK_EXPORT_AS(preadv64v2, preadv2)
MPKLINK_EXPORT(pwritev2)
MPKLINK_EXPORT_AS(pwritev64v2, pwritev2)
