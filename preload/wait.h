// SPDX-License-Identifier: MIT
// Blocking on streams: one thread in recv or send, or in poll and select over many descriptors.
#pragma once
#include <cstdint>

#include "preload/stream.h"

namespace mpklink {

enum class Waited { kReady, kTimeout, kInterrupted };

// Blocks until `s` may be readable (EPOLLIN) or writable (EPOLLOUT), the deadline (now_ns; 0: none) or a signal. No lock
// and no gate is held. A cancellation point. kReady is a hint: the caller tries again. *number: replaced by the stream's stand-in when it
// was closed meanwhile; the caller owes a leave_sleep for that (sleepers.h). `call`: made when the program's call began; `restarts`: a handler with
// SA_RESTART does not interrupt it.
Waited wait_stream(Stream* s, int* number, std::uint32_t event, std::uint64_t deadline_ns, const HandlersSince& call, bool restarts);

// poll over descriptors of which at least one is a stream of ours. timeout in ns, negative: for ever. As ppoll(2).
int poll_streams(pollfd* fds, nfds_t n, std::int64_t timeout_ns, const sigset_t* mask);
bool poll_concerns_us(const pollfd* fds, nfds_t n);

// Whether spinning may pay at all: another CPU to run on, and the peer not on ours.
bool may_spin(Pair* pair, std::uint32_t our_side);
void publish_cpu(Pair* pair, std::uint32_t our_side);  // gate open

}  // namespace mpklink
