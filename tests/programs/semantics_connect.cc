// SPDX-License-Identifier: MIT
// connect() and accept() in unusual ways; the stream the case is given stays in use beside them. `NAME list` prints the cases.
#include <sys/epoll.h>

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

int nonblocking_socket() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  CHECK(fd >= 0);
  return fd;
}

void await(int fd, short events) {
  struct pollfd p = {fd, events, 0};
  CHECK_EQ(poll(&p, 1, 5000), 1);
  CHECK((p.revents & events) == events);
}

// Round trips between two descriptors of one thread (or one with itself): both are used as they come out of connect and accept.
void talk(int a, int b, int trips = 60) {
  for (uint64_t offset = 0; offset < static_cast<uint64_t>(trips) * 100; offset += 100) {
    send_pattern(a, kUp, offset, 100);
    recv_pattern(b, kUp, offset, 100);
    send_pattern(b, kDown, offset, 100);
    recv_pattern(a, kDown, offset, 100);
  }
}

// ---- non-blocking -----------------------------------------------------------------------------------------------------

void nonblocking_server(int warm, const Sync& sync) {
  Peer peer(warm, sync);
  const int listener = listen_on("127.0.0.1");
  Address a = make_address("127.0.0.1", port_of(listener));
  const int fd = nonblocking_socket();
  CHECK_ERRNO(connect(fd, a.get(), a.length), EINPROGRESS);
  await(fd, POLLOUT);
  CHECK_EQ(so_error(fd), 0);
  CHECK_EQ(connect(fd, a.get(), a.length), 0);  // tells of its success once
  CHECK_ERRNO(connect(fd, a.get(), a.length), EISCONN);
  CHECK_ERRNO(recv(fd, g_buffer, 1, 0), EAGAIN);
  const int other = accept_one(listener);
  set_nonblocking(fd, false);
  talk(fd, other);
  CHECK_ERRNO(connect(fd, a.get(), a.length), EISCONN);
  CHECK_ERRNO(connect(other, a.get(), a.length), EISCONN);
  close(other);
  expect_eof(fd);
  close(fd);
  close(listener);
  peer.finish();
}

void refused_server(int warm, const Sync& sync) {
  Peer peer(warm, sync);
  const int listener = listen_on("127.0.0.1");
  Address a = make_address("127.0.0.1", port_of(listener));
  close(listener);
  // Blocking: the same socket may try again.
  const int blocking = socket(AF_INET, SOCK_STREAM, 0);
  CHECK_ERRNO(connect(blocking, a.get(), a.length), ECONNREFUSED);
  CHECK_ERRNO(connect(blocking, a.get(), a.length), ECONNREFUSED);
  CHECK_EQ(so_error(blocking), 0);
  close(blocking);
  // Non-blocking: the error waits for whoever asks.
  const int fd = nonblocking_socket();
  CHECK_ERRNO(connect(fd, a.get(), a.length), EINPROGRESS);
  await(fd, POLLOUT | POLLERR | POLLHUP);
  CHECK_EQ(so_error(fd), ECONNREFUSED);
  CHECK_EQ(so_error(fd), 0);
  CHECK_ERRNO(connect(fd, a.get(), a.length), ECONNABORTED);  // the attempt is over (Linux)
  CHECK_ERRNO(connect(fd, a.get(), a.length), EINPROGRESS);
  await(fd, POLLERR);
  CHECK_ERRNO(recv(fd, g_buffer, 1, 0), ECONNREFUSED);
  expect_eof(fd);
  close(fd);
  peer.finish();
}

// A refused socket connects to somebody who listens later.
void retry_server(int warm, const Sync& sync) {
  Peer peer(warm, sync);
  const int first = listen_on("127.0.0.1");
  const int port = port_of(first);
  close(first);
  Address a = make_address("127.0.0.1", port);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  CHECK_ERRNO(connect(fd, a.get(), a.length), ECONNREFUSED);
  const int listener = listen_on("127.0.0.1", port);
  CHECK_EQ(connect(fd, a.get(), a.length), 0);
  const int other = accept_one(listener);
  talk(fd, other);
  close(fd);
  expect_eof(other);
  close(other);
  close(listener);
  peer.finish();
}

