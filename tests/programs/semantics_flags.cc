// SPDX-License-Identifier: MIT
// The flags of recv and send on a TCP stream, and urgent data. `NAME list` prints the cases.
#include <sys/select.h>

#include <initializer_list>

#include "peer.h"

using namespace testlib;

namespace {

char g_buffer[100000];

// ---- MSG_PEEK ---------------------------------------------------------------------------------------------------------

// MSG_PEEK | MSG_WAITALL waits for all the bytes although none of them is taken.
void peek_waitall_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  for (int i = 0; i < 3; i++) peer.when_asleep(Do::kSend, 100);
  CHECK_EQ(recv(fd, g_buffer, 300, MSG_PEEK | MSG_WAITALL), 300);
  peer.look(g_buffer, 300);
  CHECK_EQ(recv(fd, g_buffer, 301, MSG_PEEK | MSG_WAITALL | MSG_DONTWAIT), 300);
  peer.take(299);
  CHECK_EQ(recv(fd, g_buffer, 300, MSG_PEEK), 1);  // without WAITALL what there is
  peer.when_asleep(Do::kSend, 10);
  peer.when_asleep(Do::kHalfClose);
  CHECK_EQ(recv(fd, g_buffer, 300, MSG_PEEK | MSG_WAITALL), 11);  // end of file ends the wait
  peer.look(g_buffer, 11);
  CHECK_EQ(recv(fd, g_buffer, 300, MSG_PEEK | MSG_WAITALL), 11);
  peer.take(11);
  CHECK_EQ(recv(fd, g_buffer, 300, MSG_PEEK | MSG_WAITALL), 0);
  expect_eof(fd);
  close(fd);
}

// Peeking with every call, through several entries, again and again, while more comes.
void peek_vector_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  char a[70], b[200];
  struct iovec iov[] = {{a, sizeof a}, {nullptr, 0}, {b, sizeof b}};
  struct msghdr message = {};
  message.msg_iov = iov;
  message.msg_iovlen = 3;
  for (size_t unread = 50; unread <= 250; unread += 50) {
    peer.arrive(50);
    CHECK_EQ(recvmsg(fd, &message, MSG_PEEK), unread);
    peer.look(a, unread < 70 ? unread : 70);
    if (unread > 70) peer.look(b, unread - 70, 70);
    CHECK_EQ(recvfrom(fd, g_buffer, 20, MSG_PEEK, nullptr, nullptr), 20);
    peer.look(g_buffer, 20);
  }
  struct mmsghdr messages[2] = {{message, 0}, {message, 0}};
  CHECK_EQ(recvmmsg(fd, messages, 2, MSG_PEEK, nullptr), 2);  // both see the same
  CHECK_EQ(messages[0].msg_len, 250);
  CHECK_EQ(messages[1].msg_len, 250);
  peer.take(250);
  peer.finish();
}

// Data, part of it peeked at, then a reset: data and error come as if nobody had peeked.
void peek_reset_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(100);
  CHECK_EQ(recv(fd, g_buffer, 50, MSG_PEEK), 50);
  peer.now(Do::kReset);
  peer.await_events(POLLERR);
  CHECK_EQ(recv(fd, g_buffer, 200, MSG_PEEK), 100);
  peer.take(100);
  CHECK_ERRNO(recv(fd, g_buffer, 1, MSG_PEEK), ECONNRESET);
  CHECK_EQ(recv(fd, g_buffer, 1, MSG_PEEK), 0);
  close(fd);
}

// ---- MSG_WAITALL ------------------------------------------------------------------------------------------------------

void waitall_vector_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  char a[150], b[100];
  struct iovec iov[] = {{a, sizeof a}, {b, sizeof b}};
  struct msghdr message = {};
  message.msg_iov = iov;
  message.msg_iovlen = 2;
  for (int i = 0; i < 5; i++) peer.when_asleep(Do::kSend, 50);
  CHECK_EQ(recvmsg(fd, &message, MSG_WAITALL), 250);
  peer.took(a, 150);
  peer.took(b, 100);
  peer.when_asleep(Do::kSend, 60);
  peer.when_asleep(Do::kSend, 40);
  CHECK_EQ(recvfrom(fd, g_buffer, 100, MSG_WAITALL, nullptr, nullptr), 100);
  peer.took(g_buffer, 100);
  peer.arrive(30);
  CHECK_EQ(recv(fd, g_buffer, 100, MSG_WAITALL | MSG_DONTWAIT), 30);
  peer.took(g_buffer, 30);
  CHECK_ERRNO(recv(fd, g_buffer, 100, MSG_WAITALL | MSG_DONTWAIT), EAGAIN);
  peer.finish();
}

