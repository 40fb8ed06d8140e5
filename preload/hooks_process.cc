// SPDX-License-Identifier: MIT
// Ends of the process, and system calls that programs make by number (libuv closes that way).
#include <errno.h>
#include <stdarg.h>
#include <sys/syscall.h>

#include "preload/export.h"
#include "preload/hook_scope.h"
#include "preload/revoke.h"
#include "preload/stats.h"

using namespace mpklink;

namespace {

struct Arguments {
  long at[6];
  int fd(int i) const { return static_cast<int>(at[i]); }
  unsigned number(int i) const { return static_cast<unsigned>(at[i]); }
  template <class T>
  T* pointer(int i) const {
    return reinterpret_cast<T*>(at[i]);
  }
};

// The calls that concern descriptors, as the hooks of the same names. *handled = false: not one of them.
long data_call(long n, const Arguments& a, bool* handled) {
  switch (n) {
    case SYS_read: return ::read(a.fd(0), a.pointer<void>(1), static_cast<size_t>(a.at[2]));
    case SYS_write: return ::write(a.fd(0), a.pointer<void>(1), static_cast<size_t>(a.at[2]));
    case SYS_readv: return ::readv(a.fd(0), a.pointer<iovec>(1), a.fd(2));
    case SYS_writev: return ::writev(a.fd(0), a.pointer<iovec>(1), a.fd(2));
    case SYS_recvfrom:
      return ::recvfrom(a.fd(0), a.pointer<void>(1), static_cast<size_t>(a.at[2]), a.fd(3), a.pointer<sockaddr>(4),
                        a.pointer<socklen_t>(5));
    case SYS_sendto:
      return ::sendto(a.fd(0), a.pointer<void>(1), static_cast<size_t>(a.at[2]), a.fd(3), a.pointer<sockaddr>(4),
                      static_cast<socklen_t>(a.at[5]));
    case SYS_recvmsg: return ::recvmsg(a.fd(0), a.pointer<msghdr>(1), a.fd(2));
    case SYS_sendmsg: return ::sendmsg(a.fd(0), a.pointer<msghdr>(1), a.fd(2));
    case SYS_recvmmsg:
      return ::recvmmsg(a.fd(0), a.pointer<mmsghdr>(1), a.number(2), a.fd(3), a.pointer<timespec>(4));
    case SYS_sendmmsg: return ::sendmmsg(a.fd(0), a.pointer<mmsghdr>(1), a.number(2), a.fd(3));
    case SYS_sendfile: return ::sendfile(a.fd(0), a.fd(1), a.pointer<off_t>(2), static_cast<size_t>(a.at[3]));
    default: break;
  }
  *handled = false;
  return 0;
}

long life_call(long n, const Arguments& a, bool* handled) {
  switch (n) {
    case SYS_close: return ::close(a.fd(0));
    case SYS_close_range: return ::close_range(a.number(0), a.number(1), a.fd(2));
    case SYS_socket: return ::socket(a.fd(0), a.fd(1), a.fd(2));
    case SYS_connect: return ::connect(a.fd(0), a.pointer<sockaddr>(1), static_cast<socklen_t>(a.at[2]));
    case SYS_accept: return ::accept(a.fd(0), a.pointer<sockaddr>(1), a.pointer<socklen_t>(2));
    case SYS_accept4: return ::accept4(a.fd(0), a.pointer<sockaddr>(1), a.pointer<socklen_t>(2), a.fd(3));
    case SYS_listen: return ::listen(a.fd(0), a.fd(1));
    case SYS_shutdown: return ::shutdown(a.fd(0), a.fd(1));
    case SYS_dup: return ::dup(a.fd(0));
    case SYS_dup2: return ::dup2(a.fd(0), a.fd(1));
    case SYS_dup3: return ::dup3(a.fd(0), a.fd(1), a.fd(2));
    case SYS_fcntl: return ::fcntl(a.fd(0), a.fd(1), a.at[2]);
    case SYS_ioctl: return ::ioctl(a.fd(0), static_cast<unsigned long>(a.at[1]), a.at[2]);
    case SYS_setsockopt:
      return ::setsockopt(a.fd(0), a.fd(1), a.fd(2), a.pointer<void>(3), static_cast<socklen_t>(a.at[4]));
    case SYS_getsockopt:
      return ::getsockopt(a.fd(0), a.fd(1), a.fd(2), a.pointer<void>(3), a.pointer<socklen_t>(4));
    case SYS_exit_group: ::_exit(a.fd(0));
    case SYS_execve: return ::execve(a.pointer<char>(0), a.pointer<char*>(1), a.pointer<char*>(2));
    case SYS_execveat:
      return ::execveat(a.fd(0), a.pointer<char>(1), a.pointer<char*>(2), a.pointer<char*>(3), a.fd(4));
    default: break;
  }
  *handled = false;
  return 0;
}

// The raw calls take the signal mask's size; ours is libc's set, of which the kernel reads the first eight bytes.
long wait_call(long n, const Arguments& a, bool* handled) {
  switch (n) {
    case SYS_epoll_create: return ::epoll_create(a.fd(0));
    case SYS_epoll_create1: return ::epoll_create1(a.fd(0));
    case SYS_epoll_ctl: return ::epoll_ctl(a.fd(0), a.fd(1), a.fd(2), a.pointer<epoll_event>(3));
    case SYS_epoll_wait: return ::epoll_wait(a.fd(0), a.pointer<epoll_event>(1), a.fd(2), a.fd(3));
    case SYS_epoll_pwait:
      return ::epoll_pwait(a.fd(0), a.pointer<epoll_event>(1), a.fd(2), a.fd(3), a.pointer<sigset_t>(4));
    case SYS_poll: return ::poll(a.pointer<pollfd>(0), static_cast<nfds_t>(a.at[1]), a.fd(2));
    case SYS_ppoll:
      return ::ppoll(a.pointer<pollfd>(0), static_cast<nfds_t>(a.at[1]), a.pointer<timespec>(2), a.pointer<sigset_t>(3));
    case SYS_select:
      return ::select(a.fd(0), a.pointer<fd_set>(1), a.pointer<fd_set>(2), a.pointer<fd_set>(3), a.pointer<timeval>(4));
    default: break;
  }
  *handled = false;
  return 0;
}

}  // namespace

