// SPDX-License-Identifier: MIT
// What a call owes when its thread never comes back from a wait in it: it is cancelled, or a signal handler jumps away.
#pragma once
#include <pthread.h>

// libc's first interface for clean-ups (glibc, sysdeps/nptl/pthreadP.h), which longjmp serves as well. pthread_cleanup_push does not: after
// a jump the dead frame stays on the thread's list, and the thread's end would return into it.
extern "C" {
void _pthread_cleanup_push(struct _pthread_cleanup_buffer* buffer, void (*routine)(void*), void* argument);
void _pthread_cleanup_pop(struct _pthread_cleanup_buffer* buffer, int execute);
}

namespace mpklink {

// Calls `routine` when its scope is left by cancellation or siglongjmp; not at its ordinary end.
class OnUnwind {
 public:
  OnUnwind(void (*routine)(void*), void* argument) { _pthread_cleanup_push(&buffer_, routine, argument); }
  ~OnUnwind() { _pthread_cleanup_pop(&buffer_, 0); }
  OnUnwind(const OnUnwind&) = delete;
  OnUnwind& operator=(const OnUnwind&) = delete;

 private:
  struct _pthread_cleanup_buffer buffer_ = {};
};

}  // namespace mpklink
