// SPDX-License-Identifier: MIT
// An epoll set over fork. `NAME list` prints the cases.
#include <sys/wait.h>

#include "epoll_case.h"

using namespace testlib;

namespace {

void end_child(pid_t child) {
  int status = 0;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
}

void fork_child_server(int fd, const Sync& sync) {
  // The child waits in the set it inherited and reads the stream; it leaves without closing anything; the parent goes on.
  Streams s(fd, sync);
  const Epoll e;
  e.add(fd, EPOLLIN);
  s.send(10);
  CHECK_EQ(e.now(fd), EPOLLIN);
  s.take(10);
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    CHECK_EQ(e.wait(fd), EPOLLIN);
    CHECK_EQ(e.now(fd), EPOLLIN);
    s.take(100);
    CHECK_EQ(e.now(fd), 0);
    CHECK_EQ(write(ends[1], "x", 1), 1);
    _exit(0);
  }
  s.send_later(100);
  char byte;
  CHECK_EQ(read(ends[0], &byte, 1), 1);
  s.acked();
  end_child(child);
  char skipped;
  CHECK_ERRNO(recv(fd, &skipped, 1, MSG_DONTWAIT), EAGAIN);
  CHECK_EQ(e.now(fd), 0);
  s.send_later(7);
  CHECK_EQ(e.wait(fd), EPOLLIN);
  s.acked();
  char rest[7];
  recv_all(fd, rest, sizeof rest);
  pattern_check(rest, sizeof rest, seed_up(0), 110);
  e.quiet();
  close(ends[0]);
  close(ends[1]);
}

void fork_parent_server(int fd, const Sync& sync) {
  // A child is there, with the set and the stream, and does nothing: the parent's set goes on, level and edge.
  Streams s(fd, sync);
  const Epoll e;
  e.add(fd, EPOLLIN);
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    char byte;
    close(ends[1]);
    CHECK_EQ(read(ends[0], &byte, 1), 0);
    _exit(0);
  }
  close(ends[0]);
  for (int round = 0; round < 5; round++) {
    s.send_later(10);
    CHECK_EQ(e.wait(fd), EPOLLIN);
    s.acked();
    s.take(10);
    CHECK_EQ(e.now(fd), 0);
  }
  e.mod(fd, EPOLLIN | EPOLLET);
  s.send_later(10);
  CHECK_EQ(e.wait(fd), EPOLLIN);
  s.acked();
  e.quiet();
  s.take(10);
  close(ends[1]);
  end_child(child);
  s.send_later(10);
  CHECK_EQ(e.wait(fd), EPOLLIN);
  s.acked();
  s.take(10);
}

void fork_closes_server(int fd, const Sync& sync) {
  // The child closes its stream and its set: the parent's registration stays.
  Streams s(fd, sync);
  Epoll e;
  e.add(fd, EPOLLIN);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    close(fd);
    e.shut();
    _exit(0);
  }
  end_child(child);
  s.send_later(10);
  CHECK_EQ(e.wait(fd), EPOLLIN);
  s.acked();
  s.take(10);
  e.quiet();
}

// A child that waits in the set, whose events it is told as the parent is, until `parent` is at its end. It reads nothing.
[[noreturn]] void wait_for_nothing(const Epoll& e, int parent, int timeout_ms) {
  struct epoll_event got[4];
  struct pollfd end = {parent, POLLIN, 0};
  while (poll(&end, 1, 0) == 0) CHECK(epoll_wait(e.fd(), got, 4, timeout_ms) >= 0);
  _exit(0);
}

void polls(int fd, const Sync& sync, int timeout_ms, bool new_stream) {
  Streams s(fd, sync);
  const Epoll e;
  e.add(fd, EPOLLIN);
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    close(ends[1]);
    wait_for_nothing(e, ends[0], timeout_ms);
  }
  close(ends[0]);
  const int i = new_stream ? s.more() : 0;
  if (new_stream) e.add(s.fd(i), EPOLLIN);
  for (int round = 0; round < 20; round++) {
    s.send_later(10, i);
    CHECK_EQ(e.wait(s.fd(i)), EPOLLIN);
    s.acked();
    s.take(10, i);
  }
  close(ends[1]);
  end_child(child);
}

// The child looks into the set all the time and reads nothing: the parent, asleep in the same set, is told all the same.
void fork_polls_server(int fd, const Sync& sync) { polls(fd, sync, 1, false); }
void fork_busy_server(int fd, const Sync& sync) { polls(fd, sync, 0, false); }
// ... and of a stream that the parent has got since, and the child has not.
void fork_polls_new_server(int fd, const Sync& sync) { polls(fd, sync, 1, true); }
void fork_busy_new_server(int fd, const Sync& sync) { polls(fd, sync, 0, true); }

