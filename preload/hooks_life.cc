// SPDX-License-Identifier: MIT
// Descriptors come, are shared, and go.
#include <errno.h>
#include <linux/close_range.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <string.h>

#include "preload/epoll_set.h"
#include "preload/export.h"
#include "preload/give_back.h"
#include "preload/hook_scope.h"
#include "preload/pollers.h"
#include "preload/revoke.h"
#include "preload/sleepers.h"
#include "preload/status.h"
#include "preload/tap.h"
#include "shm/user_copy.h"

using namespace mpklink;

namespace {

bool is_internet(int family) { return family == AF_INET || family == AF_INET6; }

void track(int fd, State state, bool nonblocking) {
  if (process().settings.disabled) return;
  const ErrnoSaver keep;
  Stream* s = make_stream(state);
  if (s == nullptr) return count_plain(Reason::kNoMemory);
  s->nonblocking.store_relaxed(nonblocking);
  enter_stream(fd, s);
}

// A connection accepted from a socket of the given family.
int accepted(int fd, const sockaddr_storage& peer, socklen_t size, int flags) {
  if (fd < 0) return fd;
  fresh_fd(fd);
  if (size < sizeof peer.ss_family || !is_internet(peer.ss_family)) return fd;
  track(fd, State::kCandidate, (flags & SOCK_NONBLOCK) != 0);
  if (Stream* s = stream_of(fd)) show_if_loopback(fd, s, reinterpret_cast<const sockaddr*>(&peer), sizeof peer);
  return fd;
}

// A listener that came with the process, as the first of its sockets: how much room the program gave cannot be read safely.
int accepted_from_unknown(int fd, int flags) {
  if (fd < 0) return fd;
  const ErrnoSaver keep;
  int family = AF_UNSPEC;
  socklen_t size = sizeof family;
  real().getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size);
  sockaddr_storage peer = {};
  peer.ss_family = static_cast<sa_family_t>(family);
  return accepted(fd, peer, sizeof peer, flags);
}

template <class Call>
int accept_any(struct sockaddr* address, socklen_t* size, int flags, Call call) {
  sockaddr_storage own = {};
  if (address == nullptr) {
    socklen_t own_size = sizeof own;
    return accepted(call(reinterpret_cast<sockaddr*>(&own), &own_size), own, own_size, flags);
  }
  if (fd_table().unused()) return accepted_from_unknown(call(address, size), flags);
  socklen_t room = 0;
  if (user_copy(&room, size, sizeof room) != 0) return call(address, size);
  const int fd = call(address, size);
  if (fd < 0) return fd;
  memcpy(&own, address, room < sizeof own.ss_family ? room : sizeof own.ss_family);
  const socklen_t whole = own.ss_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  if (is_internet(own.ss_family) && room >= whole) memcpy(&own, address, whole);
  return accepted(fd, own, room, flags);
}

// The table follows `from` to its new number `to`.
int shared(int from, int to) {
  if (to < 0 || from == to) return to;
  fresh_fd(to);
  if (Stream* s = fd_table().stream(from)) {
    // A child of vfork, whose numbers are not ours: what it sets up is for the program that it will become.
    if (in_foreign_child()) return revoke(from, s, Reason::kExec), to;
    s->fds.fetch_add(1);
    s->last_fd.store_relaxed(static_cast<uint32_t>(to));  // relaxed: a hint
    fd_table().set_stream(to, s);
    // Standard input and output are read and written by stdio, behind our back.
    if (to <= 2) revoke(to, s, Reason::kStdio);
  } else if (EpollSet* set = fd_table().epoll(from)) {
    if (!in_foreign_child()) share_epoll_fd(set, to);
  }
  return to;
}

// dup2 and dup3 close their target: first what close would do, when the call will not fail.
void before_overwrite(int from, int to) {
  if (from == to || to < 0 || fd_table().empty(to)) return;
  const ErrnoSaver keep;
  if (in_foreign_child() || real().fcntl(from, F_GETFD) < 0) return;
  if (fd_table().hidden(to)) {
    make_way(to);
  } else {
    forget_open_fd(to);
  }
}

int fcntl_any(int fd, int command, long argument) {
  if (fd_table().hidden(fd)) {
    errno = EBADF;
    return -1;
  }
  const int result = real().fcntl(fd, command, argument);
  if (result < 0) return result;
  if (command == F_DUPFD || command == F_DUPFD_CLOEXEC) return shared(fd, result);
  Stream* s = command == F_SETFL ? stream_of(fd) : nullptr;
  if (s != nullptr) {
    s->nonblocking.store_release((argument & O_NONBLOCK) != 0);
    if (argument & O_ASYNC) revoke(fd, s, Reason::kAsync);
  }
  return result;
}

