// SPDX-License-Identifier: MIT
// Things a program may do with a TCP stream that need the real socket: the stream has to go on, byte for byte, whatever
// carries it afterwards. `NAME list` prints the cases.
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include <atomic>

#include "case_main.h"

using namespace testlib;

namespace {

constexpr uint64_t kUp = 61, kDown = 62;

void echo_server(int fd, const Sync& sync) {
  char buffer[4096];
  ssize_t n;
  while ((n = recv(fd, buffer, sizeof buffer, 0)) > 0) send_all(fd, buffer, static_cast<size_t>(n));
  CHECK_EQ(n, 0);
  sync.post();
  close(fd);
}

void exchange(int fd, uint64_t* offset, int trips = 20) {
  for (int i = 0; i < trips; i++) {
    send_pattern(fd, kUp, *offset, 200);
    recv_pattern(fd, kUp, *offset, 200);
    *offset += 200;
  }
}

void finish(int fd, const Sync& sync) {
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  expect_eof(fd);
  close(fd);
  sync.wait();
}

int reap(pid_t child) {
  int status;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status));
  return WEXITSTATUS(status);
}

void recv_from_pipe(int fd, size_t want) {
  char buffer[8192];
  size_t got = 0;
  ssize_t n;
  while (got < sizeof buffer && (n = read(fd, buffer + got, sizeof buffer - got)) > 0) got += static_cast<size_t>(n);
  CHECK_EQ(got, want);
  pattern_check(buffer, got, kUp, 0);
}

// inetd: the stream becomes standard input and output of another program. Bytes are on their way when it happens.
void exec_server(int fd, const Sync& sync) {
  sync.wait();
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    CHECK_EQ(dup2(fd, 0), 0);
    CHECK_EQ(dup2(fd, 1), 1);
    close(fd);
    close(sync.fd());
    execl("/bin/cat", "cat", nullptr);
    _exit(1);
  }
  close(fd);
  CHECK_EQ(reap(child), 0);
  sync.post();
}

void exec_client(int fd, const Sync& sync) {
  send_pattern(fd, kUp, 0, 1000);  // unread when the other end becomes cat
  sync.post();
  recv_pattern(fd, kUp, 0, 1000);
  uint64_t offset = 1000;
  exchange(fd, &offset);
  finish(fd, sync);
}

// The descriptor goes to another process over a Unix socket and is used there.
void pass_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  int ends[2];
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  const pid_t child = fork();
  CHECK(child >= 0);
  alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  char byte = 'f';
  struct iovec iov = {&byte, 1};
  struct msghdr message = {};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (child == 0) {
    close(fd);
    close(ends[0]);
    CHECK_EQ(recvmsg(ends[1], &message, 0), 1);
    int got;
    memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof got);
    exchange(got, &offset);
    close(got);
    _exit(7);
  }
  close(ends[1]);
  struct cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &fd, sizeof fd);
  CHECK_EQ(sendmsg(ends[0], &message, 0), 1);
  CHECK_EQ(reap(child), 7);
  offset += 20 * 200;
  exchange(fd, &offset);
  finish(fd, sync);
}

void stdio_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  FILE* in = fdopen(dup(fd), "r");
  FILE* out = fdopen(dup(fd), "w");
  CHECK(in != nullptr && out != nullptr);
  for (int i = 0; i < 100; i++) {
    char line[32];
    CHECK(fprintf(out, "line %d\n", i) > 0);
    CHECK_EQ(fflush(out), 0);
    CHECK(fgets(line, sizeof line, in) != nullptr);
    CHECK_EQ(atoi(line + 5), i);
  }
  CHECK(dprintf(fd, "last\n") == 5);
  char line[32];
  CHECK(fgets(line, sizeof line, in) != nullptr);
  CHECK_EQ(strcmp(line, "last\n"), 0);
  CHECK_EQ(fclose(in), 0);
  CHECK_EQ(fclose(out), 0);
  exchange(fd, &offset);
  finish(fd, sync);
}

