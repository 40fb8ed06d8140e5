// SPDX-License-Identifier: MIT
// Ends of the process that run no destructors.
#include "preload/export.h"
#include "preload/hook_scope.h"
#include "preload/stats.h"

using namespace mpklink;

extern "C" {

__attribute__((__noreturn__)) void mpklink__exit(int status) {
  write_stats();
  real()._exit(status);
  real_exit(status);
}
__attribute__((__noreturn__)) void mpklink__Exit(int status) noexcept {
  write_stats();
  real()._Exit(status);
  real_exit(status);
}

}  // extern "C"

MPKLINK_EXPORT(_exit)
MPKLINK_EXPORT(_Exit)