// Closes [first, last] around the descriptors we hide; whoever closes all means its own.
int close_range_any(unsigned first, unsigned last, int flags) {
  constexpr int kKnown = CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC;
  if (first > last || (flags & ~kKnown) != 0) return real().close_range(first, last, flags);  // EINVAL
  const bool closes = !(flags & CLOSE_RANGE_CLOEXEC);
  const bool ours = !in_foreign_child();
  unsigned from = first;
  for (unsigned fd = first; fd <= last && fd <= static_cast<unsigned>(fd_table().highest()); ++fd) {  // a stand-in may be higher
    const int number = static_cast<int>(fd);
    if (fd_table().empty(number)) continue;
    if (!fd_table().hidden(number)) {
      if (closes && ours) forget_open_fd(number);
      continue;
    }
    if (fd > from && real().close_range(from, fd - 1, flags) != 0) return -1;
    from = fd + 1;
  }
  return from <= last && from >= first ? real().close_range(from, last, flags) : 0;
}

}  // namespace

extern "C" {

int mpklink_socket(int domain, int type, int protocol) noexcept {
  const int fd = fresh_fd(real().socket(domain, type, protocol));
  const bool tcp = is_internet(domain) && (type & 0xf) == SOCK_STREAM && (protocol == 0 || protocol == IPPROTO_TCP);
  if (fd >= 0 && tcp) track(fd, State::kFresh, (type & SOCK_NONBLOCK) != 0);
  return fd;
}

int mpklink_connect(int fd, const struct sockaddr* address, socklen_t size) {
  const int result = real().connect(fd, address, size);
  Stream* s = stream_of(fd);
  if (s == nullptr) return result;
  const ErrnoSaver keep;
  const bool under_way = result == 0 || errno == EINPROGRESS || errno == EINTR;
  if (under_way) s->shut.store_relaxed(0);  // relaxed: a new connection, or none (AF_UNSPEC), which nobody else uses yet
  if (!under_way || state_of(s) != State::kFresh || size < sizeof(sa_family_t) || !is_internet(address->sa_family)) return result;
  s->connector = true;
  s->state.store_release(static_cast<uint32_t>(State::kCandidate));
  if (s->forked.load_relaxed()) make_plain(s, Reason::kForked);  // relaxed: set by fork only
  show_if_loopback(fd, s, address, size);
  return result;
}

int mpklink_accept(int fd, struct sockaddr* address, socklen_t* size) {
  return accept_any(address, size, 0, [&](sockaddr* a, socklen_t* n) { return real().accept(fd, a, n); });
}
int mpklink_accept4(int fd, struct sockaddr* address, socklen_t* size, int flags) {
  return accept_any(address, size, flags, [&](sockaddr* a, socklen_t* n) { return real().accept4(fd, a, n, flags); });
}

// A listening socket never becomes a stream.
int mpklink_listen(int fd, int backlog) noexcept {
  const int result = real().listen(fd, backlog);
  if (result != 0) return result;
  const bool tcp = stream_of(fd) != nullptr;
  fresh_fd(fd);
  if (tcp) show_process();
  return result;
}

int mpklink_close(int fd) {
  if (fd_table().hidden(fd)) {
    errno = EBADF;
    return -1;
  }
  if (!fd_table().empty(fd) && !in_foreign_child()) forget_open_fd(fd);
  return real().close(fd);
}

int mpklink_shutdown(int fd, int how) noexcept {
  Stream* s = stream_of(fd);
  if (s == nullptr) return real().shutdown(fd, how);
  if (how < SHUT_RD || how > SHUT_RDWR) return errno = EINVAL, -1;
  const uint32_t now = how == SHUT_RD ? kShutRead : how == SHUT_WR ? kShutWrite : kShutBoth;
  if (!managed(state_of(s))) {
    const int result = real().shutdown(fd, how);
    if (result != 0) return result;
    s->shut.fetch_or(now);
    if (now & kShutWrite) tap_end(s, true, TapKind::kEnd);
    return result;
  }
  begin_shutdown(fd, s, now);
  if (how == SHUT_WR || how == SHUT_RDWR) {  // before the FIN
    answer_freeze(fd, s);
    // MSG_MORE: with the FIN, as one piece of news to an edge-triggered epoll, to which these bytes are none.
    leave_to_kernel(fd, s, TransferLock::kInUse, MSG_MORE);
  }
  // Before the FIN is on its way: sends meet the kernel's EPIPE, and nobody mistakes the end of the connection for a death.
  const uint32_t before = how == SHUT_WR || how == SHUT_RDWR ? s->send_over_tcp.exchange(1) : 1;
  const int result = real().shutdown(fd, how);
  if (how == SHUT_WR || how == SHUT_RDWR) returned_with_fin(fd, s);
  if (result != 0) {
    if (before == 0) s->send_over_tcp.store_release(0);
    return result;
  }
  end_shutdown(fd, s, now);
  if (now & kShutWrite) tap_end(s, true, TapKind::kEnd);
  if (how != SHUT_WR) s->sticky.fetch_or(kStickyIn);      // reads of an empty ring meet its end of file
  refresh_members(s);
  return result;
}

int mpklink_dup(int fd) noexcept {
  if (fd_table().hidden(fd)) {
    errno = EBADF;
    return -1;
  }
  return shared(fd, real().dup(fd));
}
int mpklink_dup2(int from, int to) noexcept {
  before_overwrite(from, to);
  return shared(from, real().dup2(from, to));
}
int mpklink_dup3(int from, int to, int flags) noexcept {
  before_overwrite(from, to);
  return shared(from, real().dup3(from, to, flags));
}

int mpklink_fcntl(int fd, int command, ...) {
  va_list arguments;
  va_start(arguments, command);
  const long argument = va_arg(arguments, long);
  va_end(arguments);
  return fcntl_any(fd, command, argument);
}
int mpklink_fcntl64(int fd, int command, ...) {
  va_list arguments;
  va_start(arguments, command);
  const long argument = va_arg(arguments, long);
  va_end(arguments);
  return fcntl_any(fd, command, argument);
}

int mpklink_close_range(unsigned first, unsigned last, int flags) noexcept {
  return close_range_any(first, last, flags);
}
void mpklink_closefrom(int first) noexcept {
  // glibc's closefrom cannot fail either; what close_range cannot do is left to the original.
  const unsigned from = first < 0 ? 0 : static_cast<unsigned>(first);
  if (close_range_any(from, ~0u, 0) != 0) real().closefrom(first);
}

// Calls that only make descriptors.
int mpklink_open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = va_arg(arguments, mode_t);
  va_end(arguments);
  return fresh_fd(real().open(path, flags, mode));
}
int mpklink_open64(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = va_arg(arguments, mode_t);
  va_end(arguments);
  return fresh_fd(real().open64(path, flags, mode));
}
int mpklink_openat(int dir, const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = va_arg(arguments, mode_t);
  va_end(arguments);
  return fresh_fd(real().openat(dir, path, flags, mode));
}
int mpklink_openat64(int dir, const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = va_arg(arguments, mode_t);
  va_end(arguments);
  return fresh_fd(real().openat64(dir, path, flags, mode));
}
int mpklink_creat(const char* path, mode_t mode) { return fresh_fd(real().creat(path, mode)); }
int mpklink_creat64(const char* path, mode_t mode) { return fresh_fd(real().creat64(path, mode)); }

