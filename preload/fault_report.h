// SPDX-License-Identifier: MIT
// What a touch of guarded memory by the program is told on stderr, once a process: who, what, where in which connection, and by which
// code. Called from the SIGSEGV handler of fault.cc, so async-signal-safe: no allocation, no lock of ours, text by write(2).
//
// The stack is libunwind's, which is not linked but opened, locally, when the guard comes into force: the program's own unwinder (its
// exceptions) stays the one it has, and nothing is loaded in a signal handler. Without it the report has no stack.
#pragma once
#include <signal.h>
#include <ucontext.h>

namespace mpklink {

void prepare_fault_report();  // opens libunwind; outside of a handler, once

// Whether the fault is an access to guarded memory; if so it is reported, unless MPKLINK_FAULT_REPORT=0 or it is not the first.
bool report_fault(const siginfo_t& info, const ucontext_t& context);

}  // namespace mpklink
