// SPDX-License-Identifier: MIT
// Copies of what the program sends and receives, to a tool that asked for them (shm/status.h, kRequestTap). They are taken from the
// program's own memory when its call is over, and sent without waiting: what the tool does not take is counted and lost. No stream's lock is
// held and no gate is open here.
#pragma once
#include <sys/types.h>
#include <sys/uio.h>

#include "preload/status.h"

namespace mpklink {

inline bool tap_wanted() {
  const std::uint32_t wanted = wanted_now();
  return __builtin_expect(wanted != 0, 0) && wanted != kNotMine && (wanted & kRequestTap) != 0;
}

// An operation is over that asked for `parts`, with result `n`; its bytes are in the stream's row. For whoever wants them.
void tap_received(Stream* s, const iovec* parts, int count, ssize_t n, int flags);
void tap_sent(Stream* s, const iovec* parts, int count, ssize_t n);
// The kernel has sent `n` bytes of a file that end at its position `end`.
void tap_sent_file(Stream* s, int file, off64_t end, ssize_t n);
void tap_end(Stream* s, bool outgoing, TapKind kind);  // told once

bool tap_leave_number(int fd);  // the program takes this number from us; true: it was ours, and nobody uses it any more
void tap_forked_child();

}  // namespace mpklink
