// SPDX-License-Identifier: MIT
// Which error comes first and which next when a TCP stream has ended, and SIGPIPE. `NAME list` prints the cases.
#include <sys/sendfile.h>

#include "calls.h"
#include "peer.h"

using namespace testlib;

namespace {

char g_buffer[4096];

int so_error(int fd) {
  int error = -1;
  socklen_t length = sizeof error;
  CHECK_EQ(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length), 0);
  return error;
}

void expect_not_connected(int fd) {
  Address a;
  a.length = sizeof a.storage;
  CHECK_ERRNO(getpeername(fd, a.get(), &a.length), ENOTCONN);
  CHECK_ERRNO(shutdown(fd, SHUT_RDWR), ENOTCONN);
}

// ---- a reset ----------------------------------------------------------------------------------------------------------

// Reading: the error once, then end of file for ever.
void reset_recv_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.now(Do::kReset);
  peer.await_events(POLLIN | POLLOUT | POLLERR | POLLHUP | POLLRDHUP);
  CHECK_ERRNO(recv(fd, g_buffer, 1, 0), ECONNRESET);
  for (int i = 0; i < 3; i++) expect_eof(fd);
  CHECK_ERRNO(send(fd, g_buffer, 1, MSG_NOSIGNAL), EPIPE);
  CHECK_EQ(so_error(fd), 0);
  struct pollfd p = {fd, POLLIN | POLLOUT, 0};
  CHECK_EQ(poll(&p, 1, 0), 1);
  CHECK_EQ(p.revents, POLLIN | POLLOUT | POLLHUP);  // the error has been fetched
  expect_not_connected(fd);
  close(fd);
}

// Writing first: ECONNRESET without a signal, then EPIPE with one.
void reset_send_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  count_signals(SIGPIPE);
  peer.now(Do::kReset);
  peer.await_events(POLLERR);
  CHECK_ERRNO(send(fd, g_buffer, 1, 0), ECONNRESET);
  CHECK_EQ(g_signals, 0);
  CHECK_ERRNO(send(fd, g_buffer, 1, 0), EPIPE);
  CHECK_EQ(g_signals, 1);
  expect_eof(fd);
  close(fd);
}

// SO_ERROR takes the error away.
void reset_so_error_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.now(Do::kReset);
  peer.await_events(POLLERR);
  CHECK_EQ(so_error(fd), ECONNRESET);
  CHECK_EQ(so_error(fd), 0);
  expect_eof(fd);
  CHECK_ERRNO(send(fd, g_buffer, 1, MSG_NOSIGNAL), EPIPE);
  close(fd);
}

// What had arrived before the reset can still be read.
void reset_unread_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(1000);
  peer.now(Do::kReset);
  peer.await_events(POLLERR);
  peer.take(400);
  CHECK_EQ(recv(fd, g_buffer, 2000, 0), 600);
  peer.took(g_buffer, 600);
  CHECK_ERRNO(recv(fd, g_buffer, 1, 0), ECONNRESET);
  expect_eof(fd);
  close(fd);
}

// The same, but the error is fetched by a write before the data is read: the data is still there.
void reset_unread_send_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(1000);
  peer.now(Do::kReset);
  peer.await_events(POLLERR);
  CHECK_ERRNO(send(fd, g_buffer, 1, MSG_NOSIGNAL), ECONNRESET);
  peer.take(1000);
  expect_eof(fd);
  CHECK_ERRNO(send(fd, g_buffer, 1, MSG_NOSIGNAL), EPIPE);
  close(fd);
}

// ---- the peer has closed ----------------------------------------------------------------------------------------------

// Data we send to a closed peer is answered by a reset; after its FIN that is EPIPE, and reading stays at end of file.
void closed_send_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  count_signals(SIGPIPE);
  peer.now(Do::kClose);
  peer.await_events(POLLIN | POLLRDHUP);
  CHECK_EQ(send(fd, g_buffer, 10, 0), 10);  // not known yet
  peer.await_events(POLLERR | POLLHUP);
  expect_eof(fd);
  CHECK_EQ(so_error(fd), EPIPE);
  CHECK_EQ(so_error(fd), 0);
  CHECK_EQ(g_signals, 0);
  CHECK_ERRNO(send(fd, g_buffer, 10, 0), EPIPE);
  CHECK_EQ(g_signals, 1);
  expect_eof(fd);
  close(fd);
}

// The same with data of the peer that we have not read yet.
void closed_unread_send_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(1000);
  peer.now(Do::kClose);
  peer.await_events(POLLIN | POLLRDHUP);
  CHECK_EQ(send(fd, g_buffer, 10, MSG_NOSIGNAL), 10);
  peer.await_events(POLLERR | POLLHUP);
  CHECK_ERRNO(send(fd, g_buffer, 10, MSG_NOSIGNAL), EPIPE);
  peer.take(1000);
  expect_eof(fd);
  close(fd);
}

// ---- our own shutdown -------------------------------------------------------------------------------------------------

