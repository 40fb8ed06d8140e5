// SPDX-License-Identifier: MIT
#include "preload/messages.h"

#include <errno.h>
#include <string.h>

namespace mpklink {

bool send_message(int socket, const void* message, std::size_t size, const int* fds, int count) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMessageFdsMax)] = {};
  iovec part = {const_cast<void*>(message), size};
  msghdr header = {};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (count > 0) {
    const std::size_t bytes = sizeof(int) * static_cast<std::size_t>(count);
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(bytes);
    cmsghdr* c = CMSG_FIRSTHDR(&header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(bytes);
    memcpy(CMSG_DATA(c), fds, bytes);
  }
  return quiet().sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL) == static_cast<ssize_t>(size);
}

void close_all(const int* fds, int count) {
  const linger none = {};
  for (int i = 0; i < count; ++i) {
    if (fds[i] < 0) continue;
    real().setsockopt(fds[i], SOL_SOCKET, SO_LINGER, &none, sizeof none);
    quiet().close(fds[i]);
  }
}

bool receive_message(int socket, void* message, std::size_t size, int (&fds)[kMessageFdsMax], int* count) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMessageFdsMax)] = {};
  iovec part = {message, size};
  msghdr header = {};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  const ssize_t n = quiet().recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (n < 0) return false;
  int got = 0;
  for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const int here = static_cast<int>((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    for (int i = 0; i < here; ++i) {
      int fd = -1;
      memcpy(&fd, CMSG_DATA(c) + sizeof(int) * static_cast<std::size_t>(i), sizeof fd);
      if (got < kMessageFdsMax) {
        fds[got++] = fd;
      } else {
        close_all(&fd, 1);
      }
    }
  }
  *count = got;
  const bool whole = n == static_cast<ssize_t>(size) && !(header.msg_flags & (MSG_TRUNC | MSG_CTRUNC));
  if (whole) return true;
  close_all(fds, got);
  *count = 0;
  errno = n == 0 ? ECONNRESET : EPROTO;
  return false;
}

}  // namespace mpklink
