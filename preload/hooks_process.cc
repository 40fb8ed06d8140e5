// SPDX-License-Identifier: MIT
// Ends of the process that run no destructors.
#include "preload/export.h"
#include "preload/hook_scope.h"
#include "preload/revoke.h"
#include "preload/stats.h"

using namespace mpklink;

namespace {

// Before the process ends without its destructors.
void end_process() {
  if (in_foreign_child()) return;
  answer_all_freezes(true);
  write_stats();
  streams_at_exit();
}

}  // namespace

extern "C" {

__attribute__((__noreturn__)) void mpklink__exit(int status) {
  end_process();
  real()._exit(status);
  real_exit(status);
}
__attribute__((__noreturn__)) void mpklink__Exit(int status) noexcept {
  end_process();
  real()._Exit(status);
  real_exit(status);
}

}  // extern "C"

MPKLINK_EXPORT(_exit)
MPKLINK_EXPORT(_Exit)
