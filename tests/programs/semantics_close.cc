// SPDX-License-Identifier: MIT
// Closing a TCP stream: half, both ends at once, with unread or unsent data, with SO_LINGER. `NAME list` prints the cases.
#include "peer.h"

using namespace testlib;

namespace {

char g_buffer[4096];

void set_linger(int fd, int on, int seconds) {
  const struct linger l = {on, seconds};
  CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l), 0);
}

void expect_report(const Report& report, uint64_t bytes, int error) {
  CHECK_EQ(report.bytes, bytes);
  CHECK_EQ(report.error, error);
}

// ---- half a stream ----------------------------------------------------------------------------------------------------

// We end our direction and go on reading for a long time; the peer does the same the other way round.
void half_ours_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.put(3000);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  expect_report(peer.now(Do::kReadToEnd), 3000, 0);
  struct pollfd p = {fd, POLLIN | POLLOUT | POLLRDHUP, 0};
  CHECK_EQ(poll(&p, 1, 0), 1);
  CHECK_EQ(p.revents, POLLOUT);  // "writable": it would fail at once
  for (int i = 0; i < 50; i++) {
    peer.start(Do::kSend, 2000);
    peer.take(2000);
  }
  peer.now(Do::kHalfClose);
  peer.await_events(POLLIN | POLLOUT | POLLRDHUP | POLLHUP);
  expect_eof(fd);
  close(fd);
}

void half_theirs_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(1000);
  peer.now(Do::kHalfClose);
  for (int i = 0; i < 50; i++) {
    peer.put(2000);
    peer.drained();
    if (i == 25) peer.take(1000);
  }
  expect_eof(fd);
  const uint64_t full = peer.fill();
  CHECK(full > 0);
  peer.drained();
  peer.put(10);
  close(fd);
  expect_report(peer.now(Do::kReadToEnd), 10, 0);
}

// A thread asleep in recv is woken by the peer's shutdown, and by our own.
void half_wakes_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.when_asleep(Do::kHalfClose);
  expect_eof(fd);
  peer.put(100);
  peer.drained();
  close(fd);
}

// ---- at once ----------------------------------------------------------------------------------------------------------

// Both ends end their directions at the same time, with data on the way in both.
void both_at_once(int fd, const Sync& sync, uint64_t mine, uint64_t theirs) {
  send_pattern(fd, mine, 0, 1000);
  sync.meet();
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  const Report report = read_to_end(fd, theirs, 0);
  expect_report(report, 1000, 0);
  sync.meet();
  CHECK_EQ(close(fd), 0);
}

void at_once_server(int fd, const Sync& sync) { both_at_once(fd, sync, kDown, kUp); }
void at_once_client(int fd, const Sync& sync) { both_at_once(fd, sync, kUp, kDown); }

// Both just close, with nothing unread.
void close_at_once(int fd, const Sync& sync) {
  sync.meet();
  CHECK_EQ(close(fd), 0);
  sync.meet();
}

// ---- a reset by close() -----------------------------------------------------------------------------------------------

// The peer closes with our data unread while we sleep in recv.
void unread_blocked_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.put(1000);
  peer.when_asleep(Do::kClose);
  CHECK_ERRNO(recv(fd, g_buffer, 1, 0), ECONNRESET);
  expect_eof(fd);
  close(fd);
}

// The same while we sleep in poll.
void unread_poll_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.put(1000);
  peer.when_asleep(Do::kClose);
  struct pollfd p = {fd, POLLIN, 0};
  CHECK_EQ(poll(&p, 1, 5000), 1);
  CHECK_EQ(p.revents, POLLIN | POLLERR | POLLHUP);
  CHECK_ERRNO(recv(fd, g_buffer, 1, 0), ECONNRESET);
  close(fd);
}

// The same with unread data at our side as well: ours can still be read, then comes the error.
void unread_both_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.put(1000);
  peer.arrive(1000);
  peer.now(Do::kClose);
  peer.await_events(POLLIN | POLLERR | POLLHUP);
  peer.take(1000);
  CHECK_ERRNO(recv(fd, g_buffer, 1, 0), ECONNRESET);
  expect_eof(fd);
  close(fd);
}

// We sleep in send, the buffers being full, when the peer closes with everything unread.
void unread_sender_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.fill();
  peer.when_asleep(Do::kClose);
  ssize_t n;
  do n = send(fd, g_buffer, sizeof g_buffer, MSG_NOSIGNAL);
  while (n > 0);  // room that TCP made by itself
  CHECK_EQ(n, -1);
  CHECK(errno == ECONNRESET);
  CHECK_ERRNO(send(fd, g_buffer, 1, MSG_NOSIGNAL), EPIPE);
  close(fd);
}

