// SPDX-License-Identifier: MIT
// A stream goes to another process over a Unix socket (SCM_RIGHTS), or is fetched by it (pidfd_getfd). `NAME list` prints the
// cases. The other process is this program in the role `NAME worker FD`: it never had the stream before, as a worker that was
// started before the connection was made.
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/syscall.h>

#include "case_tools.h"

using namespace testlib;

namespace {

// ---- messages with descriptors ---------------------------------------------------------------------------------------------

enum class Via { kSendmsg, kSendmmsg, kSyscall };

constexpr int kMaxFds = 4;

struct Message {
  char what = 0;
  struct iovec iov = {&what, 1};
  alignas(struct cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))] = {};
  struct mmsghdr header = {};
  Message() {
    header.msg_hdr.msg_iov = &iov;
    header.msg_hdr.msg_iovlen = 1;
    header.msg_hdr.msg_control = control;
    header.msg_hdr.msg_controllen = sizeof control;
  }
};

void send_fds(int to, char what, const int* fds, int count, Via via = Via::kSendmsg) {
  Message m;
  m.what = what;
  const size_t bytes = static_cast<size_t>(count) * sizeof(int);
  m.header.msg_hdr.msg_controllen = CMSG_SPACE(bytes);
  struct cmsghdr* c = CMSG_FIRSTHDR(&m.header.msg_hdr);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(bytes);
  memcpy(CMSG_DATA(c), fds, bytes);
  if (via == Via::kSendmsg) CHECK_EQ(sendmsg(to, &m.header.msg_hdr, 0), 1);
  if (via == Via::kSendmmsg) CHECK_EQ(sendmmsg(to, &m.header, 1, 0), 1);
  if (via == Via::kSyscall) CHECK_EQ(syscall(SYS_sendmsg, to, &m.header.msg_hdr, 0), 1);
}

void send_fd(int to, char what, int fd, Via via = Via::kSendmsg) { send_fds(to, what, &fd, 1, via); }

// The number of descriptors that came; 0 at the end.
int recv_fds(int from, char* what, int* fds, bool many = false) {
  Message m;
  const ssize_t n = many ? recvmmsg(from, &m.header, 1, MSG_CMSG_CLOEXEC, nullptr) : recvmsg(from, &m.header.msg_hdr, 0);
  CHECK(n >= 0);
  if (n == 0) return 0;
  *what = m.what;
  const struct cmsghdr* c = CMSG_FIRSTHDR(&m.header.msg_hdr);
  if (c == nullptr) return 0;
  CHECK_EQ(c->cmsg_type, SCM_RIGHTS);
  const size_t bytes = c->cmsg_len - CMSG_LEN(0);
  memcpy(fds, CMSG_DATA(c), bytes);
  return static_cast<int>(bytes / sizeof(int));
}

int recv_fd(int from) {
  char what;
  int fds[kMaxFds];
  CHECK_EQ(recv_fds(from, &what, fds), 1);
  return fds[0];
}

// ---- the worker ------------------------------------------------------------------------------------------------------------

void poll_echo(int fd) {
  set_nonblocking(fd);
  char buffer[4096];
  for (;;) {
    wait_readable(fd);
    const ssize_t n = read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EAGAIN) continue;
    CHECK(n >= 0);
    if (n == 0) break;
    send_all(fd, buffer, static_cast<size_t>(n));
  }
}

void epoll_echo(int fd) {
  set_nonblocking(fd);
  const int set = epoll_create1(0);
  struct epoll_event event = {};
  event.events = EPOLLIN;
  CHECK_EQ(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event), 0);
  char buffer[4096];
  ssize_t n = 1;
  while (n != 0) {
    CHECK_EQ(epoll_wait(set, &event, 1, 5000), 1);
    n = recv(fd, buffer, sizeof buffer, 0);
    if (n < 0) CHECK_EQ(errno, EAGAIN);
    if (n > 0) send_all(fd, buffer, static_cast<size_t>(n));
  }
  close(set);
}

