// SPDX-License-Identifier: MIT
// How a TCP stream ends, and what fork and dup do to it. `NAME list` prints the cases.
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "case_main.h"

using namespace testlib;

namespace {

constexpr uint64_t kUp = 31, kDown = 32;

volatile sig_atomic_t g_sigpipes = 0;

void echo_until_eof(int fd) {
  char buffer[4096];
  ssize_t n;
  while ((n = recv(fd, buffer, sizeof buffer, 0)) > 0) send_all(fd, buffer, static_cast<size_t>(n));
  CHECK_EQ(n, 0);
}

// The other end of many cases: echoes until end of file.
void echo_server(int fd, const Sync&) {
  echo_until_eof(fd);
  close(fd);
}

// A few round trips with an echo_server; `offset` moves on.
void exchange(int fd, uint64_t* offset, int trips = 20) {
  for (int i = 0; i < trips; i++) {
    send_pattern(fd, kUp, *offset, 200);
    recv_pattern(fd, kUp, *offset, 200);
    *offset += 200;
  }
}

int reap(pid_t child) {
  int status;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status));
  return WEXITSTATUS(status);
}

// Ends a child without running the parent's exit handlers twice, as daemons do.
[[noreturn]] void leave(int code) { _exit(code); }

// ---- end of file ------------------------------------------------------------------------------------------------------

void half_close_server(int fd, const Sync&) {
  recv_pattern(fd, kUp, 0, 30000);
  for (int i = 0; i < 3; i++) expect_eof(fd);  // it stays at the end
  send_pattern(fd, kDown, 0, 50000);           // the other direction is open
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  close(fd);
}

void half_close_client(int fd, const Sync&) {
  send_pattern(fd, kUp, 0, 30000);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  char byte = 0;
  CHECK_ERRNO(send(fd, &byte, 1, MSG_NOSIGNAL), EPIPE);
  recv_pattern(fd, kDown, 0, 50000);
  for (int i = 0; i < 3; i++) expect_eof(fd);
  close(fd);
}

// The peer writes and is gone before the first byte is read.
void eof_after_data_server(int fd, const Sync& sync) {
  sync.wait();
  recv_pattern(fd, kUp, 0, 2000);
  expect_eof(fd);
  close(fd);
}

void eof_after_data_client(int fd, const Sync& sync) {
  send_pattern(fd, kUp, 0, 2000);
  close(fd);
  sync.post();
}

void poll_at_end_server(int fd, const Sync& sync) {
  struct pollfd p = {fd, POLLIN | POLLRDHUP, 0};
  CHECK_EQ(poll(&p, 1, 0), 0);
  sync.meet();
  sync.wait();
  CHECK_EQ(poll(&p, 1, 5000), 1);
  CHECK_EQ(p.revents & (POLLIN | POLLRDHUP), POLLIN | POLLRDHUP);  // data and end of file
  CHECK_EQ(p.revents & (POLLHUP | POLLERR), 0);
  recv_pattern(fd, kUp, 0, 500);
  CHECK_EQ(poll(&p, 1, 5000), 1);
  CHECK_EQ(p.revents, POLLIN | POLLRDHUP);  // end of file alone is readable
  expect_eof(fd);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  CHECK_EQ(poll(&p, 1, 5000), 1);
  CHECK_EQ(p.revents & POLLHUP, POLLHUP);  // both directions are shut
  close(fd);
}

void poll_at_end_client(int fd, const Sync& sync) {
  sync.meet();
  send_pattern(fd, kUp, 0, 500);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  sync.post();
  expect_eof(fd);
  close(fd);
}

void* shut_later(void* argument) {
  sleep_ms(100);
  CHECK_EQ(shutdown(*static_cast<int*>(argument), SHUT_RDWR), 0);
  return nullptr;
}

// shutdown() in one thread wakes a reader in another: how servers stop their threads.
void shutdown_wakes_server(int fd, const Sync&) {
  const pthread_t thread = start_thread(shut_later, &fd);
  expect_eof(fd);
  join_thread(thread);
  close(fd);
}