void splice_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  for (int i = 0; i < 10; i++) {
    char buffer[1000];
    pattern_fill(buffer, sizeof buffer, kUp, offset);
    CHECK_EQ(write(ends[1], buffer, sizeof buffer), sizeof buffer);
    size_t moved = 0;
    while (moved < sizeof buffer) {
      const ssize_t n = splice(ends[0], nullptr, fd, nullptr, sizeof buffer - moved, 0);
      CHECK(n > 0);
      moved += static_cast<size_t>(n);
    }
    for (moved = 0; moved < sizeof buffer;) {
      const ssize_t n = splice(fd, nullptr, ends[1], nullptr, sizeof buffer - moved, 0);
      CHECK(n > 0);
      moved += static_cast<size_t>(n);
    }
    CHECK_EQ(read(ends[0], buffer, sizeof buffer), sizeof buffer);
    pattern_check(buffer, sizeof buffer, kUp, offset);
    offset += sizeof buffer;
  }
  close(ends[0]);
  close(ends[1]);
  exchange(fd, &offset);
  finish(fd, sync);
}

// What splice() takes is not counted: were the channel still there at the close, because the peer was late to give back, the bytes
// counted as unread and the close was a reset.
void splice_late_server(int fd, const Sync& sync) {
  sync.wait();
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  CHECK_EQ(splice(fd, nullptr, ends[1], nullptr, 3000, 0), 3000);  // in one call: the next one would let the channel go
  close(ends[1]);
  recv_from_pipe(ends[0], 3000);
  close(ends[0]);
  close(fd);
}

void splice_late_client(int fd, const Sync& sync) {
  send_pattern(fd, kUp, 0, 3000);
  sync.post();
  sleep_ms(400);  // longer than a revoke waits for us
  expect_eof(fd);
  close(fd);
}

// So it was with a forked child that has the stream still, and is the last: what its parent had taken it counted as unread.
void splice_forked_server(int fd, const Sync& sync) {
  sync.wait();
  int ends[2], closed[2];
  CHECK_EQ(pipe(ends), 0);
  CHECK_EQ(pipe(closed), 0);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    char byte;
    close(closed[1]);
    close(ends[1]);
    _exit(read(closed[0], &byte, 1) == 0 ? 0 : 1);
  }
  close(closed[0]);
  CHECK_EQ(splice(fd, nullptr, ends[1], nullptr, 3000, 0), 3000);
  close(ends[1]);
  recv_from_pipe(ends[0], 3000);
  close(ends[0]);
  close(fd);
  close(closed[1]);
  CHECK_EQ(reap(child), 0);
}

// The other way round: the peer is late, nothing was taken, and the close must be a reset although somebody might have taken it.
void splice_nothing_server(int fd, const Sync& sync) {
  sync.wait();
  int ends[2];
  CHECK_EQ(pipe2(ends, O_NONBLOCK), 0);
  char block[4096] = {};
  while (write(ends[1], block, sizeof block) > 0) {}
  CHECK_ERRNO(splice(fd, nullptr, ends[1], nullptr, 3000, SPLICE_F_NONBLOCK), EAGAIN);  // the pipe is full
  close(fd);
  close(ends[0]);
  close(ends[1]);
}

void splice_nothing_client(int fd, const Sync& sync) {
  send_pattern(fd, kUp, 0, 3000);
  sync.post();
  sleep_ms(400);  // longer than a revoke waits for us
  char byte;
  CHECK_ERRNO(recv(fd, &byte, 1, 0), ECONNRESET);
  close(fd);
}

// One thread closes and makes numbers of the stream, another gives back what the peer asks for, by whichever number it finds. A number
// that was closed under it cost the bytes that were to go back, and the next send was told EBADF.
constexpr int kNumberRounds = 60;

struct Numbers {
  int fd;
  std::atomic<bool> stop;
};

void* change_numbers(void* argument) {
  auto* numbers = static_cast<Numbers*>(argument);
  while (!numbers->stop) {
    const int copy = dup(numbers->fd);
    CHECK(copy >= 0);
    CHECK_EQ(close(copy), 0);
  }
  return nullptr;
}