// A signal after some bytes, with and without SA_RESTART: what has come is given, nothing is lost.
void waitall_signal_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const pthread_t self = pthread_self();
  for (const int flags : {0, SA_RESTART}) {
    count_signals(SIGUSR1, flags);
    peer.arrive(20);
    WhenAsleep later([self] { pthread_kill(self, SIGUSR1); });
    CHECK_EQ(recv(fd, g_buffer, 100, MSG_WAITALL), 20);
    peer.took(g_buffer, 20);
    CHECK_EQ(g_signals, 1);
  }
  peer.finish();
}

// A reset after some bytes: the bytes first, the error next.
void waitall_reset_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(20);
  peer.when_asleep(Do::kReset);
  CHECK_EQ(recv(fd, g_buffer, 100, MSG_WAITALL), 20);
  peer.took(g_buffer, 20);
  CHECK_ERRNO(recv(fd, g_buffer, 100, MSG_WAITALL), ECONNRESET);
  CHECK_EQ(recv(fd, g_buffer, 100, MSG_WAITALL), 0);
  close(fd);
}

// ---- MSG_TRUNC --------------------------------------------------------------------------------------------------------

// On TCP bytes are thrown away without being copied (tcp(7)).
void trunc_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(100);
  memset(g_buffer, 'x', 100);
  CHECK_EQ(recv(fd, g_buffer, 30, MSG_TRUNC), 30);
  for (int i = 0; i < 100; i++) CHECK_EQ(g_buffer[i], 'x');
  peer.count(30);
  CHECK_EQ(recv(fd, g_buffer, 20, MSG_TRUNC | MSG_PEEK), 20);  // takes nothing, copies nothing
  for (int i = 0; i < 100; i++) CHECK_EQ(g_buffer[i], 'x');
  peer.take(20);
  CHECK_EQ(recv(fd, hidden(static_cast<char*>(nullptr)), 1000, MSG_TRUNC), 50);
  peer.count(50);
  CHECK_ERRNO(recv(fd, g_buffer, 20, MSG_TRUNC | MSG_DONTWAIT), EAGAIN);
  peer.when_asleep(Do::kSend, 40);
  peer.when_asleep(Do::kSend, 40);
  CHECK_EQ(recv(fd, hidden(static_cast<char*>(nullptr)), 80, MSG_TRUNC | MSG_WAITALL), 80);
  peer.count(80);
  peer.finish();
}

// ---- flags of send ----------------------------------------------------------------------------------------------------

// MSG_MORE and TCP_CORK may hold bytes back, but not for ever, and never change their order.
void more_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  for (const size_t part : {size_t{10}, size_t{20}, size_t{30}}) {
    peer.prepare(g_buffer, part);
    CHECK_EQ(send(fd, g_buffer, part, MSG_MORE), part);
    peer.wrote(part);
  }
  peer.put(10);
  peer.drained();
  peer.prepare(g_buffer, 10);
  CHECK_EQ(send(fd, g_buffer, 10, MSG_MORE), 10);
  peer.wrote(10);
  peer.drained();  // without anything that follows it
  int cork = 1;
  CHECK_EQ(setsockopt(fd, IPPROTO_TCP, TCP_CORK, &cork, sizeof cork), 0);
  peer.put(10);
  peer.put(20);
  cork = 0;
  CHECK_EQ(setsockopt(fd, IPPROTO_TCP, TCP_CORK, &cork, sizeof cork), 0);
  peer.drained();
  peer.prepare(g_buffer, 10);
  CHECK_EQ(send(fd, g_buffer, 10, MSG_MORE), 10);
  peer.wrote(10);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  const Report report = peer.now(Do::kReadToEnd);
  CHECK_EQ(report.bytes, 10);
  CHECK_EQ(report.error, 0);
  close(fd);
}

// Flags that mean nothing here, or only with an option that is not set.
void odd_flags_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const int flags[] = {MSG_EOR, MSG_CONFIRM, MSG_DONTROUTE, MSG_ZEROCOPY, MSG_NOSIGNAL | MSG_MORE | MSG_DONTWAIT};
  for (const int flag : flags) {
    peer.prepare(g_buffer, 100);
    CHECK_EQ(send(fd, g_buffer, 100, flag), 100);
    peer.wrote(100);
  }
  peer.drained();
  peer.arrive(100);
  CHECK_ERRNO(recv(fd, g_buffer, 100, MSG_ERRQUEUE), EAGAIN);
  CHECK_EQ(recv(fd, g_buffer, 10, MSG_CMSG_CLOEXEC), 10);
  peer.took(g_buffer, 10);
  CHECK_EQ(recv(fd, g_buffer, 10, MSG_NOSIGNAL), 10);
  peer.took(g_buffer, 10);
  CHECK_EQ(recv(fd, g_buffer, 10, MSG_WAITFORONE), 10);
  peer.took(g_buffer, 10);
  peer.take(70);
  peer.finish();
}