void shutdown_wakes_client(int fd, const Sync&) {
  expect_eof(fd);
  close(fd);
}

void shut_read_server(int fd, const Sync& sync) {
  sync.meet();
  CHECK_EQ(shutdown(fd, SHUT_RD), 0);
  expect_eof(fd);
  send_pattern(fd, kDown, 0, 100);  // writing goes on
  sync.meet();
  close(fd);
}

void shut_read_client(int fd, const Sync& sync) {
  sync.meet();
  recv_pattern(fd, kDown, 0, 100);
  sync.meet();
  expect_eof(fd);
  close(fd);
}

// ---- resets -----------------------------------------------------------------------------------------------------------

// close() with unread data is a reset for the peer, not an end of file.
void close_unread_server(int fd, const Sync& sync) {
  send_pattern(fd, kDown, 0, 1000);
  sync.post();
  sync.wait();
  char byte;
  CHECK_ERRNO(recv(fd, &byte, 1, 0), ECONNRESET);
  CHECK_ERRNO(send(fd, &byte, 1, MSG_NOSIGNAL), EPIPE);
  expect_eof(fd);  // the error is reported once
  close(fd);
}

void close_unread_client(int fd, const Sync& sync) {
  sync.wait();
  struct pollfd p = {fd, POLLIN, 0};
  CHECK_EQ(poll(&p, 1, 5000), 1);
  close(fd);
  sync.post();
}

void linger_zero_server(int fd, const Sync& sync) {
  sync.meet();
  sync.wait();
  struct pollfd p = {fd, POLLIN, 0};
  CHECK_EQ(poll(&p, 1, 5000), 1);
  CHECK_EQ(p.revents & (POLLIN | POLLERR | POLLHUP), POLLIN | POLLERR | POLLHUP);
  char byte;
  CHECK_ERRNO(recv(fd, &byte, 1, 0), ECONNRESET);
  close(fd);
}

void linger_zero_client(int fd, const Sync& sync) {
  sync.meet();
  const struct linger l = {1, 0};
  CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l), 0);
  close(fd);
  sync.post();
}

void on_sigpipe(int) { g_sigpipes = g_sigpipes + 1; }

// Writing to a peer that has closed: EPIPE in the end, with SIGPIPE unless it is refused.
void epipe_server(int fd, const Sync& sync) {
  sync.wait();
  char data[100] = {};
  ssize_t n = 0;
  for (int i = 0; i < 100 && n >= 0; i++) {
    n = send(fd, data, sizeof data, MSG_NOSIGNAL);
    sleep_ms(1);
  }
  CHECK_EQ(n, -1);
  CHECK_EQ(errno, EPIPE);
  CHECK_EQ(g_sigpipes, 0);
  struct sigaction action = {};
  action.sa_handler = on_sigpipe;
  CHECK_EQ(sigaction(SIGPIPE, &action, nullptr), 0);
  CHECK_ERRNO(send(fd, data, sizeof data, 0), EPIPE);
  CHECK_EQ(g_sigpipes, 1);
  CHECK_ERRNO(write(fd, data, sizeof data), EPIPE);
  CHECK_EQ(g_sigpipes, 2);
  CHECK_ERRNO(send(fd, data, sizeof data, MSG_NOSIGNAL), EPIPE);
  CHECK_EQ(g_sigpipes, 2);
  close(fd);
}

void epipe_client(int fd, const Sync& sync) {
  close(fd);
  sync.post();
}

void* close_later(void* argument) {
  sleep_ms(100);
  close(*static_cast<int*>(argument));
  return nullptr;
}

// A sender that is blocked because the peer does not read must be woken by the peer's end.
void blocked_sender_server(int fd, const Sync& sync) {
  sync.post();
  char data[10000] = {};
  ssize_t n;
  do n = send(fd, data, sizeof data, MSG_NOSIGNAL);
  while (n > 0);
  CHECK_EQ(n, -1);
  CHECK(errno == ECONNRESET || errno == EPIPE);
  close(fd);
}

