// SPDX-License-Identifier: MIT
// The originals of the hooked calls, as a value: the core gets it handed, so a test can make the N-th call fail.
#pragma once
#include "preload/libc_names.h"
#include "shm/atomic.h"
#include "shm/system_calls.h"

namespace mpklink {

// What the library calls for its own purposes: system calls without libc's cancellation points. A thread that is cancelled must not be
// unwound where it holds a lock, nor in a hook of a call that is no cancellation point.
struct QuietCalls {
  ssize_t (*read)(int, void*, size_t);
  ssize_t (*write)(int, const void*, size_t);
  int (*close)(int);
  int (*open)(const char*, int, mode_t);
  int (*poll)(pollfd*, nfds_t, int);
  int (*ppoll)(pollfd*, nfds_t, const timespec*, const sigset_t*);
  int (*epoll_pwait)(int, epoll_event*, int, int, const sigset_t*);
  ssize_t (*recv)(int, void*, size_t, int);
  ssize_t (*recvmsg)(int, msghdr*, int);
  ssize_t (*send)(int, const void*, size_t, int);
  ssize_t (*sendmsg)(int, const msghdr*, int);
  int (*connect)(int, const sockaddr*, socklen_t);
  int (*accept4)(int, sockaddr*, socklen_t*, int);
  ssize_t (*getrandom)(void*, size_t, unsigned);
};

struct RealCalls {
#define HOOK(name, group, class) decltype(&::name) name;  // NOLINT(bugprone-macro-parentheses): a declaration
#include "preload/interpose.def"
  SystemCalls sys;
  QuietCalls quiet;
};

enum : std::uint32_t { kUnresolved = 0, kResolving = 1, kResolved = 2 };
extern RealCalls g_real;  // these two by their names nowhere else: on the data path, where a call would cost
extern Atomic<std::uint32_t> g_resolved;
const RealCalls& resolve_real();

// The process's table, resolved by the first caller (hooks run before constructors), without locks or allocation of ours.
inline const RealCalls& real() {
  return __builtin_expect(g_resolved.load_acquire() == kResolved, 1) ? g_real : resolve_real();  // SYNC: originals resolved
}
inline const QuietCalls& quiet() { return real().quiet; }
// For tests: what `real()` returns from now on, writable.
RealCalls& real_for_test();

[[noreturn]] void real_exit(int status);

}  // namespace mpklink