ssize_t try_sendfile(int fd) {
  const int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  CHECK(file >= 0);
  const ssize_t n = sendfile(fd, file, nullptr, 10);
  close(file);
  return n;
}

// After shutdown(SHUT_WR) each call that writes fails with EPIPE and one SIGPIPE, in the thread that called.
void sigpipe_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  count_signals(SIGPIPE);
  int expected = 0;
  for (const SendCall& c : kSendCalls) {
    note(c.name);
    CHECK_ERRNO(c.call(fd, g_buffer, 10), EPIPE);
    CHECK_EQ(g_signals, ++expected);
  }
  CHECK_ERRNO(try_sendfile(fd), EPIPE);
  CHECK_EQ(g_signals, ++expected);
  CHECK_ERRNO(send(fd, g_buffer, 10, MSG_NOSIGNAL), EPIPE);
  CHECK_EQ(g_signals, expected);
  // Blocked, it stays pending in this thread and can be taken: how libraries write without a signal.
  mask_signal(SIG_BLOCK, SIGPIPE);
  CHECK_ERRNO(write(fd, g_buffer, 10), EPIPE);
  CHECK_EQ(g_signals, expected);
  CHECK(signal_pending(SIGPIPE));
  sigset_t pipe_set;
  sigemptyset(&pipe_set);
  sigaddset(&pipe_set, SIGPIPE);
  const struct timespec zero = {0, 0};
  CHECK_EQ(sigtimedwait(&pipe_set, nullptr, &zero), SIGPIPE);
  CHECK(!signal_pending(SIGPIPE));
  mask_signal(SIG_UNBLOCK, SIGPIPE);
  CHECK_EQ(g_signals, expected);
  signal(SIGPIPE, SIG_IGN);
  CHECK_ERRNO(write(fd, g_buffer, 10), EPIPE);
  CHECK_EQ(g_signals, expected);
  close(fd);
}

// Even a write of nothing is EPIPE then; a read of nothing at the end of file is no error.
void shut_zero_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  count_signals(SIGPIPE);
  CHECK_ERRNO(write(fd, g_buffer, 0), EPIPE);
  CHECK_EQ(g_signals, 1);
  CHECK_ERRNO(send(fd, g_buffer, 0, MSG_NOSIGNAL), EPIPE);
  peer.now(Do::kHalfClose);
  peer.await_events(POLLIN | POLLRDHUP | POLLHUP);
  CHECK_EQ(recv(fd, g_buffer, 0, 0), 0);
  expect_eof(fd);
  close(fd);
}

// Linux: data that arrives after shutdown(SHUT_RD) is still given; without data it is end of file.
void shut_read_data_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(100);
  CHECK_EQ(shutdown(fd, SHUT_RD), 0);
  peer.take(100);
  expect_eof(fd);
  peer.await_events(POLLIN | POLLRDHUP);
  peer.arrive(50);
  CHECK_EQ(recv(fd, g_buffer, 100, 0), 50);
  peer.took(g_buffer, 50);
  expect_eof(fd);
  peer.put(100);
  peer.drained();
  CHECK_EQ(shutdown(fd, SHUT_RD), 0);  // once more is no error
  CHECK_ERRNO(shutdown(fd, 7), EINVAL);
  close(fd);
}

// Both directions are shut down by us: reading ends, writing is EPIPE; shutting down again while the peer lives is no error.
void shut_both_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.put(100);
  CHECK_EQ(shutdown(fd, SHUT_RDWR), 0);
  CHECK_EQ(shutdown(fd, SHUT_RDWR), 0);
  expect_eof(fd);
  CHECK_ERRNO(send(fd, g_buffer, 1, MSG_NOSIGNAL), EPIPE);
  peer.await_events(POLLIN | POLLOUT | POLLHUP | POLLRDHUP);
  const Report report = peer.now(Do::kReadToEnd);
  CHECK_EQ(report.bytes, 100);
  CHECK_EQ(report.error, 0);
  close(fd);
}

// What had arrived before can be read, then there is an end. What the peer sends later is refused with a reset, which each end is told once,
// and never reaches us: a program that has seen the end would take it for bytes that follow at once.
void expect_refusal(int fd, Peer* peer, bool read_first) {
  if (read_first) {
    peer->take(600);
    CHECK_EQ(recv(fd, g_buffer, 2000, 0), 400);
    peer->took(g_buffer, 400);
    expect_eof(fd);
  }
  peer->now(Do::kSend, 7);  // not known there yet
  peer->await_events(POLLIN | POLLOUT | POLLERR | POLLHUP | POLLRDHUP);
  if (!read_first) {
    peer->take(400);
    peer->take(600);  // before the error
  }
  int unread = -1;
  CHECK_EQ(ioctl(fd, FIONREAD, &unread), 0);
  CHECK_EQ(unread, 0);
  CHECK_ERRNO(recv(fd, g_buffer, 100, 0), ECONNRESET);
  expect_eof(fd);
  struct iovec part = {g_buffer, 100};
  struct mmsghdr messages[2] = {};
  for (struct mmsghdr& m : messages) m.msg_hdr.msg_iov = &part, m.msg_hdr.msg_iovlen = 1;
  CHECK_EQ(recvmmsg(fd, messages, 2, 0, nullptr), 2);
  CHECK_EQ(messages[0].msg_len + messages[1].msg_len, 0u);
  CHECK_ERRNO(send(fd, g_buffer, 1, MSG_NOSIGNAL), EPIPE);
  CHECK_EQ(peer->now(Do::kTry).error, EPIPE);
  CHECK_EQ(peer->now(Do::kReadToEnd).error, 0);
  close(fd);
}

