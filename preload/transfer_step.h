// SPDX-License-Identifier: MIT
// Between receive.cc and send.cc: one attempt at moving bytes, and what the loops around it share.
#pragma once
#include <errno.h>
#include <limits.h>
#include <sys/socket.h>

#include "preload/transfer.h"
#include "shm/user_copy.h"

namespace mpklink {

// A large transfer goes in steps: the other end copies what is published while the next is written.
constexpr std::size_t kStepBytes = std::size_t{64} * 1024;

constexpr int kPartsMax = 16;  // iovec entries handled in one step; the outer loop goes on with the rest

// Some of a call's memory: copies of the program's iovec entries, none of which reaches into the guarded range.
struct Window {
  const iovec* parts;
  int count;
  iovec copy[kPartsMax];

  msghdr header() const {
    msghdr h = {};
    h.msg_iov = const_cast<iovec*>(parts);  // sendmsg(2) and recvmsg(2) only read it
    h.msg_iovlen = static_cast<std::size_t>(count);
    return h;
  }
};

// The memory that a call of the program names. Its array is read once, as the kernel does (import_iovec, lib/iov_iter.c), unless it has
// more than kPartsMax entries: then each is read again where it is used.
class Parts {
 public:
  // 0, or the errno with which the kernel refuses such an array: EINVAL, EFAULT.
  int read(const iovec* parts, int count) {
    if (__builtin_expect(count != 1, 0)) return read_all(parts, count);
    parts_ = own_;
    count_ = 1;
    const int error = read_part(parts, own_);
    total_ = own_[0].iov_len < kCountMax ? own_[0].iov_len : kCountMax;
    return error;
  }
  std::size_t total() const { return total_; }  // what the call may move
  int count() const { return count_; }

  // What lies behind `skip` bytes, at most `limit` bytes and kPartsMax entries. False: bad or guarded memory.
  bool window(std::size_t skip, std::size_t limit, Window* window) const {
    if (skip != 0 || limit < total_ || total_ == kCountMax || parts_ != own_) return cut(skip, limit, window);
    window->parts = own_;
    window->count = count_;
    return !touches_guarded(*window);  // the range may be younger than the call
  }

 private:
  static constexpr std::size_t kCountMax = 0x7ffff000;  // MAX_RW_COUNT: what one call moves at most (include/linux/fs.h)
  static constexpr std::uintptr_t kAddressMax = (std::uintptr_t{1} << 47) - kPage;  // TASK_SIZE_MAX
  // An entry of the program's array, which may be bad memory too. 0 or an errno, as __import_iovec (lib/iov_iter.c).
  static int read_part(const iovec* from, iovec* part) {
    if (user_copy(part, from, sizeof *part) != 0) return EFAULT;
    if (part->iov_len > static_cast<std::size_t>(SSIZE_MAX)) return EINVAL;
    const auto at = reinterpret_cast<std::uintptr_t>(part->iov_base);
    const bool bad = part->iov_len > kAddressMax || at > kAddressMax - part->iov_len ||  // access_ok
                     process().guard.range().touches(part->iov_base, part->iov_len);
    return bad ? EFAULT : 0;
  }
  int read_all(const iovec* parts, int count);
  bool cut(std::size_t skip, std::size_t limit, Window* window) const;
  static bool touches_guarded(const Window& window) {
    const GuardedRange& range = process().guard.range();
    bool touches = false;
    for (int i = 0; i < window.count; ++i) touches |= range.touches(window.parts[i].iov_base, window.parts[i].iov_len);
    return touches;
  }

  const iovec* parts_;
  int count_;
  std::size_t total_;
  iovec own_[kPartsMax];
};

// One attempt: bytes moved, 0 for the end of input, or -1 with errno (EAGAIN: would block).
struct Step {
  ssize_t n = -1;
  int error = 0;
  bool more = false;   // the parts looked at are full: there may be more for the others
  bool on_its_way = false;  // nothing yet, but bytes are between ring and socket
  bool promised = false;    // … of which a look has told the program
  bool leave = false;  // the ring is to be left before the next attempt
  bool fault = false;  // the program's memory ended here: bytes so far are the call's result
};

inline Step moved(ssize_t n) { return {n, 0}; }
inline Step failed(int error) { return {-1, error}; }

// The arguments of one call of the program.
struct Call {
  int fd;
  Stream* s;
  const Parts* parts;
  int flags;
  HandlersSince handlers = {};
  bool on_stand_in = false;  // the program closed its number meanwhile; `fd` is the stream's stand-in (sleepers.h)
};

// A lie in shared memory: the stream is over for both sides, the process lives.
void poison(int fd, Stream* s);

// Nobody has the other end of the TCP connection open any more.
bool peer_is_dead(int fd, const Stream* s);

bool non_blocking(const Stream* s, int flags);
// Lets the stand-in go when the call went on with it. `result` of the call.
ssize_t finish_on_stand_in(const Call& c, ssize_t result);
void cancelled_on_stand_in(void* call);  // for OnUnwind around a call of the kernel
// Waits as a blocking call does that has moved `done` bytes. 0: try again; otherwise the errno to return.
int block(Call* c, std::uint32_t event, std::size_t done, std::uint64_t timeout_ns, std::uint64_t* deadline);

// The call's result: bytes that were moved, or the error. An error that the kernel has told behind some bytes is the next call's.
ssize_t finish_call(std::size_t done, int error);
ssize_t finish_call(Stream* s, std::size_t done, int error);
// The descriptor no longer names the managed stream. One that went back to TCP is the kernel's business; one that was closed
// while this thread slept on it must not be used again: its number may be another file's by now.
ssize_t lost_stream(int fd, const Stream* s, std::size_t done, bool waited);

}  // namespace mpklink
