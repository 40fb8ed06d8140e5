// SPDX-License-Identifier: MIT
// How the two ends of a TCP connection find each other and agree on a channel (DESIGN section 3). Every step is taken inside an
// operation that the program makes anyway, is non-blocking, and leaves the stream on TCP when anything is in doubt.
#pragma once
#include "preload/stream.h"

namespace mpklink {

// After an operation that moved bytes of a stream that is not shared yet: takes the next upgrade step when one is due.
void after_operation(int fd, Stream* s);
// SO_RCVTIMEO and SO_SNDTIMEO.
void read_timeouts(int fd, Stream* s);
// Before an EPOLL_CTL_MOD that re-arms a one-shot registration: the only moment at which it is known whether it has fired.
void before_rearm(int fd, Stream* s, const EpollMember* member);

// The offer is taken back unless the peer has accepted it; then the stream is shared.
void withdraw_offer(Stream* s, Reason reason);
// Both directions of a shared stream are on TCP again and both locks are held: it is a candidate once more, after a longer
// warm-up, or plain. The caller releases the channel outside of the locks.
void back_to_tcp(Stream* s);

std::uint32_t layout_version();

}  // namespace mpklink