// Does what the message with the descriptor says, and answers with a byte.
int role_worker(int channel) {
  for (;;) {
    char what = 0;
    int fds[kMaxFds];
    const int count = recv_fds(channel, &what, fds);
    if (count == 0) return 0;
    uint64_t offset = kUnread;
    if (what == 'e') echo_until_eof(fds[0]);
    if (what == 'p') poll_echo(fds[0]);
    if (what == 'v') epoll_echo(fds[0]);
    if (what == 'a') answer(fds[0], &offset);
    if (what == 'u') {  // the unread bytes first
      recv_pattern(fds[0], kUp, 0, kUnread);
      send_pattern(fds[0], kUp, 0, kUnread);
      answer(fds[0], &offset);
    }
    if (what == 'b') {  // and back
      answer(fds[0], &offset);
      send_fd(channel, 'b', fds[0]);
    }
    if (what == 's') {  // several: the stream twice, and a pipe that says so
      CHECK_EQ(count, 3);
      answer(fds[0], &offset, kTrips / 2);
      answer(fds[1], &offset, kTrips / 2);
      CHECK_EQ(write(fds[2], "p", 1), 1);
    }
    for (int i = 0; i < count; i++) close(fds[i]);
    if (what != 'b') CHECK_EQ(write(channel, &what, 1), 1);
  }
}

struct Worker {
  pid_t pid;
  int channel;
  void done(char what) const {
    char byte;
    CHECK_EQ(read(channel, &byte, 1), 1);
    CHECK_EQ(byte, what);
  }
  void end() const {
    close(channel);
    CHECK_EQ(reap(pid), 0);
  }
};

// Starts one that inherits nothing but its end of the channel.
Worker start_worker(bool plain, int fd, const Sync& sync) {
  int ends[2];
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  set_close_on_exec(fd);
  set_close_on_exec(sync.fd());
  const Self program("worker", 100);
  posix_spawn_file_actions_t actions;
  CHECK_EQ(posix_spawn_file_actions_init(&actions), 0);
  CHECK_EQ(posix_spawn_file_actions_adddup2(&actions, ends[1], 100), 0);
  Worker w = {0, ends[0]};
  CHECK_EQ(posix_spawn(&w.pid, program.path(), &actions, nullptr, program.argv(), plain ? plain_environment() : environ), 0);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  return w;
}

// ---- cases: the server passes, the client goes on as if nothing were ------------------------------------------------------------

// With bytes unread; the sender closes its copy at once.
template <bool plain, Via via>
void given_server(int fd, const Sync& sync) {
  const Worker worker = start_worker(plain, fd, sync);
  sync.wait();
  send_fd(worker.channel, 'e', fd, via);
  close(fd);
  worker.done('e');
  worker.end();
  sync.post();
}

template <char how>
void waiting_server(int fd, const Sync& sync) {
  const Worker worker = start_worker(false, fd, sync);
  sync.wait();
  send_fd(worker.channel, how, fd);
  close(fd);
  worker.done(how);
  worker.end();
  sync.post();
}

void unread_client(int fd, const Sync& sync) {
  send_pattern(fd, kUp, 0, kUnread);
  sync.post();
  recv_pattern(fd, kUp, 0, kUnread);
  uint64_t offset = kUnread;
  exchange(fd, &offset, 3 * kTrips);
  finish(fd, sync);
}

// The sender keeps its copy and goes on with it after the worker has used and closed its own; twice.
template <bool plain>
void kept_server(int fd, const Sync& sync) {
  const Worker worker = start_worker(plain, fd, sync);
  sync.wait();
  send_fd(worker.channel, 'u', fd);
  worker.done('u');
  uint64_t offset = kUnread;
  skip_exchange(&offset);
  answer(fd, &offset);
  worker.end();
  echo_server(fd, sync);
}

void again_server(int fd, const Sync& sync) {
  recv_pattern(fd, kUp, 0, kUnread);
  send_pattern(fd, kUp, 0, kUnread);
  uint64_t offset = kUnread;
  for (int i = 0; i < 3; i++) {
    const Worker worker = start_worker(i == 1, fd, sync);
    send_fd(worker.channel, 'a', fd);
    sync.post();
    worker.done('a');
    worker.end();
    skip_exchange(&offset);
    sync.post();
    answer(fd, &offset);
  }
  echo_server(fd, sync);
}