void numbers_server(int first, const Sync& sync) {
  const int listener = listen_on("127.0.0.1");
  int port = port_of(listener);
  CHECK_EQ(write(sync.fd(), &port, sizeof port), sizeof port);
  for (int round = 0; round < kNumberRounds; round++) {
    const int fd = accept_one(listener);
    const int ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {EPOLLIN, {}};
    CHECK_EQ(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event), 0);
    for (int i = 0; i < 20; i++) {
      recv_pattern(fd, kUp, static_cast<uint64_t>(i) * 100, 100);
      send_pattern(fd, kDown, static_cast<uint64_t>(i) * 100, 100);
    }
    Numbers numbers = {fd, {false}};
    const pthread_t thread = start_thread(change_numbers, &numbers);
    send_pattern(fd, kDown, 2000, 3000);
    CHECK_EQ(epoll_wait(ep, &event, 1, 10000), 1);
    recv_pattern(fd, kUp, 2000, 1);
    numbers.stop = true;
    join_thread(thread);
    send_pattern(fd, kDown, 5000, 100);
    expect_eof(fd);
    close(ep);
    close(fd);
  }
  close(listener);
  expect_eof(first);
  close(first);
}

void numbers_client(int first, const Sync& sync) {
  int port = 0;
  CHECK_EQ(read(sync.fd(), &port, sizeof port), sizeof port);
  for (int round = 0; round < kNumberRounds; round++) {
    const int fd = connect_to("127.0.0.1", port);
    for (int i = 0; i < 20; i++) {
      send_pattern(fd, kUp, static_cast<uint64_t>(i) * 100, 100);
      recv_pattern(fd, kDown, static_cast<uint64_t>(i) * 100, 100);
    }
    int queued = 0;
    while (queued < 3000) CHECK_EQ(ioctl(fd, FIONREAD, &queued), 0);
    FILE* in = fdopen(dup(fd), "r");
    CHECK(in != nullptr);
    char buffer[3000];
    CHECK_EQ(fread(buffer, 1, sizeof buffer, in), sizeof buffer);
    pattern_check(buffer, sizeof buffer, kDown, 2000);
    send_pattern(fd, kUp, 2000, 1);
    recv_pattern(fd, kDown, 5000, 100);
    CHECK_EQ(fclose(in), 0);
    close(fd);
  }
  close(first);
}

void urgent_server(int fd, const Sync& sync) {
  recv_pattern(fd, kUp, 0, 100);
  sync.wait();
  char byte = 0;
  const int64_t deadline = now_ms() + 5000;
  while (recv(fd, &byte, 1, MSG_OOB) != 1) {
    CHECK(now_ms() < deadline);
    CHECK(errno == EAGAIN || errno == EINVAL);
    sleep_ms(1);
  }
  CHECK_EQ(byte, '!');
  recv_pattern(fd, kUp, 100, 100);
  expect_eof(fd);
  sync.post();
  close(fd);
}

void urgent_client(int fd, const Sync& sync) {
  send_pattern(fd, kUp, 0, 100);
  CHECK_EQ(send(fd, "!", 1, MSG_OOB), 1);
  sync.post();
  send_pattern(fd, kUp, 100, 100);
  finish(fd, sync);
}

// Revoked while a lot is unread in both directions.
void full_server(int fd, const Sync& sync) {
  send_pattern(fd, kDown, 0, 3000);
  sync.meet();
  recv_pattern(fd, kUp, 0, 3000);
  uint64_t offset = 3000;
  char buffer[200];
  for (int i = 0; i < 20; i++, offset += 200) {
    recv_all(fd, buffer, sizeof buffer);
    pattern_check(buffer, sizeof buffer, kUp, offset);
    send_all(fd, buffer, sizeof buffer);
  }
  expect_eof(fd);
  sync.post();
  close(fd);
}

void full_client(int fd, const Sync& sync) {
  send_pattern(fd, kUp, 0, 3000);
  sync.meet();
  FILE* in = fdopen(dup(fd), "r");
  CHECK(in != nullptr);
  setvbuf(in, nullptr, _IONBF, 0);
  char buffer[3000];
  CHECK_EQ(fread(buffer, 1, sizeof buffer, in), sizeof buffer);
  pattern_check(buffer, sizeof buffer, kDown, 0);
  uint64_t offset = 3000;
  exchange(fd, &offset);
  CHECK_EQ(fclose(in), 0);
  finish(fd, sync);
}

// A shutdown that the kernel refuses is no answer to what the peer asks for later.
void wrong_shutdown_server(int fd, const Sync& sync) {
  errno = 0;
  CHECK(shutdown(fd, 7) == -1 && errno == EINVAL);
  send_pattern(fd, kDown, 0, 3000);
  sync.meet();
  recv_pattern(fd, kUp, 0, 10);  // asleep in here, it gives back what is unread
  expect_eof(fd);
  sync.post();
  close(fd);
}