int mpklink_pipe(int* fds) noexcept {
  const int result = real().pipe(fds);
  if (result == 0) fresh_fd(fds[0]), fresh_fd(fds[1]);
  return result;
}
int mpklink_pipe2(int* fds, int flags) noexcept {
  const int result = real().pipe2(fds, flags);
  if (result == 0) fresh_fd(fds[0]), fresh_fd(fds[1]);
  return result;
}
int mpklink_socketpair(int domain, int type, int protocol, int* fds) noexcept {
  const int result = real().socketpair(domain, type, protocol, fds);
  if (result == 0) fresh_fd(fds[0]), fresh_fd(fds[1]);
  return result;
}
int mpklink_eventfd(unsigned count, int flags) noexcept { return fresh_fd(real().eventfd(count, flags)); }
int mpklink_timerfd_create(clockid_t clock, int flags) noexcept { return fresh_fd(real().timerfd_create(clock, flags)); }
int mpklink_signalfd(int fd, const sigset_t* mask, int flags) noexcept {
  const int result = real().signalfd(fd, mask, flags);
  return fd == -1 ? fresh_fd(result) : result;
}
int mpklink_inotify_init() noexcept { return fresh_fd(real().inotify_init()); }
int mpklink_inotify_init1(int flags) noexcept { return fresh_fd(real().inotify_init1(flags)); }
int mpklink_memfd_create(const char* name, unsigned flags) noexcept { return fresh_fd(real().memfd_create(name, flags)); }

}  // extern "C"

MPKLINK_EXPORT(socket)
MPKLINK_EXPORT(connect)
MPKLINK_EXPORT_AS(__connect, connect)
MPKLINK_EXPORT(accept)
MPKLINK_EXPORT(accept4)
MPKLINK_EXPORT(listen)
MPKLINK_EXPORT(close)
MPKLINK_EXPORT_AS(__close, close)
MPKLINK_EXPORT(shutdown)
MPKLINK_EXPORT(dup)
MPKLINK_EXPORT(dup2)
MPKLINK_EXPORT_AS(__dup2, dup2)
MPKLINK_EXPORT(dup3)
MPKLINK_EXPORT(fcntl)
MPKLINK_EXPORT_AS(__fcntl, fcntl)
MPKLINK_EXPORT(fcntl64)
MPKLINK_EXPORT(close_range)
MPKLINK_EXPORT(closefrom)
MPKLINK_EXPORT(open)
MPKLINK_EXPORT_AS(__open, open)
MPKLINK_EXPORT(open64)
MPKLINK_EXPORT_AS(__open64, open64)
MPKLINK_EXPORT(openat)
MPKLINK_EXPORT(openat64)
MPKLINK_EXPORT(creat)
MPKLINK_EXPORT(creat64)
MPKLINK_EXPORT(pipe)
MPKLINK_EXPORT_AS(__pipe, pipe)
MPKLINK_EXPORT(pipe2)
MPKLINK_EXPORT(socketpair)
MPKLINK_EXPORT(eventfd)
MPKLINK_EXPORT(timerfd_create)
MPKLINK_EXPORT(signalfd)
MPKLINK_EXPORT(inotify_init)
MPKLINK_EXPORT(inotify_init1)
MPKLINK_EXPORT(memfd_create)