// As the workers of `again` know it, each exchange begins after the unread bytes.
void again_client(int fd, const Sync& sync) {
  send_pattern(fd, kUp, 0, kUnread);
  recv_pattern(fd, kUp, 0, kUnread);
  uint64_t parent = kUnread;
  for (int i = 0; i < 3; i++) {
    sync.wait();
    uint64_t offset = kUnread;
    exchange(fd, &offset);
    skip_exchange(&parent);
    sync.wait();
    exchange(fd, &parent);
  }
  finish(fd, sync);
}

// The worker gives it back; the sender had closed its copy.
void back_server(int fd, const Sync& sync) {
  const Worker worker = start_worker(false, fd, sync);
  sync.wait();
  recv_pattern(fd, kUp, 0, kUnread);
  send_pattern(fd, kUp, 0, kUnread);
  send_fd(worker.channel, 'b', fd);
  close(fd);
  const int again = recv_fd(worker.channel);
  uint64_t offset = kUnread;
  skip_exchange(&offset);
  answer(again, &offset);
  worker.end();
  echo_server(again, sync);
}

// Three descriptors in one message.
void several_server(int fd, const Sync& sync) {
  const Worker worker = start_worker(false, fd, sync);
  sync.wait();
  recv_pattern(fd, kUp, 0, kUnread);
  send_pattern(fd, kUp, 0, kUnread);
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  const int fds[] = {fd, dup(fd), ends[1]};
  send_fds(worker.channel, 's', fds, 3);
  close(fds[1]);
  close(ends[1]);
  worker.done('s');
  char byte;
  CHECK_EQ(read(ends[0], &byte, 1), 1);
  worker.end();
  uint64_t offset = kUnread;
  skip_exchange(&offset);
  answer(fd, &offset);
  echo_server(fd, sync);
}

// To ourselves: one more name of the same stream.
template <bool many>
void to_itself_server(int fd, const Sync& sync) {
  sync.wait();
  int ends[2];
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  send_fd(ends[0], 'x', fd);
  char what;
  int fds[kMaxFds];
  CHECK_EQ(recv_fds(ends[1], &what, fds, many), 1);
  const int second = fds[0];
  CHECK(second != fd);
  recv_pattern(second, kUp, 0, kUnread / 2);
  recv_pattern(fd, kUp, kUnread / 2, kUnread / 2);
  send_pattern(second, kUp, 0, kUnread / 2);
  send_pattern(fd, kUp, kUnread / 2, kUnread / 2);
  uint64_t offset = kUnread;
  answer(fd, &offset);
  close(fd);
  answer(second, &offset);
  close(ends[0]);
  close(ends[1]);
  echo_server(second, sync);
}

// A message that nobody takes: its descriptor is closed with the socket.
void lost_server(int fd, const Sync& sync) {
  int ends[2];
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  uint64_t offset = 0;
  answer(fd, &offset);
  send_fd(ends[0], 'x', fd);
  close(fd);
  sync.post();
  sync.wait();  // the peer has looked, and there was no end
  close(ends[0]);
  close(ends[1]);
  sync.post();
}

void lost_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  sync.wait();
  struct pollfd p = {fd, POLLIN | POLLRDHUP, 0};
  CHECK_EQ(poll(&p, 1, 100), 0);
  sync.post();
  expect_eof(fd);
  close(fd);
  sync.wait();
}

// What the receiver of a stream does not know: unread bytes in both directions.
void both_ways_server(int fd, const Sync& sync) {
  const Worker worker = start_worker(false, fd, sync);
  send_pattern(fd, kDown, 0, kUnread);
  sync.meet();
  send_fd(worker.channel, 'u', fd);
  close(fd);
  sync.post();
  worker.done('u');
  worker.end();
  sync.post();
}

void both_ways_client(int fd, const Sync& sync) {
  send_pattern(fd, kUp, 0, kUnread);
  sync.meet();
  sync.wait();
  recv_pattern(fd, kDown, 0, kUnread);
  recv_pattern(fd, kUp, 0, kUnread);
  uint64_t offset = kUnread;
  exchange(fd, &offset);
  expect_eof(fd);
  close(fd);
  sync.wait();
}

