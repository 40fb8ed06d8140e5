// SPDX-License-Identifier: MIT
// The forks for which libc runs no handlers. (fork itself does; a child made in yet another way is noticed at its first call,
// but then its parent does not know that the streams are shared.)
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "preload/export.h"
#include "preload/fork.h"
#include "preload/hooks.h"
#include "preload/process.h"

using namespace mpklink;

namespace {

// `make` is the call that returns twice.
template <class Make>
auto forked(Make make) {
  before_fork();
  const auto child = make();
  if (child == 0) {
    after_fork_in_child();
  } else {
    const ErrnoSaver keep;
    after_fork_in_parent();
  }
  return child;
}

struct Start {
  int (*function)(void*);
  void* argument;
};

// In the child's copy of our memory, in which the parent's frame still stands.
int start_child(void* argument) {
  const Start start = *static_cast<Start*>(argument);
  after_fork_in_child();
  return start.function(start.argument);
}

}  // namespace

extern "C" {

pid_t mpklink__Fork() noexcept {
  if (process().settings.disabled) return real()._Fork();
  return forked([] { return real()._Fork(); });
}

int mpklink_clone(int (*function)(void*), void* stack, int flags, void* argument, ...) noexcept {
  va_list list;
  va_start(list, argument);
  auto* parent_tid = va_arg(list, pid_t*);
  void* tls = va_arg(list, void*);
  auto* child_tid = va_arg(list, pid_t*);
  va_end(list);
  const bool forks = !(flags & CLONE_VM) && function != nullptr && stack != nullptr && !process().settings.disabled;
  if (!forks) return real().clone(function, stack, flags, argument, parent_tid, tls, child_tid);
  Start start = {function, argument};
  before_fork();
  const int child = real().clone(start_child, stack, flags, &start, parent_tid, tls, child_tid);
  const ErrnoSaver keep;
  after_fork_in_parent();
  return child;
}

}  // extern "C"

// SYS_fork, and SYS_clone where it forks (hooks_syscall.cc).
long mpklink_raw_fork(long number, long a, long b, long c, long d, long e) {
  return forked([=] { return real().syscall(number, a, b, c, d, e, 0L); });
}

MPKLINK_EXPORT(_Fork)
MPKLINK_EXPORT(clone)
MPKLINK_EXPORT_AS(__clone, clone)
