// SPDX-License-Identifier: MIT
// A library behind ours in LD_PRELOAD: a machine without netlink, or without inet_diag, where nobody says who owns the other end of a connection.
#include <dlfcn.h>
#include <errno.h>
#include <sys/socket.h>

extern "C" int socket(int domain, int type, int protocol) noexcept {
  static const auto next = reinterpret_cast<int (*)(int, int, int)>(dlsym(RTLD_NEXT, "socket"));
  if (domain != AF_NETLINK) return next(domain, type, protocol);
  errno = EPROTONOSUPPORT;
  return -1;
}