void blocked_sender_client(int fd, const Sync& sync) {
  sync.wait();
  const pthread_t thread = start_thread(close_later, &fd);
  join_thread(thread);
}

// ---- descriptors ------------------------------------------------------------------------------------------------------

void dup_client(int fd, const Sync&) {
  uint64_t offset = 0;
  const int second = dup(fd);
  CHECK(second >= 0);
  exchange(second, &offset);
  CHECK_EQ(close(fd), 0);
  exchange(second, &offset);
  const int third = fcntl(second, F_DUPFD_CLOEXEC, 100);
  CHECK(third >= 100);
  CHECK_EQ(fcntl(third, F_GETFD), FD_CLOEXEC);
  CHECK_EQ(close(second), 0);
  exchange(third, &offset);
  CHECK_EQ(dup2(third, 300), 300);
  CHECK_EQ(dup3(third, 301, O_CLOEXEC), 301);
  send_pattern(300, kUp, offset, 100);  // one stream, whatever the number
  recv_pattern(301, kUp, offset, 100);
  offset += 100;
  CHECK_EQ(dup2(300, 300), 300);
  CHECK_EQ(close(third), 0);
  CHECK_EQ(close(301), 0);
  exchange(300, &offset);
  CHECK_EQ(shutdown(300, SHUT_WR), 0);
  expect_eof(300);
  CHECK_EQ(close(300), 0);
  CHECK_ERRNO(send(300, "x", 1, MSG_NOSIGNAL), EBADF);
  CHECK_ERRNO(close(fd), EBADF);
}

// Opens a file that gets the number `fd`, which was just closed (lower numbers may be free as well).
int open_as(int fd, const char* path) {
  for (;;) {
    const int file = open(path, O_RDONLY);
    CHECK(file >= 0 && file <= fd);
    if (file == fd) return file;
  }
}

void dup2_over_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  const int file = open("/dev/zero", O_RDWR);
  CHECK(file >= 0);
  CHECK_EQ(dup2(file, fd), fd);  // closes the stream
  sync.wait();                   // the peer has seen the end
  char buffer[10];
  CHECK_EQ(read(fd, buffer, sizeof buffer), sizeof buffer);
  for (char c : buffer) CHECK_EQ(c, 0);
  CHECK_ERRNO(recv(fd, buffer, sizeof buffer, 0), ENOTSOCK);
  CHECK_EQ(write(fd, buffer, sizeof buffer), sizeof buffer);
  close(fd);
  close(file);
}

void seen_end_server(int fd, const Sync& sync) {
  echo_until_eof(fd);
  sync.post();
  close(fd);
}

// The number of a closed stream is used for a file at once.
void reuse_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  CHECK_EQ(close(fd), 0);
  const int file = open_as(fd, "/dev/zero");
  char buffer[100] = "not zero";
  CHECK_EQ(read(file, buffer, sizeof buffer), sizeof buffer);
  CHECK_EQ(buffer[0], 0);
  sync.wait();
  CHECK_EQ(close(file), 0);
}

// As reuse_client, but closed without libc's close() (libuv and others do that).
void raw_close_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  CHECK_EQ(syscall(SYS_close, fd), 0);
  const int file = open_as(fd, "/dev/zero");
  char buffer[100] = "not zero";
  CHECK_EQ(read(file, buffer, sizeof buffer), sizeof buffer);
  CHECK_EQ(buffer[0], 0);
  sync.wait();
  CHECK_EQ(close(file), 0);
}

// Closes every number but the ones it knows, as daemons do when they start.
void close_all_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  for (int i = 3; i < 4096; i++)
    if (i != fd && i != sync.fd()) close(i);
  exchange(fd, &offset, 50);
  close(fd);
}

