// SPDX-License-Identifier: MIT
// What happens at load, in order, and at the end of the process.
#include <pthread.h>

#include "preload/fork.h"
#include "preload/process.h"
#include "preload/revoke.h"
#include "preload/stats.h"
#include "preload/stream.h"

namespace {

using namespace mpklink;

__attribute__((constructor)) void load() {
  real();        // 1. the originals: before any thread can race for them
  initialise();  // 2. the settings: nginx and others clear or overwrite their environment later
  if (!process().settings.disabled) pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);  // 3.
}

__attribute__((destructor)) void unload() {
  answer_all_freezes(true);
  write_stats();
  streams_at_exit();
}

}  // namespace
