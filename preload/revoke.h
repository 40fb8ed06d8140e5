// SPDX-License-Identifier: MIT
// The way back: a stream that is upgraded returns to TCP, in the middle of both directions, with nothing lost (DESIGN
// section 3, "Revoking"; the protocol is in shm/handover.h).
#pragma once
#include "preload/stream.h"

namespace mpklink {

// For whatever needs the real socket from here on: freezes both rings, gives our unread bytes back to TCP, has the peer give
// back its own, and waits a bounded time for that. On a stream that is not upgraded: it stays on TCP. No lock held.
void revoke(int fd, Stream* s, Reason reason);
// For a process that has only inherited the stream (fork): it goes back to TCP at the peer's leisure, and what is in its ring is
// read there meanwhile. Cheap when it was asked already. No lock held.
void leave_softly(int fd, Stream* s);
// The same for a stream that tools have switched off, at each of its operations until it is plain.
void switch_off(int fd, Stream* s);
// Every stream with a descriptor that an exec would hand on (not close-on-exec).
void revoke_inheritable(Reason reason);
void revoke_all(Reason reason);

// The peer has (perhaps) frozen our sending ring: gives back what it wants. No lock held, gate closed. Cheap when there is
// nothing to do.
void answer_freeze(int fd, Stream* s);
void answer_freeze(Stream* s);  // by whichever number it has, also when another thread closes that just then
// Bytes of a frozen ring are on their way to us: whoever has the other end is told to see to it. The process that froze it may be dead.
void ask_for_the_rest(int fd, Stream* s);
// The other end is in this very process: nobody else would give its bytes back while this thread waits. Pinned.
void answer_in_this_process(Stream* s);
// The same for all streams: this process will not come by again (exit, exec). `ends`: nor
// does anybody else; what is unread in its rings goes to the kernel.
void answer_all_freezes(bool ends);
// The process ends, the last that has the stream: what it has not read is answered with a reset, as the kernel does for what it knows of.
void end_with_reset(int fd, Stream* s);

// A look found that a direction changed its path, or that the peer asks for an answer. No lock held.
void path_moved(int fd, Stream* s);

// shutdown(2) is about to do `how` (Shut). Before TCP takes nothing more: waits a bounded time for bytes of a frozen ring that are on their
// way. No lock held.
void begin_shutdown(int fd, Stream* s, std::uint32_t how);
// It has. Shut down both ways: the peer's bytes from now on go over TCP, which refuses them; those in the ring can be read. No lock held.
void end_shutdown(int fd, Stream* s, std::uint32_t how);

// Threads of ours that sleep on the stream look again. No lock held.
void wake_own_sleepers(int fd, Stream* s);

// Counts, once an upgrade, that a direction of the stream was frozen.
void note_revoked(Stream* s);

}  // namespace mpklink