// A queue that takes no more connections: connecting hangs, says EALREADY, and can be given up.
struct FullListener {
  int listener, waiting[16];
  int count = 0;
  Address address;
  FullListener() : listener(listen_on("127.0.0.1", 0, 0)), address(make_address("127.0.0.1", port_of(listener))) {
    for (bool full = false; !full;) {
      CHECK(count < 16);
      const int fd = nonblocking_socket();
      CHECK_ERRNO(connect(fd, address.get(), address.length), EINPROGRESS);
      struct pollfd p = {fd, POLLOUT, 0};
      full = poll(&p, 1, 100) == 0;
      waiting[count++] = fd;
    }
  }
  ~FullListener() {
    for (int i = 0; i < count; i++) close(waiting[i]);
    close(listener);
  }
  FullListener(const FullListener&) = delete;
  FullListener& operator=(const FullListener&) = delete;
  int last() const { return waiting[count - 1]; }
};

void pending_server(int warm, const Sync& sync) {
  Peer peer(warm, sync);
  FullListener full;
  const int fd = full.last();
  CHECK_ERRNO(connect(fd, full.address.get(), full.address.length), EALREADY);
  CHECK_ERRNO(recv(fd, g_buffer, 1, 0), EAGAIN);
  CHECK_ERRNO(send(fd, g_buffer, 1, MSG_NOSIGNAL), EAGAIN);
  CHECK_EQ(so_error(fd), 0);
  struct pollfd p = {fd, POLLIN | POLLOUT, 0};
  CHECK_EQ(poll(&p, 1, 0), 0);
  // SO_SNDTIMEO ends a blocking one.
  const struct timeval tv = {0, 100000};
  const int blocking = socket(AF_INET, SOCK_STREAM, 0);
  CHECK_EQ(setsockopt(blocking, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv), 0);
  const int64_t start = now_ms();
  CHECK_ERRNO(connect(blocking, full.address.get(), full.address.length), EINPROGRESS);
  CHECK(now_ms() - start >= 99);
  close(blocking);
  peer.finish();
}

// ---- one socket alone -------------------------------------------------------------------------------------------------

// A socket bound to a port that connects to that port is connected to itself (simultaneous open).
void self_server(int warm, const Sync& sync) {
  Peer peer(warm, sync);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  Address a = make_address("127.0.0.1", 0);
  CHECK_EQ(bind(fd, a.get(), a.length), 0);
  a = make_address("127.0.0.1", port_of(fd));
  CHECK_EQ(connect(fd, a.get(), a.length), 0);
  Address name;
  name.length = sizeof name.storage;
  CHECK_EQ(getpeername(fd, name.get(), &name.length), 0);
  CHECK_EQ(memcmp(&name.storage, &a.storage, sizeof(struct sockaddr_in)), 0);
  CHECK_ERRNO(recv(fd, g_buffer, 1, MSG_DONTWAIT), EAGAIN);
  talk(fd, fd);  // what it sends it receives
  for (uint64_t offset = 0; offset < 200000; offset += 1000) {
    send_pattern(fd, kUp, offset, 1000);
    recv_pattern(fd, kUp, offset, 1000);
  }
  struct pollfd p = {fd, POLLIN, 0};
  CHECK_EQ(poll(&p, 1, 0), 0);
  CHECK_EQ(send(fd, "x", 1, MSG_NOSIGNAL), 1);
  CHECK_EQ(poll(&p, 1, 5000), 1);
  CHECK_EQ(recv(fd, g_buffer, 10, 0), 1);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  expect_eof(fd);
  CHECK_ERRNO(send(fd, "x", 1, MSG_NOSIGNAL), EPIPE);
  close(fd);
  peer.finish();
}