// The peer is asleep on the stream when it is passed, and is woken by what the worker sends.
void sleeping_peer_client(int fd, const Sync& sync) {
  send_pattern(fd, kUp, 0, kUnread);
  sync.post();  // nothing comes before the worker has the stream
  uint64_t offset = kUnread;
  recv_pattern(fd, kUp, 0, kUnread);
  exchange(fd, &offset, kTrips);
  expect_eof(fd);
  close(fd);
  sync.wait();
}

void sleeping_peer_server(int fd, const Sync& sync) {
  const Worker worker = start_worker(false, fd, sync);
  sync.wait();
  sleep_ms(50);  // so that the peer is probably asleep; right either way
  send_fd(worker.channel, 'u', fd);
  close(fd);
  worker.done('u');
  worker.end();
  sync.post();
}

// ---- pidfd_getfd: another process takes a descriptor without our doing ----------------------------------------------------------

int fetch_fd(pid_t pid, int fd) {
  const int process = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (process < 0) return -1;
  const int got = static_cast<int>(syscall(SYS_pidfd_getfd, process, fd, 0));
  const int error = errno;
  close(process);
  errno = error;
  return got;
}

// A child must be allowed to do this to its parent.
const char* no_pidfd_getfd() {
  const pid_t child = fork_checked();
  if (child == 0) _exit(fetch_fd(getppid(), 1) >= 0 ? 0 : errno);
  static char reason[100];
  const int error = reap(child);
  if (error == 0) return nullptr;
  snprintf(reason, sizeof reason, "pidfd_getfd of the parent is not permitted here: %s", strerror(error));
  return reason;
}

int role_fetch(int fd) {
  const int got = fetch_fd(getppid(), fd);
  CHECK(got >= 0);
  uint64_t offset = kUnread;
  recv_pattern(got, kUp, 0, kUnread);
  send_pattern(got, kUp, 0, kUnread);
  answer(got, &offset);
  close(got);
  return 0;
}

template <bool plain>
void fetched_server(int fd, const Sync& sync) {
  sync.wait();
  set_close_on_exec(fd);
  set_close_on_exec(sync.fd());
  const Self program("fetch", fd);
  pid_t child;
  CHECK_EQ(posix_spawn(&child, program.path(), nullptr, nullptr, program.argv(), plain ? plain_environment() : environ), 0);
  CHECK_EQ(reap(child), 0);
  uint64_t offset = kUnread;
  skip_exchange(&offset);
  answer(fd, &offset);
  echo_server(fd, sync);
}

const Case kCases[] = {
    {"given", given_server<false, Via::kSendmsg>, unread_client},
    {"given_plain", given_server<true, Via::kSendmsg>, unread_client},
    {"given_sendmmsg", given_server<false, Via::kSendmmsg>, unread_client},
    {"given_syscall", given_server<false, Via::kSyscall>, unread_client},
    {"given_poll", waiting_server<'p'>, unread_client},
    {"given_epoll", waiting_server<'v'>, unread_client},
    {"kept", kept_server<false>, unread_client},
    {"kept_plain", kept_server<true>, unread_client},
    {"again", again_server, again_client},
    {"back", back_server, unread_client},
    {"several", several_server, unread_client},
    {"to_itself", to_itself_server<false>, unread_client},
    {"to_itself_recvmmsg", to_itself_server<true>, unread_client},
    {"lost", lost_server, lost_client},
    {"both_ways", both_ways_server, both_ways_client},
    {"sleeping_peer", sleeping_peer_server, sleeping_peer_client},
    {"fetched", fetched_server<false>, unread_client, no_pidfd_getfd},
    {"fetched_plain", fetched_server<true>, unread_client, no_pidfd_getfd},
};

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  if (options.is("worker")) return role_worker(atoi(argv[2]));
  if (options.is("fetch")) return role_fetch(atoi(argv[2]));
  return case_main(argc, argv, kCases);
}