void shut_both_read_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(1000);
  CHECK_EQ(shutdown(fd, SHUT_RDWR), 0);
  expect_refusal(fd, &peer, true);
}

void shut_both_unread_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(1000);
  CHECK_EQ(shutdown(fd, SHUT_RDWR), 0);
  expect_refusal(fd, &peer, false);
}

// The same with a stream that has to go back to the socket in between (a child process inherits it).
void shut_both_spawn_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(1000);
  CHECK_EQ(shutdown(fd, SHUT_RDWR), 0);
  CHECK_EQ(fcntl(fd, F_SETFD, 0), 0);
  CHECK_EQ(system(":"), 0);
  expect_refusal(fd, &peer, false);
}

void shut_in_turn_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(1000);
  CHECK_EQ(shutdown(fd, SHUT_RD), 0);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  expect_refusal(fd, &peer, true);
}

// The peer closes with its last bytes unread there: an end in order.
void shut_both_closed_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(1000);
  CHECK_EQ(shutdown(fd, SHUT_RDWR), 0);
  peer.now(Do::kClose);
  peer.take(1000);
  expect_eof(fd);
  close(fd);
}

// ---- never connected --------------------------------------------------------------------------------------------------

void unconnected_server(int warm, const Sync& sync) {
  Peer peer(warm, sync);
  count_signals(SIGPIPE);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  CHECK(fd >= 0);
  int expected = 0;
  for (const ReadCall& c : kReadCalls) {
    note(c.name);
    CHECK_ERRNO(c.call(fd, g_buffer, 10), ENOTCONN);
  }
  for (const SendCall& c : kSendCalls) {
    note(c.name);
    CHECK_ERRNO(c.call(fd, g_buffer, 10), EPIPE);
    CHECK_EQ(g_signals, ++expected);
  }
  CHECK_EQ(read(fd, g_buffer, 0), 0);
  struct pollfd p = {fd, POLLIN | POLLOUT, 0};
  CHECK_EQ(poll(&p, 1, 0), 1);
  CHECK_EQ(p.revents, POLLOUT | POLLHUP);
  expect_not_connected(fd);
  close(fd);
  const int listener = listen_on("127.0.0.1");
  CHECK_ERRNO(recv(listener, g_buffer, 10, 0), ENOTCONN);
  CHECK_ERRNO(send(listener, g_buffer, 10, MSG_NOSIGNAL), EPIPE);
  close(listener);
  peer.finish();
}

// Calls on numbers that are no stream (any more) do not touch the stream that had the number.
void stale_number_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const int copy = fcntl(fd, F_DUPFD, 200);
  CHECK_EQ(close(copy), 0);
  for (const ReadCall& c : kReadCalls) {
    note(c.name);
    CHECK_ERRNO(c.call(copy, g_buffer, 10), EBADF);
    CHECK_ERRNO(c.call(-1, g_buffer, 10), EBADF);
  }
  for (const SendCall& c : kSendCalls) {
    note(c.name);
    CHECK_ERRNO(c.call(copy, g_buffer, 10), EBADF);
    CHECK_ERRNO(c.call(1 << 20, g_buffer, 10), EBADF);
  }
  peer.finish();
}

const Case kCases[] = {
    {"reset_recv", reset_recv_server, obedient_client},
    {"reset_send", reset_send_server, obedient_client},
    {"reset_so_error", reset_so_error_server, obedient_client},
    {"reset_unread", reset_unread_server, obedient_client},
    {"reset_unread_send", reset_unread_send_server, obedient_client},
    {"closed_send", closed_send_server, obedient_client},
    {"closed_unread_send", closed_unread_send_server, obedient_client},
    {"sigpipe", sigpipe_server, obedient_client},
    {"shut_zero", shut_zero_server, obedient_client},
    {"shut_read_data", shut_read_data_server, obedient_client},
    {"shut_both", shut_both_server, obedient_client},
    {"shut_both_read", shut_both_read_server, obedient_client},
    {"shut_both_unread", shut_both_unread_server, obedient_client},
    {"shut_both_spawn", shut_both_spawn_server, obedient_client},
    {"shut_in_turn", shut_in_turn_server, obedient_client},
    {"shut_both_closed", shut_both_closed_server, obedient_client},
    {"unconnected", unconnected_server, obedient_client},
    {"stale_number", stale_number_server, obedient_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
