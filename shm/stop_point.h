// SPDX-License-Identifier: MIT
// Named places at which a test has a process killed or stopped: between steps that no system call separates, where a tracer has no
// foothold. Only in a library built with -Dstop_points=true; nothing at all otherwise (tests/integration/stop_points_test.py).
//
// MPKLINK_STOP_AT=NAME:N:SIGNAL  at the N-th passage of NAME the process sends itself the signal. Looked up each time: a forked process
// may set it anew. Passages are counted while it is set.
#pragma once

#ifdef MPKLINK_STOP_POINTS
namespace mpklink {
void stop_point(const char* name);
}
#define STOP_POINT(name) ::mpklink::stop_point(name)
#else
#define STOP_POINT(name) static_cast<void>(0)
#endif