// connect() with AF_UNSPEC dissolves the connection: a reset for the peer, and the socket can be used again.
void unspec_server(int warm, const Sync& sync) {
  Peer peer(warm, sync);
  const int listener = listen_on("127.0.0.1");
  Address a = make_address("127.0.0.1", port_of(listener)), nowhere;
  nowhere.storage.ss_family = AF_UNSPEC;
  nowhere.length = sizeof(struct sockaddr_in);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(connect(fd, a.get(), a.length), 0);
    const int other = accept_one(listener);
    talk(fd, other);
    CHECK_EQ(connect(fd, nowhere.get(), nowhere.length), 0);
    await(other, POLLIN | POLLERR | POLLHUP);
    CHECK_ERRNO(recv(other, g_buffer, 1, 0), ECONNRESET);
    close(other);
    CHECK_ERRNO(recv(fd, g_buffer, 1, 0), ECONNRESET);  // our own doing, but Linux says so
    CHECK_ERRNO(recv(fd, g_buffer, 1, 0), ENOTCONN);
    CHECK_ERRNO(send(fd, g_buffer, 1, MSG_NOSIGNAL), EPIPE);
    Address name;
    name.length = sizeof name.storage;
    CHECK_ERRNO(getpeername(fd, name.get(), &name.length), ENOTCONN);
  }
  close(fd);
  close(listener);
  peer.finish();
}

// The given, warm stream is dissolved.
void unspec_warm_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.put(100);
  peer.drained();
  Address nowhere;
  nowhere.storage.ss_family = AF_UNSPEC;
  nowhere.length = sizeof(struct sockaddr_in);
  CHECK_EQ(connect(fd, nowhere.get(), nowhere.length), 0);
  const Report report = peer.now(Do::kReadToEnd);
  CHECK_EQ(report.bytes, 0);
  CHECK_EQ(report.error, ECONNRESET);
  CHECK_ERRNO(recv(fd, g_buffer, 1, 0), ECONNRESET);
  CHECK_ERRNO(recv(fd, g_buffer, 1, 0), ENOTCONN);
  close(fd);
}

// ---- accept -----------------------------------------------------------------------------------------------------------

void accept_server(int warm, const Sync& sync) {
  Peer peer(warm, sync);
  const int listener = listen_on("127.0.0.1");
  set_nonblocking(listener);
  CHECK_ERRNO(accept(listener, nullptr, nullptr), EAGAIN);
  const int fd = connect_to("127.0.0.1", port_of(listener));
  send_pattern(fd, kUp, 0, 100);  // before anybody has accepted
  await(listener, POLLIN);
  Address a;
  a.length = sizeof a.storage;
  const int other = accept4(listener, a.get(), &a.length, SOCK_NONBLOCK | SOCK_CLOEXEC);
  CHECK(other >= 0);
  CHECK_EQ(a.length, sizeof(struct sockaddr_in));
  CHECK_EQ(fcntl(other, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
  CHECK_EQ(fcntl(other, F_GETFD), FD_CLOEXEC);
  set_nonblocking(other, false);
  recv_pattern(other, kUp, 0, 100);
  talk(fd, other);
  CHECK_ERRNO(accept(fd, nullptr, nullptr), EINVAL);
  CHECK_ERRNO(accept4(listener, nullptr, nullptr, hidden(1)), EINVAL);
  CHECK_ERRNO(accept(4000, nullptr, nullptr), EBADF);
  close(fd);
  close(other);
  // Connected, used and gone before it was accepted.
  const int early = connect_to("127.0.0.1", port_of(listener));
  send_pattern(early, kUp, 0, 500);
  close(early);
  await(listener, POLLIN);
  const int late = accept_one(listener);
  recv_pattern(late, kUp, 0, 500);
  expect_eof(late);
  close(late);
  close(listener);
  peer.finish();
}

const Case kCases[] = {
    {"nonblocking", nonblocking_server, obedient_client}, {"refused", refused_server, obedient_client},
    {"retry", retry_server, obedient_client},             {"pending", pending_server, obedient_client},
    {"self", self_server, obedient_client},               {"unspec", unspec_server, obedient_client},
    {"unspec_warm", unspec_warm_server, obedient_client}, {"accept", accept_server, obedient_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