// The parent has changed its registration since the fork when the child begins to wait: there is one registration, as changed. (What was
// registered at the fork is what the child may be told until both the parent and the peer have come by.)
void fork_changed_server(int fd, const Sync& sync) {
  Streams s(fd, sync);
  const Epoll e;
  e.add(fd, EPOLLIN | EPOLLOUT);
  CHECK_EQ(e.now(fd), EPOLLOUT);
  int go[2];
  CHECK_EQ(pipe(go), 0);
  const pid_t child = fork();
  CHECK(child >= 0);
  char byte;
  struct epoll_event got[4];
  if (child == 0) {
    CHECK_EQ(read(go[0], &byte, 1), 1);
    while (poll_now(go[0]) == 0) CHECK(epoll_wait(e.fd(), got, 4, 1) >= 0);
    for (int round = 0; round < 20; round++) CHECK_EQ(epoll_wait(e.fd(), got, 4, 5), 0);
    _exit(0);
  }
  e.mod(fd, EPOLLIN);
  s.send(10);
  CHECK_EQ(e.now(fd), EPOLLIN);
  s.take(10);
  CHECK_EQ(e.now(fd), 0);
  CHECK_EQ(write(go[1], "x", 1), 1);
  for (int round = 0; round < 5; round++) {
    s.send_later(10);
    CHECK_EQ(e.wait(fd), EPOLLIN);
    s.acked();
    s.take(10);
    s.give(10);
    s.drain(10);
  }
  CHECK_EQ(write(go[1], "x", 1), 1);
  for (int round = 0; round < 3; round++) e.quiet();
  CHECK_EQ(e.control(EPOLL_CTL_ADD, fd, EPOLLIN, 1), -1);
  CHECK_EQ(errno, EEXIST);
  end_child(child);
  s.send_later(10);
  CHECK_EQ(e.wait(fd), EPOLLIN);
  s.acked();
  s.take(10);
  e.del(fd);
  s.send(10);
  e.quiet();
  s.take(10);
  close(go[0]);
  close(go[1]);
}

// Two children wait in the set of a parent that does not: each hears of the stream that it alone reads.
void fork_siblings_server(int fd, const Sync& sync) {
  Streams s(fd, sync);
  const Epoll e;
  e.add(fd, EPOLLIN);
  s.send(10);
  CHECK_EQ(e.now(fd), EPOLLIN);
  s.take(10);
  int ends[2], done[2];
  CHECK_EQ(pipe(ends), 0);
  CHECK_EQ(pipe(done), 0);
  const pid_t idle = fork();
  CHECK(idle >= 0);
  if (idle == 0) {
    close(ends[1]);
    wait_for_nothing(e, ends[0], 1);
  }
  const pid_t reader = fork();
  CHECK(reader >= 0);
  if (reader == 0) {
    for (int round = 0; round < 20; round++) {
      CHECK_EQ(e.wait(fd), EPOLLIN);
      s.take(10);
      CHECK_EQ(write(done[1], "x", 1), 1);
    }
    _exit(0);
  }
  close(ends[0]);
  for (int round = 0; round < 20; round++) {
    char byte;
    s.send_later(10);
    s.acked();
    CHECK_EQ(read(done[0], &byte, 1), 1);
  }
  end_child(reader);
  close(ends[1]);
  end_child(idle);
  close(done[0]);
  close(done[1]);
}

// The peer's end of file, while a child looks all the time.
void fork_hup_server(int fd, const Sync& sync) {
  Streams s(fd, sync);
  const Epoll e;
  e.add(fd, EPOLLIN | EPOLLRDHUP);
  s.send(10);
  CHECK_EQ(e.now(fd), EPOLLIN);
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    close(ends[1]);
    wait_for_nothing(e, ends[0], 0);
  }
  close(ends[0]);
  s.take(10);
  s.half_close();
  CHECK_EQ(e.wait(fd), EPOLLIN | EPOLLRDHUP);
  char byte;
  CHECK_EQ(recv(fd, &byte, 1, 0), 0);
  CHECK_EQ(e.wait(fd), EPOLLIN | EPOLLRDHUP);
  close(ends[1]);
  end_child(child);
}

const Case kCases[] = {
    {"child", fork_child_server, told_client},
    {"parent", fork_parent_server, told_client},
    {"closes", fork_closes_server, told_client},
    {"polls", fork_polls_server, told_client},
    {"busy", fork_busy_server, told_client},
    {"polls_new", fork_polls_new_server, told_client},
    {"busy_new", fork_busy_new_server, told_client},
    {"changed", fork_changed_server, told_client},
    {"siblings", fork_siblings_server, told_client},
    {"hup", fork_hup_server, told_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