void close_range_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  CHECK(fd >= 3 && sync.fd() > fd);
  CHECK_EQ(close_range(static_cast<unsigned>(sync.fd()) + 1, ~0u, 0), 0);
  exchange(fd, &offset, 50);
  CHECK_EQ(syscall(SYS_close_range, sync.fd() + 1, ~0u, 0), 0);
  exchange(fd, &offset, 50);
  close(fd);
}

// ---- fork -------------------------------------------------------------------------------------------------------------

// A child that has nothing to do with the stream closes it, or just ends.
void fork_child_closes_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    close(fd);
    leave(7);
  }
  exchange(fd, &offset);
  CHECK_EQ(reap(child), 7);
  exchange(fd, &offset);
  close(fd);
  sync.wait();
}

void fork_child_exits_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  for (int i = 0; i < 3; i++) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      if (i == 2) exit(7);  // with exit handlers
      leave(7);
    }
    exchange(fd, &offset);
    CHECK_EQ(reap(child), 7);
    exchange(fd, &offset);
  }
  close(fd);
  sync.wait();
}

void fork_exec_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  CHECK_EQ(fcntl(fd, F_SETFD, FD_CLOEXEC), 0);
  CHECK_EQ(fcntl(sync.fd(), F_SETFD, FD_CLOEXEC), 0);
  exchange(fd, &offset);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    execl("/bin/sh", "sh", "-c", "exit 7", nullptr);
    leave(1);
  }
  exchange(fd, &offset);
  CHECK_EQ(reap(child), 7);
  CHECK_EQ(WEXITSTATUS(system("exit 9")), 9);
  exchange(fd, &offset);
  close(fd);
  sync.wait();
}

// The classic server: the child goes on with the connection, the parent closes its copy.
void fork_child_serves_server(int fd, const Sync& sync) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    echo_until_eof(fd);
    close(fd);
    leave(7);
  }
  close(fd);
  CHECK_EQ(reap(child), 7);
  sync.post();
}

// The parent closes its copy while the child still has the stream: the peer must not see an end.
void fork_parent_closes_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  int gate[2];
  CHECK_EQ(pipe(gate), 0);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    char byte;
    CHECK_EQ(read(gate[0], &byte, 1), 1);
    exchange(fd, &offset);
    close(fd);
    leave(7);
  }
  close(fd);
  sleep_ms(50);
  CHECK_EQ(write(gate[1], "g", 1), 1);
  CHECK_EQ(reap(child), 7);
  sync.wait();
}

// Parent and child take turns on one stream.
void fork_both_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  for (int i = 0; i < 3; i++) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      exchange(fd, &offset);
      leave(7);
    }
    CHECK_EQ(reap(child), 7);
    offset += 20 * 200;  // what the child has sent
    exchange(fd, &offset);
  }
  close(fd);
  sync.wait();
}

const Case kCases[] = {
    {"half_close", half_close_server, half_close_client},
    {"eof_after_data", eof_after_data_server, eof_after_data_client},
    {"poll_at_end", poll_at_end_server, poll_at_end_client},
    {"shutdown_wakes", shutdown_wakes_server, shutdown_wakes_client},
    {"shut_read", shut_read_server, shut_read_client},
    {"close_unread", close_unread_server, close_unread_client},
    {"linger_zero", linger_zero_server, linger_zero_client},
    {"epipe", epipe_server, epipe_client},
    {"blocked_sender", blocked_sender_server, blocked_sender_client},
    {"dup", echo_server, dup_client},
    {"dup2_over", seen_end_server, dup2_over_client},
    {"reuse", seen_end_server, reuse_client},
    {"raw_close", seen_end_server, raw_close_client},
    {"close_all", echo_server, close_all_client},
    {"close_range", echo_server, close_range_client},
    {"fork_child_closes", seen_end_server, fork_child_closes_client},
    {"fork_child_exits", seen_end_server, fork_child_exits_client},
    {"fork_exec", seen_end_server, fork_exec_client},
    {"fork_child_serves", fork_child_serves_server, fork_child_closes_client},
    {"fork_parent_closes", seen_end_server, fork_parent_closes_client},
    {"fork_both", seen_end_server, fork_both_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
