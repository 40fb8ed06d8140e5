// SPDX-License-Identifier: MIT
// Handlers of the program run between the library's sections (section.h), never in one.
//
// A program may do in a handler what POSIX calls async-signal-safe: send and receive on any stream, close, fork, and jump out of it with
// siglongjmp and never come back. In the kernel a system call is whole by then. Here a handler could find, and leave behind, a stream
// half-way. So the kernel's handler is ours for each signal the program handles: in a section it blocks the signal, queues it again for
// this thread, and returns; the end of the section unblocks it. (Onload does so, too.) Outside it calls the program's at once.
// What sigaction tells the program is the program's own.
//
// Of a fault ours looks only whether it is in shm/user_copy, where a bad pointer of the program's is to be EFAULT (fault.h). Left alone are
// the other signals of a crash, those of job control, and handlers installed past libc. Of real-time signals queued for one thread
// (pthread_sigqueue) one that was put off comes behind those that were queued with it.
#pragma once
#include <signal.h>

#include <cstdint>

namespace mpklink {

// As sigaction(2), with the program's handlers in the place of ours.
int set_action(int number, const struct sigaction* action, struct sigaction* old);

// After libc installed `handler` by itself (signal, sigset): ours takes its place. `old` as libc tells it, `before` as program_handler()
// said before the call. Returns what to tell the program.
sighandler_t adopt_handler(int number, sighandler_t handler, sighandler_t old, sighandler_t before);
sighandler_t program_handler(int number);
void note_interrupts(int number, bool interrupts);  // siginterrupt(3) has changed the flag

// A call of the kernel said EINTR and no handler of ours ran: whether one that was installed past libc, without SA_RESTART, may have.
bool breaking_handler_past_libc();

}  // namespace mpklink