extern "C" {

__attribute__((__noreturn__)) void mpklink__exit(int status) {
  if (!in_foreign_child()) answer_all_freezes();
  write_stats();
  real()._exit(status);
  real_exit(status);
}
__attribute__((__noreturn__)) void mpklink__Exit(int status) noexcept {
  if (!in_foreign_child()) answer_all_freezes();
  write_stats();
  real()._Exit(status);
  real_exit(status);
}

long mpklink_syscall(long n, ...) noexcept {
  va_list list;
  va_start(list, n);
  Arguments a = {};
  for (long& argument : a.at) argument = va_arg(list, long);
  va_end(list);
  bool handled = true;
  long result = data_call(n, a, &handled);
  if (handled) return result;
  handled = true;
  result = life_call(n, a, &handled);
  if (handled) return result;
  handled = true;
  result = wait_call(n, a, &handled);
  if (handled) return result;
  result = real().syscall(n, a.at[0], a.at[1], a.at[2], a.at[3], a.at[4], a.at[5]);
  // Requests put into the ring of an io_uring cannot be seen: no stream of this process is upgraded from here on.
  if (n == SYS_io_uring_setup && result >= 0) {
    process().io_uring_seen.store_release(1);
    revoke_all(Reason::kIoUring);
  }
  return result;
}

}  // extern "C"

MPKLINK_EXPORT(_exit)
MPKLINK_EXPORT(_Exit)
MPKLINK_EXPORT(syscall)
