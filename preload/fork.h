// SPDX-License-Identifier: MIT
// fork: the child keeps everything mapped and may use what it inherited, but is a process of its own.
#pragma once

namespace mpklink {

// From before the first stream is looked at until the fork is over: no stream may be upgraded in between, or two processes would have
// it and one of them would not know.
bool fork_under_way();
void before_fork();
void after_fork_in_parent();
void after_fork_in_child();             // behind before_fork
void after_fork_in_child_unprepared();  // the parent did not know

}  // namespace mpklink
