// SPDX-License-Identifier: MIT
#include "preload/transfer_step.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>

#include <initializer_list>

#include "preload/fd_table.h"
#include "preload/identity.h"
#include "preload/log.h"
#include "preload/pair.h"
#include "preload/signals.h"
#include "preload/sleepers.h"
#include "preload/wait.h"

namespace mpklink {
namespace {

}  // namespace

int Parts::read_all(const iovec* parts, int count) {
  const bool fits = count <= kPartsMax;
  parts_ = fits ? own_ : parts;
  count_ = count;
  std::size_t total = 0;
  for (int i = 0; i < count; ++i) {
    iovec one;
    iovec* const part = fits ? &own_[i] : &one;
    if (const int error = read_part(&parts[i], part)) return error;
    total = part->iov_len < kCountMax - total ? total + part->iov_len : kCountMax;
  }
  total_ = total;
  return 0;
}

bool Parts::cut(std::size_t skip, std::size_t limit, Window* window) const {
  int n = 0;
  for (int i = 0; i < count_ && n < kPartsMax && limit > 0; ++i) {
    iovec part;
    if (parts_ == own_) {
      part = own_[i];
    } else if (read_part(&parts_[i], &part) != 0) {
      break;
    }
    if (skip >= part.iov_len) {
      skip -= part.iov_len;
      continue;
    }
    iovec& out = window->copy[n++];
    out.iov_base = static_cast<char*>(part.iov_base) + skip;
    out.iov_len = part.iov_len - skip < limit ? part.iov_len - skip : limit;
    limit -= out.iov_len;
    skip = 0;
  }
  window->parts = window->copy;
  window->count = n;
  return n > 0 && !touches_guarded(*window);
}

void poison(int fd, Stream* s) {
  if (s->poisoned.exchange(1) != 0) return;
  count_plain(s, Reason::kPeerLied);
  log(LogLevel::kError, FMT_COMPILE("the peer's indices are impossible; fd {} is reset"), fd);
  const ErrnoSaver keep;
  const linger reset = {1, 0};
  real().setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  real().shutdown(fd, SHUT_RDWR);
  s->send_over_tcp.store_relaxed(1);
  s->sticky.fetch_or(kStickyErr | kStickyRdhup | kStickyHup);
}

bool peer_is_dead(int fd, const Stream* s) {
  const int orphan = peer_is_orphan(fd);
  if (orphan >= 0) return orphan != 0;
  return peer_gone(s->pair);  // its process, then: the next best
}

bool non_blocking(const Stream* s, int flags) {
  return (flags & MSG_DONTWAIT) || s->nonblocking.load_relaxed();  // relaxed: set by fcntl earlier in this thread's eyes
}

int block(Call* c, std::uint32_t event, std::size_t done, std::uint64_t timeout_ns, std::uint64_t* deadline) {
  // The flag belongs to the open file, and another process that has it may have set it.
  if (c->s->forked.load_relaxed() != 0) {  // relaxed: set before that process was there
    const int flags = real().fcntl(c->fd, F_GETFL);
    if (flags >= 0 && (flags & O_NONBLOCK)) {
      c->s->nonblocking.store_release(1);
      return EAGAIN;
    }
  }
  if (timeout_ns != 0 && *deadline == 0) *deadline = now_ns() + timeout_ns;
  int fd = c->fd;
  // What was moved is the call's result, whatever the handler's flags; with a timeout set it is EINTR always (signal(7)).
  const bool restarts = done == 0 && timeout_ns == 0;
  const Waited waited = wait_stream(c->s, &fd, event, *deadline, c->handlers, restarts);
  if (fd != c->fd) {
    if (c->on_stand_in) leave_sleep(c->s);  // it has moved once more: one is owed
    c->fd = fd;
    c->on_stand_in = true;
  }
  switch (waited) {
    case Waited::kReady: return 0;
    case Waited::kTimeout: return EAGAIN;
    case Waited::kInterrupted: break;
  }
  // The wait underneath is ppoll, which never restarts by itself, also for a signal of libc's own (setuid).
  const bool breaks = c->handlers.breaking() || (!c->handlers.any() && breaking_handler_past_libc());
  return restarts && !breaks ? 0 : EINTR;
}

ssize_t finish_on_stand_in(const Call& c, ssize_t result) {
  const ErrnoSaver keep;
  leave_sleep(c.s);
  return result;
}

void cancelled_on_stand_in(void* call) {
  const auto* c = static_cast<const Call*>(call);
  if (c->on_stand_in) leave_sleep(c->s);
}

ssize_t finish_call(std::size_t done, int error) {
  if (done > 0) return static_cast<ssize_t>(done);
  errno = error;
  return -1;
}

ssize_t finish_call(Stream* s, std::size_t done, int error) {
  if (done > 0) keep_for_next_call(s, error);
  return finish_call(done, error);
}

void keep_for_next_call(Stream* s, int error) {
  const bool told = error != EAGAIN && error != EINTR && error != EFAULT && error != EPIPE && error != EBADF && error != EINVAL;
  if (told) s->pending_error.store_release(static_cast<std::uint32_t>(error));
}

ssize_t lost_stream(int fd, const Stream* s, std::size_t done, bool waited) {
  if (done > 0) return static_cast<ssize_t>(done);
  if (!waited || fd_table().names(fd, s)) return kNotOurs;
  errno = EBADF;
  return -1;
}

int check_parts(const iovec* parts, int count, std::size_t* total) {
  Parts read;
  const int error = read.read(parts, count);
  *total = error == 0 ? read.total() : 0;
  return error;
}

}  // namespace mpklink
