// SPDX-License-Identifier: MIT
// What programs do to a connected descriptor between two data calls, and what forces a stream back to TCP (--revoke).
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include "stress.h"

namespace stress {
namespace {

void toggle_nonblocking(Worker* w, Conn* c, int fd) {
  if (!c->toggles) return;
  const bool on = w->one_in(2);
  if (w->one_in(2) && allowed(kDo_nonblock_ioctl)) {
    count(w, kDo_nonblock_ioctl);
    const int value = on ? 1 : 0;
    CHECK_EQ(ioctl(fd, FIONBIO, &value), 0);
  } else if (allowed(kDo_nonblock_fcntl)) {
    count(w, kDo_nonblock_fcntl);
    const int flags = fcntl(fd, F_GETFL);
    CHECK(flags >= 0);
    CHECK_EQ(fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK), 0);
  }
}

// The same open file under another number. What the role's own epoll set knows is taken out first: a registration outlives the number.
void replace_fd(Worker* w, Conn* c, Way way, int fresh) {
  Role& r = c->role[way];
  CHECK(fresh >= 0);
  if (c->epoll_owner == way) forget_own_epoll(w, c);
  if (r.fd != c->role[1 - way].fd) CHECK_EQ(close(r.fd), 0);
  r.fd = fresh;
}

void change_number(Worker* w, Conn* c, Way way) {
  Role& r = c->role[way];
  // In an event loop the receiving role's number is the registered one.
  if (c->cls == Class::kLoop && way == kReceive) return;
  if (w->one_in(2) && allowed(kDo_dup2)) {
    count(w, kDo_dup2);
    const int place = fcntl(r.fd, F_DUPFD_CLOEXEC, 3);
    CHECK(place >= 0);
    CHECK_EQ(dup2(r.fd, place), place);  // over itself, so to speak
    replace_fd(w, c, way, place);
  } else if (allowed(kDo_dup_close)) {
    count(w, kDo_dup_close);
    replace_fd(w, c, way, dup(r.fd));
  }
}

void change_timeout(Worker* w, Conn* c, Way way) {
  if (!c->timeouts || !allowed(kDo_timeout)) return;
  count(w, kDo_timeout);
  const struct timeval tv = {0, static_cast<suseconds_t>(1000 + w->below(20000))};
  CHECK_EQ(setsockopt(c->role[way].fd, SOL_SOCKET, way == kSend ? SO_SNDTIMEO : SO_RCVTIMEO, &tv, sizeof tv), 0);
}

void look_at_error(Worker* w, Conn* c, int fd) {
  if (!allowed(kDo_sock_error)) return;
  count(w, kDo_sock_error);
  int error = 0;
  socklen_t length = sizeof error;
  CHECK_EQ(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length), 0);
  if (error == 0) return;
  if (!errors_allowed(c) || (error != ECONNRESET && error != EPIPE)) broken(w, c, "SO_ERROR", error, 0);
  c->saw_error = true;
}

// ---- back to TCP -----------------------------------------------------------------------------------------------------------

void low_water(Worker* w, int fd) {
  count(w, kDo_lowat);
  for (const int bytes : {2, 1}) CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof bytes), 0);
}

// Over a Unix socket to ourselves; the received number takes the old one's place.
void pass_to_myself(Worker* w, Conn* c, Way way) {
  if (c->cls == Class::kLoop && way == kReceive) return;
  count(w, kDo_pass);
  int ends[2];
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  char byte = 'x';
  struct iovec part = {&byte, 1};
  alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int))] = {};
  struct msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = space;
  message.msg_controllen = sizeof space;
  struct cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &c->role[way].fd, sizeof(int));
  CHECK_EQ(sendmsg(ends[0], &message, 0), 1);
  ssize_t n;
  do n = recvmsg(ends[1], &message, MSG_CMSG_CLOEXEC);
  while (n < 0 && errno == EINTR);
  CHECK_EQ(n, 1);
  int fd = -1;
  memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
  close(ends[0]);
  close(ends[1]);
  replace_fd(w, c, way, fd);
}

// stdio on a duplicate: what it writes goes past every hook.
void write_by_stdio(Worker* w, Conn* c) {
  Role& r = c->role[kSend];
  const uint64_t left = c->plan.send_limit[c->side_number] - r.bytes;
  // A short write loses stdio's count: only where a blocking send is never short.
  if (c->cls != Class::kDedicated || c->toggles || w->signals || !c->plan.exact || left < 2) return;
  count(w, kDo_fdopen);
  const size_t n = 1 + w->below(left - 1 < 3000 ? left - 1 : 3000);
  FILE* file = fdopen(dup(r.fd), "w");
  CHECK(file != nullptr);
  fill_bytes(w->buffer, n, c->plan.key[c->side_number], r.bytes);
  CHECK_EQ(fwrite(w->buffer, 1, n, file), n);
  CHECK_EQ(fflush(file), 0);
  CHECK_EQ(fclose(file), 0);
  r.bytes += n;
}

void revoke(Worker* w, Conn* c, Way way) {
  switch (w->below(3)) {
    case 0:
      if (allowed(kDo_lowat) && way == kReceive) low_water(w, c->role[way].fd);
      break;
    case 1:
      if (allowed(kDo_pass)) pass_to_myself(w, c, way);
      break;
    default:
      if (allowed(kDo_fdopen) && way == kSend) write_by_stdio(w, c);
  }
}

}  // namespace

void odd_thing(Worker* w, Conn* c, Way way) {
  Role& r = c->role[way];
  if (r.done) return;
  const int on = w->one_in(8) ? 0 : 1;
  switch (w->below(12)) {
    case 0: toggle_nonblocking(w, c, r.fd); break;
    case 1: change_number(w, c, way); break;
    case 2: change_timeout(w, c, way); break;
    case 3: look_at_error(w, c, r.fd); break;
    case 4:
      if (!allowed(kDo_nodelay)) break;
      count(w, kDo_nodelay);
      CHECK_EQ(setsockopt(r.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), 0);
      break;
    case 5:
      if (g_config.revoke) revoke(w, c, way);
      break;
    case 6:
      if (c->epoll_owner == way && c->cls != Class::kLoop && allowed(kDo_epoll_del)) forget_own_epoll(w, c);
      break;
    case 7: case 8: case 9: sched_yield(); break;
    default:
      if (!allowed(kDo_pause) || !w->one_in(4)) break;
      count(w, kDo_pause);
      usleep(static_cast<useconds_t>(w->below(300)));
  }
}

}  // namespace stress