// ---- urgent data ------------------------------------------------------------------------------------------------------

int at_mark(int fd) {
  const int mark = sockatmark(fd);
  int by_ioctl = -1;
  CHECK_EQ(ioctl(fd, SIOCATMARK, &by_ioctl), 0);
  CHECK_EQ(by_ioctl, mark);
  return mark;
}

// The urgent byte is out of line: a normal read stops in front of it and goes on behind it.
void oob_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  char urgent = 0;
  CHECK_ERRNO(recv(fd, &urgent, 1, MSG_OOB), EINVAL);
  CHECK_EQ(at_mark(fd), 0);
  peer.now(Do::kSend, 10);
  peer.now(Do::kUrgent);
  peer.now(Do::kSend, 10);
  peer.await_events(POLLPRI);
  fd_set excepts;
  FD_ZERO(&excepts);
  FD_SET(fd, &excepts);
  struct timeval zero = {0, 0};
  CHECK_EQ(select(fd + 1, nullptr, nullptr, &excepts, &zero), 1);
  CHECK(FD_ISSET(fd, &excepts));
  CHECK_EQ(at_mark(fd), 0);
  CHECK_EQ(recv(fd, &urgent, 1, MSG_OOB | MSG_PEEK), 1);
  CHECK_EQ(recv(fd, &urgent, 1, MSG_OOB), 1);
  peer.look(&urgent, 1, 10);
  CHECK_ERRNO(recv(fd, &urgent, 1, MSG_OOB), EINVAL);  // taken
  CHECK_EQ(recv(fd, g_buffer, 100, 0), 10);            // up to the mark, whatever is asked for
  peer.took(g_buffer, 10);
  CHECK_EQ(at_mark(fd), 1);
  peer.count(1);
  peer.take(10);
  CHECK_EQ(at_mark(fd), 0);
  struct pollfd p = {fd, POLLPRI, 0};
  CHECK_EQ(poll(&p, 1, 0), 0);
  peer.finish();
}

// SO_OOBINLINE: the byte is where it was sent, and the mark in front of it.
void oob_inline_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const int one = 1;
  CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &one, sizeof one), 0);
  peer.now(Do::kSend, 10);
  peer.now(Do::kUrgent);
  peer.now(Do::kSend, 10);
  peer.await_events(POLLPRI | POLLIN);
  char urgent;
  CHECK_ERRNO(recv(fd, &urgent, 1, MSG_OOB), EINVAL);
  CHECK_EQ(recv(fd, g_buffer, 100, 0), 10);
  peer.took(g_buffer, 10);
  CHECK_EQ(at_mark(fd), 1);
  peer.take(11);
  CHECK_EQ(at_mark(fd), 0);
  peer.finish();
}

// Urgent data sent by the preloaded reader itself, and SIGURG for its owner.
void oob_sigurg_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  count_signals(SIGURG, SA_RESTART);
  CHECK_EQ(fcntl(fd, F_SETOWN, getpid()), 0);
  peer.now(Do::kUrgent);
  peer.await_events(POLLPRI);
  const int64_t deadline = now_ms() + 5000;
  while (g_signals == 0) {
    CHECK(now_ms() < deadline);
    sleep_ms(1);
  }
  char urgent;
  CHECK_EQ(recv(fd, &urgent, 1, MSG_OOB), 1);
  peer.took(&urgent, 1);
  peer.now(Do::kSend, 100);
  peer.take(100);
  peer.finish();
}

// Urgent data wakes a thread asleep in poll that waits for nothing else.
void oob_wakes_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  struct pollfd p = {fd, POLLPRI, 0};
  peer.when_asleep(Do::kSend, 10);
  peer.when_asleep(Do::kUrgent);
  CHECK_EQ(poll(&p, 1, 5000), 1);
  CHECK_EQ(p.revents, POLLPRI);
  peer.settle();
  peer.take(10);
  char urgent;
  CHECK_EQ(recv(fd, &urgent, 1, MSG_OOB), 1);
  peer.took(&urgent, 1);
  peer.finish();
}

const Case kCases[] = {
    {"peek_waitall", peek_waitall_server, obedient_client},
    {"peek_vector", peek_vector_server, obedient_client},
    {"peek_reset", peek_reset_server, obedient_client},
    {"waitall_vector", waitall_vector_server, obedient_client},
    {"waitall_signal", waitall_signal_server, obedient_client},
    {"waitall_reset", waitall_reset_server, obedient_client},
    {"trunc", trunc_server, obedient_client},
    {"more", more_server, obedient_client},
    {"odd_flags", odd_flags_server, obedient_client},
    {"oob", oob_server, obedient_client},
    {"oob_inline", oob_inline_server, obedient_client},
    {"oob_sigurg", oob_sigurg_server, obedient_client},
    {"oob_wakes", oob_wakes_server, obedient_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
