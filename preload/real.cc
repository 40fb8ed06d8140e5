// SPDX-License-Identifier: MIT
#include "preload/real.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>

#include "shm/atomic.h"
#include "shm/raw_syscall.h"

namespace mpklink {

RealCalls g_real = {};
Atomic<std::uint32_t> g_resolved;

namespace {

long raw(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0) {
  const long result = raw_syscall(number, a, b, c, d, e, f);
  if (result >= 0) return result;
  errno = static_cast<int>(-result);
  return -1;
}

// What an allocator may call while dlsym resolves for us (it allocates, the allocator opens /proc or /sys files): bound to
// system calls first, so that no hook is ever without an original.
int early_open(const char* path, int flags, ...) {
  va_list args;
  va_start(args, flags);
  const int mode = va_arg(args, int);
  va_end(args);
  return static_cast<int>(raw(SYS_openat, AT_FDCWD, reinterpret_cast<long>(path), flags, mode));
}
int early_openat(int dir, const char* path, int flags, ...) {
  va_list args;
  va_start(args, flags);
  const int mode = va_arg(args, int);
  va_end(args);
  return static_cast<int>(raw(SYS_openat, dir, reinterpret_cast<long>(path), flags, mode));
}
ssize_t early_read(int fd, void* to, size_t n) {
  return raw(SYS_read, fd, reinterpret_cast<long>(to), static_cast<long>(n));
}
ssize_t early_write(int fd, const void* from, size_t n) {
  return raw(SYS_write, fd, reinterpret_cast<long>(from), static_cast<long>(n));
}
int early_close(int fd) { return static_cast<int>(raw(SYS_close, fd)); }
int early_fcntl(int fd, int command, ...) {
  va_list args;
  va_start(args, command);
  const long arg = va_arg(args, long);
  va_end(args);
  return static_cast<int>(raw(SYS_fcntl, fd, command, arg));
}
int early_ioctl(int fd, unsigned long request, ...) noexcept {
  va_list args;
  va_start(args, request);
  const long arg = va_arg(args, long);
  va_end(args);
  return static_cast<int>(raw(SYS_ioctl, fd, static_cast<long>(request), arg));
}

int add_seals(int fd, int seals) { return static_cast<int>(raw(SYS_fcntl, fd, F_ADD_SEALS, seals)); }
int memfd_secret(unsigned flags) { return static_cast<int>(raw(SYS_memfd_secret, flags)); }
int get_seals(int fd) { return static_cast<int>(raw(SYS_fcntl, fd, F_GET_SEALS)); }

template <class T>
long word(const T* pointer) {
  return reinterpret_cast<long>(pointer);
}

constexpr long kMaskSize = 8;  // the kernel's sigset_t

constexpr QuietCalls kQuiet = {
    early_read,
    early_write,
    early_close,
    [](const char* path, int flags, mode_t mode) { return early_open(path, flags, mode); },
    [](pollfd* fds, nfds_t n, int ms) { return static_cast<int>(raw(SYS_poll, word(fds), static_cast<long>(n), ms)); },
    [](pollfd* fds, nfds_t n, const timespec* timeout, const sigset_t* mask) {
      timespec left = {};  // the system call writes what is left
      if (timeout != nullptr) left = *timeout;
      return static_cast<int>(
          raw(SYS_ppoll, word(fds), static_cast<long>(n), timeout == nullptr ? 0 : word(&left), word(mask), kMaskSize));
    },
    [](int epfd, epoll_event* events, int max, int ms, const sigset_t* mask) {
      return static_cast<int>(raw(SYS_epoll_pwait, epfd, word(events), max, ms, word(mask), kMaskSize));
    },
    [](int fd, void* to, size_t n, int flags) -> ssize_t { return raw(SYS_recvfrom, fd, word(to), static_cast<long>(n), flags); },
    [](int fd, msghdr* message, int flags) -> ssize_t { return raw(SYS_recvmsg, fd, word(message), flags); },
    [](int fd, const void* from, size_t n, int flags) -> ssize_t {
      return raw(SYS_sendto, fd, word(from), static_cast<long>(n), flags);
    },
    [](int fd, const msghdr* message, int flags) -> ssize_t { return raw(SYS_sendmsg, fd, word(message), flags); },
    [](int fd, const sockaddr* address, socklen_t size) { return static_cast<int>(raw(SYS_connect, fd, word(address), size)); },
    [](int fd, sockaddr* address, socklen_t* size, int flags) {
      return static_cast<int>(raw(SYS_accept4, fd, word(address), word(size), flags));
    },
    [](void* to, size_t n, unsigned flags) -> ssize_t { return raw(SYS_getrandom, word(to), static_cast<long>(n), flags); },
};

void bind_early() {
  g_real.quiet = kQuiet;
  g_real.open = g_real.open64 = early_open;
  g_real.openat = g_real.openat64 = early_openat;
  g_real.read = early_read;
  g_real.write = early_write;
  g_real.close = early_close;
  g_real.fcntl = g_real.fcntl64 = early_fcntl;
  g_real.ioctl = early_ioctl;
}

// What this machine's libc does not have: our name for it is found all the same (dlsym, weak symbols), and has to fail, not crash.
long missing() {
  errno = ENOSYS;
  return -1;
}

// The names in the order of RealCalls' members, which are pointers to functions of one size each.
constexpr char kNames[] =
#define HOOK(name, group, class) #name "\0"
#include "preload/interpose.def"
    ;
constexpr std::size_t kHooks = 0
#define HOOK(name, group, class) +1  // NOLINT(bugprone-macro-parentheses): a term of a sum
#include "preload/interpose.def"
    ;
static_assert(offsetof(RealCalls, sys) == kHooks * sizeof(void*));

void resolve() {
  bind_early();
  const char* name = kNames;
  for (std::size_t i = 0; i < kHooks; ++i, name += strlen(name) + 1) {
    void* slot = reinterpret_cast<char*>(&g_real) + i * sizeof(void*);
    void* found = dlsym(RTLD_NEXT, name);
    if (found == nullptr) found = reinterpret_cast<void*>(&missing);
    memcpy(slot, &found, sizeof found);
  }
  g_real.sys = {g_real.memfd_create, memfd_secret, ::ftruncate, ::fchmod,   ::fstat,   ::fstatfs,
                add_seals,           get_seals,    ::mmap,      ::munmap, ::mprotect, ::madvise};
#ifdef MPKLINK_TSAN
  g_real.quiet.close = g_real.close;  // it follows descriptors: a number made anew without a close is a race to it
#endif
}

}  // namespace

const RealCalls& resolve_real() {
  std::uint32_t expected = kUnresolved;
  const int saved_errno = errno;
  if (g_resolved.compare_exchange(expected, kResolving)) {
    resolve();
    g_resolved.store_release(kResolved);  // SYNC: originals resolved
  }
  // Still resolving: we are inside our own dlsym, or a second thread is this early; the early calls serve both.
  errno = saved_errno;
  return g_real;
}

RealCalls& real_for_test() {
  real();
  return g_real;
}

void real_exit(int status) {
  for (;;) raw(SYS_exit_group, status);
}

}  // namespace mpklink
