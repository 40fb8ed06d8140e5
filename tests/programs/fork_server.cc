// SPDX-License-Identifier: MIT
// Servers that give each connection to another process, for the client of echo_threads (messages with a length in front).
//
// --connections=N --mode=: `prefork` (four children accept), `close` and `keep` (a child per connection; the parent closes its copy
// at once, or when the child has ended), `later` (the parent serves --first=N messages before it forks), `spawn` (inetd: this program
// again, with the stream as 0 and 1), `pass` (to four workers over a Unix socket, after --first=N messages).
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include "case_tools.h"

using namespace testlib;

namespace {

constexpr int kWorkers = 4;
constexpr uint32_t kMaxMessage = 1 << 20;

// Answers `count` messages, or until the end (-1). False at the end.
bool serve(int in, int out, long count = -1) {
  static char buffer[kMaxMessage];
  for (; count != 0; count--) {
    uint32_t length;
    const ssize_t n = recv(in, &length, sizeof length, MSG_WAITALL);
    if (n == 0) return false;
    CHECK_EQ(n, sizeof length);
    CHECK(length <= kMaxMessage);
    recv_all(in, buffer, length);
    send_all(out, buffer, length);
  }
  return true;
}

void serve_and_exit(int fd) {
  serve(fd, fd);
  close(fd);
  _exit(7);
}

void reap_all(long children) {
  for (long i = 0; i < children; i++) {
    int status;
    CHECK(wait(&status) > 0);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 7);
  }
}

// The children share the listener; a pipe that the parent closes ends them.
void prefork(int listener, long connections) {
  set_nonblocking(listener);  // two may be woken for one connection
  int stop[2], served[2];
  CHECK_EQ(pipe(stop), 0);
  CHECK_EQ(pipe(served), 0);
  for (int i = 0; i < kWorkers; i++) {
    if (fork_checked() != 0) continue;
    close(stop[1]);
    for (;;) {
      struct pollfd p[2] = {{listener, POLLIN, 0}, {stop[0], POLLIN, 0}};
      CHECK(poll(p, 2, -1) > 0);
      if (p[1].revents != 0) _exit(7);
      const int fd = accept(listener, nullptr, nullptr);
      if (fd < 0) continue;
      no_delay(fd);
      serve(fd, fd);
      close(fd);
      CHECK_EQ(write(served[1], "s", 1), 1);
    }
  }
  for (long i = 0; i < connections; i++) {
    char byte;
    CHECK_EQ(read(served[0], &byte, 1), 1);
  }
  close(stop[1]);
  reap_all(kWorkers);
}

void child_each(int listener, long connections, long first, bool keep) {
  static int kept[1024];
  CHECK(connections <= 1024);
  for (long i = 0; i < connections; i++) {
    const int fd = accept_one(listener);
    no_delay(fd);
    CHECK(serve(fd, fd, first));
    if (fork_checked() == 0) {
      close(listener);
      for (long j = 0; keep && j < i; j++) close(kept[j]);
      serve_and_exit(fd);
    }
    if (keep) kept[i] = fd;
    else close(fd);
  }
  // With all copies in the parent the clients that wait for the end would wait for us: each half-closes first, so children end.
  reap_all(connections);
  for (long i = 0; keep && i < connections; i++) close(kept[i]);
}

void spawn_each(int listener, long connections) {
  set_close_on_exec(listener);
  const Self program("serve");
  for (long i = 0; i < connections; i++) {
    const int fd = accept_one(listener);
    no_delay(fd);
    set_close_on_exec(fd);
    posix_spawn_file_actions_t actions;
    CHECK_EQ(posix_spawn_file_actions_init(&actions), 0);
    CHECK_EQ(posix_spawn_file_actions_adddup2(&actions, fd, 0), 0);
    CHECK_EQ(posix_spawn_file_actions_adddup2(&actions, fd, 1), 0);
    pid_t child;
    CHECK_EQ(posix_spawn(&child, program.path(), &actions, nullptr, program.argv(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(fd);
  }
  reap_all(connections);
}

void pass_fd(int channel, int fd) {
  char byte = 'f';
  struct iovec iov = {&byte, 1};
  alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  struct msghdr m = {};
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  m.msg_control = control;
  m.msg_controllen = sizeof control;
  struct cmsghdr* c = CMSG_FIRSTHDR(&m);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(sizeof fd);
  memcpy(CMSG_DATA(c), &fd, sizeof fd);
  CHECK_EQ(sendmsg(channel, &m, 0), 1);
}

int take_fd(int channel) {
  char byte;
  struct iovec iov = {&byte, 1};
  alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  struct msghdr m = {};
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  m.msg_control = control;
  m.msg_controllen = sizeof control;
  if (recvmsg(channel, &m, 0) <= 0) return -1;
  int fd;
  memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
  return fd;
}

void pass_each(int listener, long connections, long first) {
  int channels[kWorkers];
  for (int i = 0; i < kWorkers; i++) {
    int ends[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    if (fork_checked() == 0) {
      close(listener);
      close(ends[0]);
      for (int j = 0; j < i; j++) close(channels[j]);
      for (int fd; (fd = take_fd(ends[1])) >= 0; close(fd)) serve(fd, fd);
      _exit(7);
    }
    close(ends[1]);
    channels[i] = ends[0];
  }
  for (long i = 0; i < connections; i++) {
    const int fd = accept_one(listener);
    no_delay(fd);
    CHECK(serve(fd, fd, first));
    pass_fd(channels[i % kWorkers], fd);
    close(fd);
  }
  for (int channel : channels) close(channel);
  reap_all(kWorkers);
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  if (options.is("serve")) return serve(0, 1) ? 1 : 7;
  CHECK(options.is("server"));
  const long connections = options.number("connections", 4), first = options.number("first", 0);
  const char* mode = options.text("mode", "close");
  const int listener = listen_on("127.0.0.1");
  announce(listener);
  if (strcmp(mode, "prefork") == 0) prefork(listener, connections);
  else if (strcmp(mode, "spawn") == 0) spawn_each(listener, connections);
  else if (strcmp(mode, "pass") == 0) pass_each(listener, connections, first);
  else child_each(listener, connections, first, strcmp(mode, "keep") == 0);
  return succeed();
}
