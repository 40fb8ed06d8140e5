// SPDX-License-Identifier: MIT
// The checks of one process, in parts that `doctor PID` and `doctor HOST:PORT` share.
#pragma once
#include "tools/doctor_checks.h"
#include "tools/doctor_proc.h"

namespace mpklink {

/// Throws Refusal (3) with a sentence where there is nothing to look at: gone, a zombie, a kernel thread, another
/// user's.
ProcessFacts open_process(pid_t pid);

/// Is the library in it, and if not, why. `section` of the finding.
Finding check_loaded(const ProcessFacts& process, const std::string& section);
/// Why the library is not in a process that it is not in, and what to do: also for peers, whose environment may be
/// closed to us.
Explanation explain_not_loaded(const ProcessFacts& process);

/// User, namespaces, against ours.
Finding check_place(const ProcessFacts& process, const std::string& section);

/// Limits, seccomp, io_uring, guard.
Findings check_resources(const ProcessFacts& process);

}  // namespace mpklink