// We are the end that closes with unread data.
void unread_ours_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(10);
  peer.put(100);
  CHECK_EQ(close(fd), 0);
  expect_report(peer.now(Do::kReadToEnd), 100, ECONNRESET);
}

// shutdown(SHUT_WR) first: unread data at close() is a reset even so, after the end of file was seen.
void unread_after_shut_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.put(100);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  expect_report(peer.now(Do::kReadToEnd), 100, 0);
  peer.arrive(10);
  CHECK_EQ(close(fd), 0);
  expect_report(peer.now(Do::kReadToEnd), 0, 0);  // SOCK_DONE: it stays an end of file
}

// ---- SO_LINGER --------------------------------------------------------------------------------------------------------

// Zero seconds: a reset, and what the peer had not received is lost; what it had can be read.
void linger_zero_unread_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.put(100);
  set_linger(fd, 1, 0);
  CHECK_EQ(close(fd), 0);
  expect_report(peer.now(Do::kReadToEnd), 100, ECONNRESET);
}

void linger_zero_full_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const uint64_t filled = peer.fill();
  set_linger(fd, 1, 0);
  CHECK_EQ(close(fd), 0);
  const Report report = peer.now(Do::kReadToEnd);
  CHECK(report.bytes <= filled);
  CHECK_EQ(report.error, ECONNRESET);
}

// Ten seconds, but the peer takes everything sooner: close() returns then, and nothing is lost.
void linger_drained_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const uint64_t filled = peer.fill();
  set_linger(fd, 1, 10);
  const int64_t start = now_ms();
  peer.when_asleep(Do::kReadToEnd);
  CHECK_EQ(close(fd), 0);
  CHECK(now_ms() - start < 9000);
  expect_report(peer.settle(), filled, 0);
}

// One second, and the peer does not read: close() takes that long; the bytes are delivered all the same.
// (What fits into the peer's window is acknowledged, and close() does not wait for the peer to read it. A ring holds less than that; the
// sender insists, which makes the full ring give way to TCP.)
void linger_timeout_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  uint64_t filled = peer.fill();
  sleep_ms(600);
  filled += peer.fill_more();
  set_linger(fd, 1, 1);
  const int64_t start = now_ms();
  CHECK_EQ(close(fd), 0);
  CHECK(now_ms() - start >= 950);
  expect_report(peer.now(Do::kReadToEnd), filled, 0);
}

// Lingering with nothing left to send: no wait, an ordinary end.
void linger_empty_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.put(100);
  peer.drained();
  set_linger(fd, 1, 10);
  const int64_t start = now_ms();
  peer.start(Do::kReadToEnd);
  CHECK_EQ(close(fd), 0);
  CHECK(now_ms() - start < 9000);
  expect_report(peer.settle(), 0, 0);
}

// Switched off again: close() returns at once and the bytes arrive in the background.
void linger_off_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const uint64_t filled = peer.fill();
  set_linger(fd, 1, 0);
  set_linger(fd, 0, 0);
  CHECK_EQ(close(fd), 0);
  expect_report(peer.now(Do::kReadToEnd), filled, 0);
}

// A reset by SO_LINGER 0 happens with the last descriptor, not with the first.
void linger_dup_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  set_linger(fd, 1, 0);
  const int copy = dup(fd);
  CHECK(copy >= 0);
  CHECK_EQ(close(copy), 0);
  peer.put(100);
  peer.drained();
  CHECK_EQ(close(fd), 0);
  expect_report(peer.now(Do::kReadToEnd), 0, ECONNRESET);
}

const Case kCases[] = {
    {"half_ours", half_ours_server, obedient_client},
    {"half_theirs", half_theirs_server, obedient_client},
    {"half_wakes", half_wakes_server, obedient_client},
    {"at_once", at_once_server, at_once_client},
    {"close_at_once", close_at_once, close_at_once},
    {"unread_blocked", unread_blocked_server, obedient_client},
    {"unread_poll", unread_poll_server, obedient_client},
    {"unread_both", unread_both_server, obedient_client},
    {"unread_sender", unread_sender_server, obedient_client},
    {"unread_ours", unread_ours_server, obedient_client},
    {"unread_after_shut", unread_after_shut_server, obedient_client},
    {"linger_zero_unread", linger_zero_unread_server, obedient_client},
    {"linger_zero_full", linger_zero_full_server, obedient_client},
    {"linger_drained", linger_drained_server, obedient_client},
    {"linger_timeout", linger_timeout_server, obedient_client},
    {"linger_empty", linger_empty_server, obedient_client},
    {"linger_off", linger_off_server, obedient_client},
    {"linger_dup", linger_dup_server, obedient_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
