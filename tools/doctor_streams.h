// SPDX-License-Identifier: MIT
// The live connections of a process: which of them share memory, why the others do not, and who is at their other ends.
#pragma once
#include "tools/doctor_process.h"
#include "tools/status_page.h"

namespace mpklink {

/// Of a process that has the library: its guard, and its connections. Adds to process->version what its status page
/// says.
Findings check_live(ProcessFacts* process);

/// Of the connection that `visitor` has made from its port `from` to `to`, as both ends see it.
Findings check_visit(pid_t visitor, std::uint16_t from, const Endpoint& to);

}  // namespace mpklink
