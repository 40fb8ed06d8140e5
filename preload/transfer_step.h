// SPDX-License-Identifier: MIT
// Between receive.cc and send.cc: one attempt at moving bytes, and what the loops around it share.
#pragma once
#include "preload/transfer.h"

namespace mpklink {

constexpr int kPartsMax = 16;  // iovec entries handled in one step; the outer loop goes on with the rest

// One attempt: bytes moved, 0 for the end of input, or -1 with errno (EAGAIN: would block).
struct Step {
  ssize_t n = -1;
  int error = 0;
  bool more = false;   // the parts looked at are full: there may be more for the others
  bool on_its_way = false;  // nothing yet, but bytes are between ring and socket
  bool leave = false;  // the ring is to be left before the next attempt
  bool fault = false;  // the program's memory ended here: bytes so far are the call's result
};

inline Step moved(ssize_t n) { return {n, 0}; }
inline Step failed(int error) { return {-1, error}; }

// The arguments of one call of the program.
struct Call {
  int fd;
  Stream* s;
  const iovec* parts;
  int count;
  int flags;
  bool on_stand_in = false;  // the program closed its number meanwhile; `fd` is the stream's stand-in (sleepers.h)
};

// Copies of the first entries of `parts` behind `skip` bytes, at most `limit` bytes. Returns their number; 0: bad memory.
int window(const iovec* parts, int count, std::size_t skip, std::size_t limit, iovec (&out)[kPartsMax]);

// Whether `parts`, copies of the program's, reach into the guarded range.
bool touches_guarded(const iovec* parts, int count);

// A lie in shared memory: the stream is over for both sides, the process lives.
void poison(int fd, Stream* s);

// Nobody has the other end of the TCP connection open any more.
bool peer_is_dead(int fd, const Stream* s);

bool non_blocking(const Stream* s, int flags);
// Lets the stand-in go when the call went on with it. `result` of the call.
ssize_t finish_on_stand_in(const Call& c, ssize_t result);
void cancelled_on_stand_in(void* call);  // for pthread_cleanup_push around a call of the kernel
// Waits as a blocking call does that has moved `done` bytes. 0: try again; otherwise the errno to return.
int block(Call* c, std::uint32_t event, std::size_t done, std::uint64_t timeout_ns, std::uint64_t* deadline);

// The call's result: bytes that were moved, or the error. An error that the kernel has told behind some bytes is the next call's.
ssize_t finish_call(std::size_t done, int error);
ssize_t finish_call(Stream* s, std::size_t done, int error);
// The descriptor no longer names the managed stream. One that went back to TCP is the kernel's business; one that was closed
// while this thread slept on it must not be used again: its number may be another file's by now.
ssize_t lost_stream(int fd, const Stream* s, std::size_t done, bool waited);

}  // namespace mpklink
