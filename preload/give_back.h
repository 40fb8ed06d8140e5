// SPDX-License-Identifier: MIT
// The sender's half of a revoke: bytes that went into the ring and were not taken from it go over TCP after all.
#pragma once
#include "preload/stream.h"
#include "preload/transfer_lock.h"

namespace mpklink {

// Sends what is left to give back of a frozen ring, without blocking. Send lock held, gate closed. True: nothing is left, what
// the program sends next may follow over TCP. A connection that has ended takes the bytes with it, as TCP's send queue.
// `flags`: of send(2), more of them.
bool give_back(int fd, Stream* s, int flags = 0);

// As often as it takes, making room in the socket's send buffer; before the descriptor leaves our hands. No lock held; false:
// some bytes did not fit within a second.
bool give_back_all(int fd, Stream* s);

// This end sends no more (shutdown, last close, exit): what is unread in its ring goes to TCP, so that whoever has the other end's
// socket gets it, also a program that is handed it later and knows nothing of rings. Does not wait: what TCP has no room for
// stays where a peer of ours finds it. `flags`: of send(2), more of them. No lock held, gate closed.
void leave_to_kernel(int fd, Stream* s, TransferLock::When when, int flags = 0);

// After the shutdown that a leave_to_kernel with MSG_MORE was for: the peer need not wait for those bytes any more.
void returned_with_fin(int fd, Stream* s);

// At the last close: whoever froze the ring still gets everything. Both locks free, `fd` no longer in the table.
void give_back_at_end(int fd, Stream* s);

}  // namespace mpklink
