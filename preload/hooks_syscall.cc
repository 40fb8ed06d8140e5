// SPDX-License-Identifier: MIT
// syscall(): what programs do by number (libuv closes that way) is what the hooks of the same names do.
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdarg.h>
#include <sys/syscall.h>

#include <type_traits>
#include <utility>

#include "preload/export.h"
#include "preload/hook_scope.h"
#include "preload/hooks.h"
#include "preload/revoke.h"
#include "preload/select.h"
#include "preload/wait.h"
#include "shm/user_copy.h"

using namespace mpklink;

namespace {

// One argument of a raw call, as whatever type the hook takes.
struct Argument {
  long value;
  template <class T>
  operator T() const {  // NOLINT: implicit is the point
    if constexpr (std::is_pointer_v<T>) {
      return reinterpret_cast<T>(value);
    } else {
      return static_cast<T>(value);
    }
  }
};

struct Arguments {
  Argument at[6];
  const Argument& operator[](int i) const { return at[i]; }
};

// syscall() is no cancellation point, and nothing may be thrown through it; the hooks' calls are.
template <class Result, class... Parameters, std::size_t... kIndex>
long call(Result (*hook)(Parameters...), const Arguments& a, std::index_sequence<kIndex...>) {
  const CancellationOff quiet;
  return hook(static_cast<Parameters>(a.at[kIndex])...);
}

template <class Result, class... Parameters>
long call(Result (*hook)(Parameters...), const Arguments& a) {
  return call(hook, a, std::index_sequence_for<Parameters...>());
}

long raw(long n, const Arguments& a) {
  return real().syscall(n, a[0].value, a[1].value, a[2].value, a[3].value, a[4].value, a[5].value);
}

// The kernel's sigset_t has eight bytes, of which libc's is an extension; another size is its EINVAL to give.
bool kernel_mask(const void* mask, std::size_t size) { return mask == nullptr || size == 8; }

// Raw ppoll and pselect6 leave the time that was left, which libc's functions hide.
template <class Call>
long with_time_left(timespec* timeout, Call wait) {
  const CancellationOff quiet;
  if (timeout == nullptr) return wait();
  timespec time = {};
  if (user_copy(&time, timeout, sizeof time) != 0) return errno = EFAULT, -1;
  const auto ns = time.tv_sec > 9000000000 ? INT64_MAX : time.tv_sec * 1000000000 + time.tv_nsec;
  const std::uint64_t start = now_ns();
  const long result = wait();
  if (result < 0 && errno != EINTR) return result;
  const std::int64_t left = ns - static_cast<std::int64_t>(now_ns() - start);
  time = {left > 0 ? left / 1000000000 : 0, left > 0 ? left % 1000000000 : 0};
  user_copy(timeout, &time, sizeof time);  // as the kernel: too late to fail
  return result;
}

long raw_ppoll(const Arguments& a) {
  pollfd* fds = a[0];
  const sigset_t* mask = a[3];
  if (!kernel_mask(mask, a[4]) || !poll_concerns_us(fds, a[1])) return raw(SYS_ppoll, a);
  return with_time_left(a[2], [&] { return mpklink_ppoll(fds, a[1], a[2], mask); });
}

long raw_pselect6(const Arguments& a) {
  struct Mask {
    const sigset_t* set;
    std::size_t size;
  };
  Mask mask = {};
  const void* given = a[5];
  if (fd_table().unused() || (given != nullptr && user_copy(&mask, given, sizeof mask) != 0)) return raw(SYS_pselect6, a);
  const int n = select_size(a[0], a[1], a[2], a[3]);
  if (!kernel_mask(mask.set, mask.size) || !select_concerns_us(n, a[1], a[2], a[3])) {
    return real().syscall(SYS_pselect6, n, a[1].value, a[2].value, a[3].value, a[4].value, a[5].value);
  }
  return with_time_left(a[4], [&] { return mpklink_pselect(n, a[1], a[2], a[3], a[4], mask.set); });
}

long raw_fcntl(const Arguments& a) {
  // libc's function differs from the system call in commands that do not concern us (F_GETOWN).
  const int command = a[1];
  const bool ours = command == F_DUPFD || command == F_DUPFD_CLOEXEC || command == F_SETFL || fd_table().hidden(a[0]);
  return ours ? mpklink_fcntl(a[0], command, a[2].value) : raw(SYS_fcntl, a);
}

// The position is one argument to us and two to the call, the second of which counts on 32-bit machines only.
template <class Hook>
long at_position(Hook hook, const Arguments& a) {
  const CancellationOff quiet;
  return hook(a[0], a[1], a[2], a[3], a[5]);
}

long new_descriptor(long n, const Arguments& a) {
  const long fd = raw(n, a);
  // Requests put into the ring of an io_uring cannot be seen: no stream of this process is upgraded from here on.
  if (n == SYS_io_uring_setup && fd >= 0) {
    process().io_uring_seen.store_release(1);
    revoke_all(Reason::kIoUring);
  }
  return fresh_fd(static_cast<int>(fd));
}

}  // namespace

extern "C" long mpklink_syscall(long n, ...) noexcept {
  va_list list;
  va_start(list, n);
  Arguments a = {};
  for (Argument& argument : a.at) argument.value = va_arg(list, long);
  va_end(list);
  switch (n) {
#define RAW(name) \
  case SYS_##name: return call(&mpklink_##name, a);
#include "preload/raw_calls.def"
#define NEW_FD(name) case SYS_##name:
#include "preload/raw_calls.def"
    return new_descriptor(n, a);
    case SYS_preadv2: return at_position(&mpklink_preadv2, a);
    case SYS_pwritev2: return at_position(&mpklink_pwritev2, a);
    case SYS_fcntl: return raw_fcntl(a);
    case SYS_ioctl: return mpklink_ioctl(a[0], a[1], a[2].value);
    case SYS_epoll_pwait: return kernel_mask(a[4], a[5]) ? call(&mpklink_epoll_pwait, a) : raw(n, a);
    case SYS_epoll_pwait2: return kernel_mask(a[4], a[5]) ? call(&mpklink_epoll_pwait2, a) : raw(n, a);
    case SYS_ppoll: return raw_ppoll(a);
    case SYS_pselect6: return raw_pselect6(a);
    case SYS_fork: return mpklink_raw_fork(n, 0, 0, 0, 0, 0);
    case SYS_clone: {
      // With a stack of its own the child would come back here on it: only its own assembly can do that.
      const bool forks = !(a[0].value & CLONE_VM) && a[1].value == 0;
      if (!forks) return raw(n, a);
      return mpklink_raw_fork(n, a[0].value, a[1].value, a[2].value, a[3].value, a[4].value);
    }
    case SYS_exit_group:
      mpklink__exit(a[0]);
      real_exit(a[0]);  // the declaration of a hook does not say noreturn
    default: return raw(n, a);
  }
}

MPKLINK_EXPORT(syscall)