void wrong_shutdown_client(int fd, const Sync& sync) {
  sync.meet();
  sleep_ms(20);  // the other end may be asleep by now; if not, it answers all the same
  FILE* in = fdopen(dup(fd), "r");
  CHECK(in != nullptr);
  char buffer[3000];
  CHECK_EQ(fread(buffer, 1, sizeof buffer, in), sizeof buffer);
  pattern_check(buffer, sizeof buffer, kDown, 0);
  send_pattern(fd, kUp, 0, 10);
  CHECK_EQ(fclose(in), 0);
  finish(fd, sync);
}

// The peer has finished, and its last bytes are unread, when the stream becomes standard input of another program: inetd with a
// client that sends its request and half-closes, closes or exits.
void handed_late_server(int fd, const Sync& sync) {
  sync.wait();
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    CHECK_EQ(dup2(fd, 0), 0);
    CHECK_EQ(dup2(ends[1], 1), 1);
    close(fd);
    close(ends[0]);
    close(ends[1]);
    close(sync.fd());
    execl("/bin/cat", "cat", nullptr);
    _exit(1);
  }
  close(ends[1]);
  recv_from_pipe(ends[0], 3000);
  CHECK_EQ(reap(child), 0);
  close(ends[0]);
  close(fd);
  sync.post();
}

void half_closed_client(int fd, const Sync& sync) {
  send_pattern(fd, kUp, 0, 3000);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  sync.post();
  sync.wait();
  close(fd);
}

void closed_client(int fd, const Sync& sync) {
  send_pattern(fd, kUp, 0, 3000);
  close(fd);
  sync.post();
  sync.wait();
}

// A stream that comes back to TCP because its ring stayed full, while a thread waits for all of a long message: the thread must not
// be left in the kernel when the rest of the message comes by the next ring.
constexpr size_t kHead = 1000, kTrickle = 40, kRest = 50 * 1000, kMuch = 320 * 1024, kMore = 200 * 100;

void* wait_for_all(void* argument) {
  const int fd = *static_cast<int*>(argument);
  static char message[kHead + kTrickle + kRest];
  CHECK_EQ(recv(fd, message, sizeof message, MSG_WAITALL), sizeof message);
  pattern_check(message, sizeof message, kUp, 0);
  return nullptr;
}

void waitall_server(int fd, const Sync& sync) {
  const pthread_t thread = start_thread(wait_for_all, &fd);
  send_pattern(fd, kDown, 0, kMuch);
  for (size_t at = 0; at < kMore; at += 100) {
    send_pattern(fd, kDown, kMuch + at, 100);
    if (at % 1000 == 0) sync.meet();
  }
  join_thread(thread);
  expect_eof(fd);
  sync.post();
  close(fd);
}

void waitall_client(int fd, const Sync& sync) {
  send_pattern(fd, kUp, 0, kHead);
  for (size_t i = 0; i < kTrickle; i++) {  // 0.8 s: the other end's ring is full for long
    sleep_ms(20);
    send_pattern(fd, kUp, kHead + i, 1);
  }
  recv_pattern(fd, kDown, 0, kMuch);
  for (size_t at = 0; at < kMore; at += 100) {
    recv_pattern(fd, kDown, kMuch + at, 100);
    if (at % 1000 == 0) sync.meet();
  }
  for (size_t at = 0; at < kRest; at += 1000) send_pattern(fd, kUp, kHead + kTrickle + at, 1000);
  finish(fd, sync);
}

const Case kCases[] = {
    {"exec", exec_server, exec_client},     {"pass", echo_server, pass_client},
    {"stdio", echo_server, stdio_client},   {"splice", echo_server, splice_client},
    {"splice_late", splice_late_server, splice_late_client}, {"numbers", numbers_server, numbers_client},
    {"splice_forked", splice_forked_server, splice_late_client},
    {"splice_nothing", splice_nothing_server, splice_nothing_client},
    {"urgent", urgent_server, urgent_client}, {"full", full_server, full_client},
    {"wrong_shutdown", wrong_shutdown_server, wrong_shutdown_client},
    {"half_closed", handed_late_server, half_closed_client},
    {"closed", handed_late_server, closed_client},
    {"waitall_stalled", waitall_server, waitall_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
