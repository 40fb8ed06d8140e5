// SPDX-License-Identifier: MIT
// Epoll sets in epoll sets, in poll and in select: told when there is something, silent when there is not. `NAME list` prints the cases.
#include <sys/eventfd.h>
#include <sys/select.h>

#include "epoll_case.h"

using namespace testlib;

namespace {

bool select_now(int fd) {
  fd_set in;
  FD_ZERO(&in);
  FD_SET(fd, &in);
  struct timeval none = {};
  const int n = select(fd + 1, &in, nullptr, nullptr, &none);
  CHECK(n >= 0);
  CHECK_EQ(n, FD_ISSET(fd, &in) ? 1 : 0);
  return n == 1;
}

void poll_server(int fd, const Sync& sync) {
  // poll and select on a set are exact: at once, and again after each step.
  Streams s(fd, sync);
  const Epoll inner;
  CHECK_EQ(poll_now(inner.fd()), 0);
  inner.add(fd, EPOLLIN);
  CHECK_EQ(poll_now(inner.fd()), 0);
  CHECK(!select_now(inner.fd()));
  for (int round = 0; round < 20; round++) {
    s.send(10);
    CHECK_EQ(poll_now(inner.fd()), POLLIN);
    CHECK_EQ(poll_now(inner.fd()), POLLIN);
    CHECK(select_now(inner.fd()));
    if (round % 2) CHECK_EQ(inner.now(fd), EPOLLIN);
    CHECK_EQ(poll_now(inner.fd()), POLLIN);
    s.take(10);
    CHECK_EQ(poll_now(inner.fd()), 0);
    CHECK(!select_now(inner.fd()));
    CHECK_EQ(inner.now(fd), 0);
    CHECK_EQ(poll_now(inner.fd()), 0);
  }
  struct pollfd p = {inner.fd(), POLLIN | POLLRDNORM | POLLOUT, 0};
  CHECK_EQ(poll(&p, 1, 50), 0);
  s.send_later(10);
  CHECK_EQ(poll(&p, 1, 5000), 1);
  CHECK_EQ(p.revents, POLLIN | POLLRDNORM);
  s.acked();
  s.take(10);
  CHECK_EQ(poll(&p, 1, 30), 0);
  s.half_close();
  CHECK_EQ(poll(&p, 1, 5000), 1);
  CHECK_EQ(inner.wait(fd), EPOLLIN);
  expect_eof(fd);
  CHECK_EQ(poll_now(inner.fd()), POLLIN);
  inner.del(fd);
  CHECK_EQ(poll_now(inner.fd()), 0);
}

void poll_out_server(int fd, const Sync& sync) {
  // A set that waits for room in a full stream.
  Streams s(fd, sync);
  const Epoll inner;
  inner.add(fd, EPOLLOUT);
  CHECK_EQ(poll_now(inner.fd()), POLLIN);
  const long full = s.fill();
  CHECK_EQ(poll_now(inner.fd()), 0);
  s.drain_later(full);
  struct pollfd p = {inner.fd(), POLLIN, 0};
  CHECK_EQ(poll(&p, 1, 5000), 1);
  s.acked();
  CHECK_EQ(inner.now(fd), EPOLLOUT);
}

void poll_edge_server(int fd, const Sync& sync) {
  // An edge-triggered member makes the set ready until it has been told.
  Streams s(fd, sync);
  const Epoll inner;
  inner.add(fd, EPOLLIN | EPOLLET);
  CHECK_EQ(poll_now(inner.fd()), 0);
  for (int round = 0; round < 3; round++) {
    s.send(10);
    CHECK_EQ(poll_now(inner.fd()), POLLIN);
    CHECK_EQ(poll_now(inner.fd()), POLLIN);
    CHECK_EQ(inner.now(fd), EPOLLIN);
    CHECK_EQ(poll_now(inner.fd()), 0);
    s.send(10);
    CHECK_EQ(poll_now(inner.fd()), POLLIN);
    s.take(20);
    CHECK_EQ(poll_now(inner.fd()), 0);
    CHECK_EQ(inner.now(fd), 0);
  }
  inner.mod(fd, EPOLLIN | EPOLLONESHOT);
  s.send(10);
  CHECK_EQ(poll_now(inner.fd()), POLLIN);
  CHECK_EQ(inner.now(fd), EPOLLIN);
  CHECK_EQ(poll_now(inner.fd()), 0);
  inner.mod(fd, EPOLLIN | EPOLLONESHOT);
  CHECK_EQ(poll_now(inner.fd()), POLLIN);
  s.take(10);
  CHECK_EQ(poll_now(inner.fd()), 0);
}

void poll_beside_server(int fd, const Sync& sync) {
  // One poll on a stream, on a set that has another stream, and on an eventfd.
  Streams s(fd, sync);
  const int other = s.more();
  const Epoll inner;
  inner.add(s.fd(other), EPOLLIN);
  const int event = eventfd(0, 0);
  struct pollfd p[] = {{fd, POLLIN, 0}, {inner.fd(), POLLIN, 0}, {event, POLLIN, 0}};
  CHECK_EQ(poll(p, 3, 30), 0);
  s.send_later(1, other);
  CHECK_EQ(poll(p, 3, 5000), 1);
  CHECK_EQ(p[1].revents, POLLIN);
  s.acked();
  s.send(1);
  CHECK_EQ(poll(p, 3, 5000), 2);
  CHECK_EQ(p[0].revents, POLLIN);
  s.take(1, other);
  CHECK_EQ(poll(p, 3, 5000), 1);
  CHECK_EQ(p[0].revents, POLLIN);
  CHECK_EQ(p[1].revents, 0);
  s.take(1);
  const uint64_t one = 1;
  CHECK_EQ(write(event, &one, sizeof one), sizeof one);
  CHECK_EQ(poll(p, 3, 5000), 1);
  CHECK_EQ(p[2].revents, POLLIN);
  close(event);
}

void level_server(int fd, const Sync& sync) {
  Streams s(fd, sync);
  const Epoll inner, outer;
  inner.add(fd, EPOLLIN);
  outer.add(inner.fd(), EPOLLIN);
  outer.quiet();
  for (int round = 0; round < 20; round++) {
    s.send(10);
    CHECK_EQ(outer.now(inner.fd()), EPOLLIN);
    CHECK_EQ(outer.now(inner.fd()), EPOLLIN);
    if (round % 2) CHECK_EQ(inner.now(fd), EPOLLIN);
    CHECK_EQ(outer.now(inner.fd()), EPOLLIN);
    s.take(10);
    CHECK_EQ(outer.now(inner.fd()), 0);
    CHECK_EQ(inner.now(fd), 0);
    CHECK_EQ(outer.now(inner.fd()), 0);
  }
  outer.quiet();
  s.send_later(10);
  CHECK_EQ(outer.wait(inner.fd()), EPOLLIN);
  s.acked();
  s.take(10);
  outer.quiet();
  outer.mod(inner.fd(), EPOLLIN | EPOLLRDNORM | EPOLLOUT);
  outer.quiet();
  s.send(10);
  CHECK_EQ(outer.now(inner.fd()), EPOLLIN | EPOLLRDNORM);
  outer.del(inner.fd());
  outer.quiet();
  outer.add(inner.fd(), EPOLLIN);  // ready when it is added
  CHECK_EQ(outer.now(inner.fd()), EPOLLIN);
  CHECK_ERRNO(outer.control(EPOLL_CTL_ADD, inner.fd(), EPOLLIN, 0), EEXIST);
  CHECK_ERRNO(inner.control(EPOLL_CTL_ADD, outer.fd(), EPOLLIN, 0), ELOOP);
  s.take(10);
  outer.quiet();
}

void asleep_server(int fd, const Sync& sync) {
  // Asleep in the outer set: woken when there is something, and only then, although the inner set is never waited for.
  Streams s(fd, sync);
  const Epoll inner, outer;
  inner.add(fd, EPOLLIN);
  outer.add(inner.fd(), EPOLLIN);
  for (int round = 0; round < 8; round++) {
    s.send_later(10);
    CHECK_EQ(outer.wait(inner.fd()), EPOLLIN);
    s.acked();
    s.take(10);
    CHECK_EQ(outer.wait(inner.fd(), 20), 0);
  }
  for (int round = 0; round < 4; round++) {
    s.send_later(10);
    CHECK_EQ(outer.wait(inner.fd()), EPOLLIN);
    CHECK_EQ(inner.wait(fd), EPOLLIN);
    s.acked();
    s.take(10);
    CHECK_EQ(outer.wait(inner.fd(), 20), 0);
  }
}

void edge_server(int fd, const Sync& sync) {
  // The outer registration is edge-triggered: told again when something new arrives in the inner set.
  Streams s(fd, sync);
  const Epoll inner, outer;
  inner.add(fd, EPOLLIN);
  outer.add(inner.fd(), EPOLLIN | EPOLLET);
  outer.quiet();
  for (int round = 0; round < 5; round++) {
    s.send_later(10);
    CHECK_EQ(outer.wait(inner.fd()), EPOLLIN);
    s.acked();
    outer.quiet();
    CHECK_EQ(inner.now(fd), EPOLLIN);
    s.take(10);
    CHECK_EQ(inner.now(fd), 0);
    outer.quiet();
  }
  outer.mod(inner.fd(), EPOLLIN | EPOLLONESHOT);
  s.send(10);
  CHECK_EQ(outer.now(inner.fd()), EPOLLIN);
  outer.quiet();
  outer.mod(inner.fd(), EPOLLIN | EPOLLONESHOT);
  CHECK_EQ(outer.now(inner.fd()), EPOLLIN);
  outer.quiet();
  s.take(10);
  outer.mod(inner.fd(), EPOLLIN | EPOLLONESHOT);
  outer.quiet();
}

void deep_server(int fd, const Sync& sync) {
  // Three sets, one in the other; poll on the outermost.
  Streams s(fd, sync);
  const Epoll inner, middle, outer;
  outer.add(middle.fd(), EPOLLIN);
  middle.add(inner.fd(), EPOLLIN);
  inner.add(fd, EPOLLIN);
  outer.quiet();
  for (int round = 0; round < 8; round++) {
    CHECK_EQ(poll_now(outer.fd()), 0);
    s.send_later(10);
    CHECK_EQ(outer.wait(middle.fd()), EPOLLIN);
    s.acked();
    CHECK_EQ(poll_now(outer.fd()), POLLIN);
    CHECK_EQ(middle.now(inner.fd()), EPOLLIN);
    if (round % 2) CHECK_EQ(inner.now(fd), EPOLLIN);
    CHECK_EQ(outer.now(middle.fd()), EPOLLIN);
    s.take(10);
    CHECK_EQ(outer.now(middle.fd()), 0);
    CHECK_EQ(middle.now(inner.fd()), 0);
    CHECK_EQ(inner.now(fd), 0);
    CHECK_EQ(poll_now(outer.fd()), 0);
    outer.quiet();
  }
  struct pollfd p = {outer.fd(), POLLIN, 0};
  s.send_later(10);
  CHECK_EQ(poll(&p, 1, 5000), 1);
  s.acked();
  s.take(10);
  CHECK_EQ(poll(&p, 1, 30), 0);
}

void mixed_server(int fd, const Sync& sync) {
  // Both sets have streams and descriptors of the kernel.
  Streams s(fd, sync);
  const int other = s.more();
  const Epoll inner, outer;
  const int near = eventfd(0, EFD_NONBLOCK), far = eventfd(0, EFD_NONBLOCK);
  CHECK(near >= 0 && far >= 0);
  outer.add(s.fd(other), EPOLLIN);
  outer.add(near, EPOLLIN);
  outer.add(inner.fd(), EPOLLIN);
  inner.add(fd, EPOLLIN);
  inner.add(far, EPOLLIN);
  outer.quiet();
  uint64_t count = 1;
  for (int round = 0; round < 5; round++) {
    s.send(10, other);
    CHECK_EQ(outer.now(s.fd(other)), EPOLLIN);
    s.take(10, other);
    CHECK_EQ(outer.now(s.fd(other)), 0);
    CHECK_EQ(write(near, &count, sizeof count), sizeof count);
    CHECK_EQ(outer.now(near), EPOLLIN);
    CHECK_EQ(read(near, &count, sizeof count), sizeof count);
    CHECK_EQ(outer.now(near), 0);
    CHECK_EQ(write(far, &count, sizeof count), sizeof count);
    CHECK_EQ(outer.now(inner.fd()), EPOLLIN);
    CHECK_EQ(poll_now(inner.fd()), POLLIN);
    CHECK_EQ(inner.now(far), EPOLLIN);
    CHECK_EQ(read(far, &count, sizeof count), sizeof count);
    CHECK_EQ(outer.now(inner.fd()), 0);
    CHECK_EQ(poll_now(inner.fd()), 0);
    s.send(10);
    CHECK_EQ(write(far, &count, sizeof count), sizeof count);
    CHECK_EQ(outer.now(inner.fd()), EPOLLIN);
    CHECK_EQ(read(far, &count, sizeof count), sizeof count);
    CHECK_EQ(outer.now(inner.fd()), EPOLLIN);
    s.take(10);
    CHECK_EQ(outer.now(inner.fd()), 0);
  }
  // An edge-triggered descriptor of the kernel is told by the inner set although others have looked at it from outside.
  inner.mod(far, EPOLLIN | EPOLLET);
  CHECK_EQ(poll_now(inner.fd()), 0);
  CHECK_EQ(write(far, &count, sizeof count), sizeof count);
  CHECK_EQ(poll_now(inner.fd()), POLLIN);
  CHECK_EQ(outer.now(inner.fd()), EPOLLIN);
  s.send(10);
  s.take(10);
  CHECK_EQ(poll_now(inner.fd()), POLLIN);
  CHECK_EQ(outer.now(inner.fd()), EPOLLIN);
  CHECK_EQ(inner.now(far), EPOLLIN);
  CHECK_EQ(poll_now(inner.fd()), 0);
  outer.quiet();
  close(near);
  close(far);
}

void closed_server(int fd, const Sync& sync) {
  // The inner set is closed, or empties, or fills, while it is in the outer one.
  Streams s(fd, sync);
  const Epoll outer;
  for (int round = 0; round < 3; round++) {
    Epoll inner;
    outer.add(inner.fd(), EPOLLIN);
    CHECK_EQ(outer.now(inner.fd()), 0);
    inner.add(fd, EPOLLIN);
    outer.quiet();
    s.send(10);
    CHECK_EQ(outer.now(inner.fd()), EPOLLIN);
    inner.del(fd);
    CHECK_EQ(outer.now(inner.fd()), 0);
    inner.add(fd, EPOLLIN);
    CHECK_EQ(outer.now(inner.fd()), EPOLLIN);
    inner.shut();
    outer.quiet();
    s.take(10);
  }
}

const Case kCases[] = {
    {"poll", poll_server, told_client},
    {"poll_out", poll_out_server, told_client},
    {"poll_edge", poll_edge_server, told_client},
    {"poll_beside", poll_beside_server, told_client},
    {"level", level_server, told_client},
    {"asleep", asleep_server, told_client},
    {"edge", edge_server, told_client},
    {"deep", deep_server, told_client},
    {"mixed", mixed_server, told_client},
    {"closed", closed_server, told_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
