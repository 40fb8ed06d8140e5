// SPDX-License-Identifier: MIT
// Waiting for one connection or several, in all the ways there are.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>

#include "stress.h"

namespace stress {
namespace {

constexpr unsigned kManyMax = 8;

struct timespec to_timespec(int timeout_ms) {
  return {timeout_ms / 1000, static_cast<long>(timeout_ms % 1000) * 1000000};
}

// What the call said, checked: an error must be EINTR, and without a time limit there is no end of it.
int checked(Worker* w, const Conn* c, int n, int timeout_ms, const char* call) {
  if (n == 0 && timeout_ms < 0) broken(w, c, call, 0, 1);
  if (n >= 0) return n;
  if (errno != EINTR || !w->signals) broken(w, c, call, errno, EINTR);
  return 0;
}

bool by_poll(Worker* w, Conn* c, Way way, int timeout_ms, bool with_mask) {
  const short wanted = way == kSend ? POLLOUT : static_cast<short>(w->one_in(2) ? POLLIN : POLLIN | POLLRDHUP);
  struct pollfd p = {c->role[way].fd, wanted, 0};
  const struct timespec time = to_timespec(timeout_ms);
  sigset_t none;
  sigemptyset(&none);
  const int n = with_mask ? ppoll(&p, 1, timeout_ms < 0 ? nullptr : &time, w->signals ? &none : nullptr) : poll(&p, 1, timeout_ms);
  if (checked(w, c, n, timeout_ms, "poll") == 0) return false;
  if (n != 1 || (p.revents & ~(wanted | POLLERR | POLLHUP)) != 0 || p.revents == 0) broken(w, c, "poll's events", p.revents, wanted);
  return true;
}

bool by_select(Worker* w, Conn* c, Way way, int timeout_ms, bool with_mask) {
  const int fd = c->role[way].fd;
  CHECK(fd < FD_SETSIZE);
  fd_set set;
  FD_ZERO(&set);
  FD_SET(fd, &set);
  fd_set* in = way == kReceive ? &set : nullptr;
  fd_set* out = way == kSend ? &set : nullptr;
  const struct timespec time = to_timespec(timeout_ms);
  struct timeval tv = {time.tv_sec, time.tv_nsec / 1000};
  const int n = with_mask ? pselect(fd + 1, in, out, nullptr, timeout_ms < 0 ? nullptr : &time, nullptr)
                          : select(fd + 1, in, out, nullptr, timeout_ms < 0 ? nullptr : &tv);
  if (checked(w, c, n, timeout_ms, "select") == 0) return false;
  if (n != 1 || !FD_ISSET(fd, &set)) broken(w, c, "select's set", n, 1);
  return true;
}

void control(Worker* w, const Conn* c, int epoll, int op, int fd, uint32_t events, uint64_t data) {
  struct epoll_event event = {};
  event.events = events;
  event.data.u64 = data;
  count(w, op == EPOLL_CTL_ADD ? kDo_epoll_add : op == EPOLL_CTL_MOD ? kDo_epoll_mod : kDo_epoll_del);
  if (epoll_ctl(epoll, op, fd, &event) != 0) broken(w, c, "epoll_ctl", errno, op);
}

// The connection's own epoll set, registered with `events`. An edge that may have been taken already is asked for again by MOD.
void prepare_own(Worker* w, Conn* c, Way way, uint32_t events) {
  Role& r = c->role[way];
  if (c->epoll < 0) c->epoll = epoll_create1(EPOLL_CLOEXEC);
  CHECK(c->epoll >= 0);
  if (r.watched && allowed(kDo_epoll_del) && w->one_in(10)) forget_own_epoll(w, c);
  if (!r.watched) {
    control(w, c, c->epoll, EPOLL_CTL_ADD, r.fd, events, c->generation);
    r.watched = true;
  } else if (events != c->own_events || (events & EPOLLONESHOT) || !r.drained || w->one_in(10)) {
    control(w, c, c->epoll, EPOLL_CTL_MOD, r.fd, events, c->generation);
  }
  c->own_events = events;
}

bool by_epoll(Worker* w, Conn* c, Way way, int timeout_ms, Operation op) {
  uint32_t events = way == kSend ? EPOLLOUT : static_cast<uint32_t>(w->one_in(2) ? EPOLLIN : EPOLLIN | EPOLLRDHUP);
  if (op == kDo_epoll_edge) events |= EPOLLET;
  if (op == kDo_epoll_oneshot) events |= EPOLLONESHOT;
  prepare_own(w, c, way, events);
  if (op == kDo_epoll_polled) {
    struct pollfd p = {c->epoll, POLLIN, 0};
    if (checked(w, c, poll(&p, 1, timeout_ms), timeout_ms, "poll of an epoll set") == 0) return false;
    timeout_ms = 0;
  }
  struct epoll_event got[2];
  memset(got, 0xEE, sizeof got);  // shows an event that was counted but not written
  const int n = checked(w, c, epoll_wait(c->epoll, got, w->one_in(2) ? 1 : 2, timeout_ms), timeout_ms, "epoll_wait");
  if (n == 0) return false;
  const uint32_t possible = (events & ~(EPOLLET | EPOLLONESHOT)) | EPOLLERR | EPOLLHUP;
  if (n != 1) broken(w, c, "epoll_wait's number of events", n, 1);
  if (got[0].data.u64 != c->generation) {
    fprintf(stderr, "events %x of a connection's own epoll set\n", got[0].events);
    broken(w, c, "epoll_wait's data", static_cast<long long>(got[0].data.u64), c->generation);
  }
  if (got[0].events == 0 || (got[0].events & ~possible) != 0) broken(w, c, "epoll_wait's events", got[0].events, possible);
  c->role[way].drained = false;
  return true;
}

Operation pick_wait(Worker* w, const Conn* c, Way way) {
  static const Operation kOps[] = {kDo_poll, kDo_ppoll, kDo_select, kDo_pselect, kDo_epoll_level, kDo_epoll_edge, kDo_epoll_oneshot,
                                   kDo_epoll_polled};
  for (int i = 0; i < 8; i++) {
    const Operation op = kOps[w->below(sizeof kOps / sizeof kOps[0])];
    if (!allowed(op) || (op >= kDo_epoll_level && (c->epoll_owner != way || c->cls == Class::kLoop))) continue;
    return op;
  }
  return kDo_poll;
}

}  // namespace

bool wait_ready(Worker* w, Conn* c, Way way, int timeout_ms) {
  const Operation op = pick_wait(w, c, way);
  count(w, op);
  bool ready = false;
  switch (op) {
    case kDo_poll: case kDo_ppoll: ready = by_poll(w, c, way, timeout_ms, op == kDo_ppoll); break;
    case kDo_select: case kDo_pselect: ready = by_select(w, c, way, timeout_ms, op == kDo_pselect); break;
    default: ready = by_epoll(w, c, way, timeout_ms, op); break;
  }
  w->promised[way] = ready;
  return ready;
}

void wait_many(Worker* w, Conn* const* conns, const Way* ways, bool* ready, unsigned n, int timeout_ms) {
  CHECK(n <= kManyMax);
  struct pollfd polls[kManyMax];
  fd_set in, out;
  FD_ZERO(&in);
  FD_ZERO(&out);
  int top = 0;
  for (unsigned i = 0; i < n; i++) {
    const int fd = conns[i]->role[ways[i]].fd;
    polls[i] = {fd, static_cast<short>(ways[i] == kSend ? POLLOUT : POLLIN), 0};
    FD_SET(fd, ways[i] == kSend ? &out : &in);
    if (fd > top) top = fd;
  }
  const bool by_set = w->one_in(2) && allowed(kDo_select_many);
  count(w, by_set ? kDo_select_many : kDo_poll_many);
  struct timeval tv = {timeout_ms / 1000, timeout_ms % 1000 * 1000};
  const int got = checked(w, conns[0], by_set ? select(top + 1, &in, &out, nullptr, &tv) : poll(polls, n, timeout_ms), timeout_ms, "poll of many");
  for (unsigned i = 0; i < n; i++) {
    const bool in_set = FD_ISSET(polls[i].fd, ways[i] == kSend ? &out : &in);
    ready[i] = got > 0 && (by_set ? in_set : polls[i].revents != 0);
  }
}

void forget_own_epoll(Worker* w, Conn* c) {
  Role& r = c->role[c->epoll_owner];
  if (!r.watched || c->epoll < 0) return;
  control(w, c, c->epoll, EPOLL_CTL_DEL, r.fd, 0, 0);
  r.watched = false;
}

void loop_register(Worker* w, Conn* c, bool first, bool rearm) {
  uint32_t interest = c->flavour;
  if (!c->role[kReceive].done) interest |= EPOLLIN | EPOLLRDHUP;
  if (!c->role[kSend].done) interest |= EPOLLOUT;
  const uint64_t data = static_cast<uint64_t>(c->generation) << 32 | c->slot;
  const int fd = c->role[kReceive].fd;
  if (!first && allowed(kDo_epoll_del) && w->one_in(20)) {
    control(w, c, c->home, EPOLL_CTL_DEL, fd, 0, 0);
    first = true;
  }
  if (first) {
    c->interest = interest;
    control(w, c, c->home, EPOLL_CTL_ADD, fd, interest, data);
  } else if (rearm || interest != c->interest || w->one_in(50)) {
    c->interest = interest;
    control(w, c, c->home, EPOLL_CTL_MOD, fd, interest, data);
  }
}

}  // namespace stress
