// SPDX-License-Identifier: MIT
#include <errno.h>
#include <stdlib.h>

#include "preload/epoll_set.h"
#include "preload/export.h"
#include "preload/fault.h"
#include "preload/hook_scope.h"
#include "preload/select.h"
#include "preload/wait.h"
#include "shm/user_copy.h"

using namespace mpklink;

namespace {

constexpr std::int64_t kForever = -1;

std::int64_t ms_to_ns(int ms) { return ms < 0 ? kForever : std::int64_t{ms} * 1000000; }

// False: not a valid time; the kernel says EINVAL or EFAULT. Only once something is known to concern us.
bool to_ns(const timespec* t, std::int64_t* ns) {
  *ns = kForever;
  if (t == nullptr) return true;
  timespec time = {};
  if (user_copy(&time, t, sizeof time) != 0) return false;
  if (time.tv_sec < 0 || time.tv_nsec < 0 || time.tv_nsec >= 1000000000) return false;
  *ns = time.tv_sec > 9000000000 ? kForever : time.tv_sec * 1000000000 + time.tv_nsec;
  return true;
}

bool to_ns(const timeval* t, std::int64_t* ns) {
  *ns = kForever;
  if (t == nullptr) return true;
  timeval time = {};
  if (user_copy(&time, t, sizeof time) != 0 || time.tv_sec < 0 || time.tv_usec < 0) return false;
  *ns = time.tv_sec > 9000000000 ? kForever : time.tv_sec * 1000000000 + time.tv_usec * 1000;
  return true;
}

template <class Call>
int epoll_wait_any(int epfd, epoll_event* events, int max, std::int64_t timeout_ns, const sigset_t* mask, Call call) {
  EpollSet* set = fd_table().epoll(epfd);
  if (set == nullptr || max <= 0) return call();
  if (set->managed_members.load_acquire() != 0) {
    if (can_write(events, sizeof *events * static_cast<size_t>(max))) return epoll_wait_managed(set, events, max, timeout_ns, mask);
    // Bad memory matters only once there is something to store.
    epoll_event one = {};
    const int n = epoll_wait_managed(set, &one, 1, timeout_ns, mask);
    if (n <= 0) return n;
    tell_again(set, one.data.u64);
    errno = EFAULT;
    return -1;
  }
  return epoll_wait_kernel(set, events, max, timeout_ns, mask);
}

int epoll_created(int epfd) {
  fresh_fd(epfd);
  if (epfd >= 0 && !process().settings.disabled) make_epoll_set(epfd);
  return epfd;
}

}  // namespace

extern "C" {

int mpklink_poll(struct pollfd* fds, nfds_t n, int timeout) {
  if (!poll_concerns_us(fds, n)) return real().poll(fds, n, timeout);
  return poll_streams(fds, n, ms_to_ns(timeout), nullptr);
}
int mpklink___poll_chk(struct pollfd* fds, nfds_t n, int timeout, size_t fds_len) {
  if (n > fds_len / sizeof *fds) abort();
  return mpklink_poll(fds, n, timeout);
}
int mpklink_ppoll(struct pollfd* fds, nfds_t n, const struct timespec* timeout, const sigset_t* mask) {
  std::int64_t ns = 0;
  if (!poll_concerns_us(fds, n) || !to_ns(timeout, &ns)) return real().ppoll(fds, n, timeout, mask);
  return poll_streams(fds, n, ns, mask);
}
int mpklink___ppoll_chk(struct pollfd* fds, nfds_t n, const struct timespec* timeout, const sigset_t* mask,
                        size_t fds_len) {
  if (n > fds_len / sizeof *fds) abort();
  return mpklink_ppoll(fds, n, timeout, mask);
}

int mpklink_select(int n, fd_set* in, fd_set* out, fd_set* except, struct timeval* timeout) {
  std::int64_t ns = kForever;
  n = select_size(n, in, out, except);
  if (!select_concerns_us(n, in, out, except) || !to_ns(timeout, &ns)) return real().select(n, in, out, except, timeout);
  const std::uint64_t start = timeout != nullptr ? now_ns() : 0;
  const int ready = select_streams(n, in, out, except, ns, nullptr);
  if (timeout != nullptr) {  // Linux leaves the time that was left (select(2))
    const std::int64_t left = ns - static_cast<std::int64_t>(now_ns() - start);
    timeout->tv_sec = left > 0 ? left / 1000000000 : 0;
    timeout->tv_usec = left > 0 ? left % 1000000000 / 1000 : 0;
  }
  return ready;
}
int mpklink_pselect(int n, fd_set* in, fd_set* out, fd_set* except, const struct timespec* timeout,
                    const sigset_t* mask) {
  std::int64_t ns = 0;
  n = select_size(n, in, out, except);
  if (!select_concerns_us(n, in, out, except) || !to_ns(timeout, &ns)) {
    return real().pselect(n, in, out, except, timeout, mask);
  }
  return select_streams(n, in, out, except, ns, mask);
}

int mpklink_epoll_create(int size) noexcept { return epoll_created(real().epoll_create(size)); }
int mpklink_epoll_create1(int flags) noexcept { return epoll_created(real().epoll_create1(flags)); }

int mpklink_epoll_ctl(int epfd, int op, int fd, struct epoll_event* event) noexcept {
  if (fd_table().hidden(fd)) {
    errno = EBADF;
    return -1;
  }
  if (Stream* s = stream_of(fd)) {
    const int result = epoll_ctl_stream(epfd, op, fd, s, event);
    if (result != kUnhandled) return result;
  } else if (EpollSet* inner = fd_table().epoll(fd)) {
    const int result = epoll_ctl_set(epfd, op, fd, inner, event);
    if (result != kUnhandled) return result;
  }
  return real().epoll_ctl(epfd, op, fd, event);
}

int mpklink_epoll_wait(int epfd, struct epoll_event* events, int max, int timeout) {
  return epoll_wait_any(epfd, events, max, ms_to_ns(timeout), nullptr,
                        [&] { return real().epoll_wait(epfd, events, max, timeout); });
}
int mpklink_epoll_pwait(int epfd, struct epoll_event* events, int max, int timeout, const sigset_t* mask) {
  return epoll_wait_any(epfd, events, max, ms_to_ns(timeout), mask,
                        [&] { return real().epoll_pwait(epfd, events, max, timeout, mask); });
}
int mpklink_epoll_pwait2(int epfd, struct epoll_event* events, int max, const struct timespec* timeout,
                         const sigset_t* mask) {
  std::int64_t ns = 0;
  if (fd_table().epoll(epfd) == nullptr || !to_ns(timeout, &ns)) return real().epoll_pwait2(epfd, events, max, timeout, mask);
  return epoll_wait_any(epfd, events, max, ns, mask,
                        [&] { return real().epoll_pwait2(epfd, events, max, timeout, mask); });
}

}  // extern "C"

MPKLINK_EXPORT(poll)
MPKLINK_EXPORT_AS(__poll, poll)
MPKLINK_EXPORT(__poll_chk)
MPKLINK_EXPORT(ppoll)
MPKLINK_EXPORT(__ppoll_chk)
MPKLINK_EXPORT(select)
MPKLINK_EXPORT_AS(__select, select)
MPKLINK_EXPORT(pselect)
MPKLINK_EXPORT(epoll_create)
MPKLINK_EXPORT(epoll_create1)
MPKLINK_EXPORT(epoll_ctl)
MPKLINK_EXPORT(epoll_wait)
MPKLINK_EXPORT(epoll_pwait)
MPKLINK_EXPORT(epoll_pwait2)
