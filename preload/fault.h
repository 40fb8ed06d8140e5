// SPDX-License-Identifier: MIT
// EFAULT for bad buffers: a SIGSEGV or SIGBUS handler for faults inside shm/user_copy alone.
//
// DESIGN section 1 wants no signal handler of ours; it also wants, before that, that the program cannot tell. recv(2) into
// an unmapped page is EFAULT and not a crash, and no check beforehand is sound (memory may go away at any time) or free (a
// system call each). So the handler is there from the first socket or epoll instance on where the program has none, and where it has
// one, the handler that stands before it (signals.h) looks first. The program is told of neither. Faults elsewhere end as if both did not exist:
// the program's handler runs, or the default action is put back and the instruction faults again; one in guarded memory is reported
// before that (fault_report.h).
#pragma once
#include <signal.h>

#include <cstddef>

namespace mpklink {

void install_fault_handlers();           // where the disposition is the default; once
bool is_fault_handler(const struct sigaction& action);
// The program asks for the default action of SIGSEGV or SIGBUS: *ours is to be set when it has ever stood in for it (true).
bool stands_for_default(int number, struct sigaction* ours);

// Whether [at, at + n) can be read, or read and written, now. For the small structures of a call.
bool can_read(const void* at, std::size_t n);
bool can_write(void* at, std::size_t n);

}  // namespace mpklink
