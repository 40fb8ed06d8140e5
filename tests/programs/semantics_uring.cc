// SPDX-License-Identifier: MIT
// io_uring moves bytes of a socket without any call that could be seen: from its setup on all streams of the process have to be
// on TCP. `NAME list` prints the cases. In those called before_… the client sets it up before it connects.
#include <poll.h>

#include "case_tools.h"
#include "uring.h"

using namespace testlib;

namespace {

Uring* g_before;  // set up before the connection was made

void send_through(Uring* ring, uint8_t operation, int fd, uint64_t offset) {
  char data[kTripBytes];
  pattern_fill(data, sizeof data, kUp, offset);
  for (size_t done = 0; done < sizeof data;) {
    const int n = ring->transfer(operation, fd, data + done, sizeof data - done);
    CHECK(n > 0);
    done += static_cast<size_t>(n);
  }
}

void recv_through(Uring* ring, uint8_t operation, int fd, uint64_t seed, uint64_t offset, size_t length = kTripBytes) {
  char data[kUnread];
  CHECK(length <= sizeof data);
  for (size_t done = 0; done < length;) {
    const int n = ring->transfer(operation, fd, data + done, length - done);
    CHECK(n > 0);
    done += static_cast<size_t>(n);
  }
  pattern_check(data, length, seed, offset);
}

void exchange_through(Uring* ring, uint8_t send_operation, uint8_t recv_operation, int fd, uint64_t* offset) {
  for (int i = 0; i < kTrips; i++) {
    send_through(ring, send_operation, fd, *offset);
    recv_through(ring, recv_operation, fd, kUp, *offset);
    *offset += kTripBytes;
  }
}

void down_unread_server(int fd, const Sync& sync) {
  send_pattern(fd, kDown, 0, kUnread);
  sync.post();
  echo_server(fd, sync);
}

// Set up while bytes are unread; they are the first that the ring of the kernel reads.
template <int send_operation, int recv_operation>
void unread_client(int fd, const Sync& sync) {
  sync.wait();
  Uring ring;
  recv_through(&ring, recv_operation, fd, kDown, 0, kUnread);
  uint64_t offset = 0;
  exchange_through(&ring, send_operation, recv_operation, fd, &offset);
  exchange(fd, &offset);
  finish(fd, sync);
}

// Whoever set it up need not use it for this stream: nothing is on a ring any more all the same.
void unused_client(int fd, const Sync& sync) {
  sync.wait();
  const Uring ring;
  recv_pattern(fd, kDown, 0, kUnread);
  uint64_t offset = 0;
  exchange(fd, &offset, 10 * kTrips);
  finish(fd, sync);
}

// One direction through io_uring, the other through libc.
template <bool ring_sends>
void mixed_client(int fd, const Sync& sync) {
  sync.wait();
  Uring ring;
  recv_pattern(fd, kDown, 0, kUnread);
  uint64_t offset = 0;
  for (int i = 0; i < kTrips; i++) {
    if (ring_sends) send_through(&ring, IORING_OP_SEND, fd, offset);
    else send_pattern(fd, kUp, offset, kTripBytes);
    if (ring_sends) recv_pattern(fd, kUp, offset, kTripBytes);
    else recv_through(&ring, IORING_OP_RECV, fd, kUp, offset);
    offset += kTripBytes;
  }
  finish(fd, sync);
}

void poll_client(int fd, const Sync& sync) {
  sync.wait();
  Uring ring;
  uint64_t offset = 0;
  for (int i = 0; i < kTrips; i++) {
    struct io_uring_sqe* e = ring.entry(IORING_OP_POLL_ADD, fd);
    e->poll32_events = POLLIN;
    ring.submit();
    if (i > 0) send_pattern(fd, kUp, offset, kTripBytes);  // the first time something is unread already
    CHECK((ring.result() & POLLIN) != 0);
    recv_pattern(fd, i > 0 ? kUp : kDown, i > 0 ? offset : 0, i > 0 ? kTripBytes : kUnread);
    if (i > 0) offset += kTripBytes;
  }
  finish(fd, sync);
}

void close_client(int fd, const Sync& sync) {
  sync.wait();
  Uring ring;
  recv_pattern(fd, kDown, 0, kUnread);
  uint64_t offset = 0;
  exchange(fd, &offset);
  CHECK_EQ(ring.simple(IORING_OP_CLOSE, fd), 0);
  CHECK_ERRNO(send(fd, "x", 1, MSG_NOSIGNAL), EBADF);
  sync.wait();  // the other end has seen the end of file
}

// The peer is the one who reads through io_uring: it answers what is unread, and then as usual.
void server_server(int fd, const Sync& sync) {
  sync.wait();
  Uring ring;
  char buffer[4096];
  for (int n; (n = ring.transfer(IORING_OP_RECV, fd, buffer, sizeof buffer)) != 0;) {
    CHECK(n > 0);
    for (int done = 0; done < n;) {
      const int m = ring.transfer(IORING_OP_SEND, fd, buffer + done, static_cast<size_t>(n - done));
      CHECK(m > 0);
      done += m;
    }
  }
  sync.post();
  close(fd);
}

void up_unread_client(int fd, const Sync& sync) {
  send_pattern(fd, kUp, 0, kUnread);
  sync.post();
  recv_pattern(fd, kUp, 0, kUnread);
  uint64_t offset = kUnread;
  exchange(fd, &offset, 3 * kTrips);
  finish(fd, sync);
}

void before_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  exchange_through(g_before, IORING_OP_SEND, IORING_OP_RECV, fd, &offset);
  exchange(fd, &offset);
  finish(fd, sync);
}

void before_unused_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset, 5 * kTrips);
  finish(fd, sync);
}

const Case kCases[] = {
    {"recv", down_unread_server, unread_client<IORING_OP_SEND, IORING_OP_RECV>, no_uring},
    {"read", down_unread_server, unread_client<IORING_OP_WRITE, IORING_OP_READ>, no_uring},
    {"unused", down_unread_server, unused_client, no_uring},
    {"mixed_send", down_unread_server, mixed_client<true>, no_uring},
    {"mixed_recv", down_unread_server, mixed_client<false>, no_uring},
    {"poll", down_unread_server, poll_client, no_uring},
    {"close", down_unread_server, close_client, no_uring},
    {"server", server_server, up_unread_client, no_uring},
    {"before", echo_server, before_client, no_uring},
    {"before_unused", echo_server, before_unused_client, no_uring},
};

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  if (options.is("client") && strncmp(options.text("case", ""), "before", 6) == 0) g_before = new Uring;
  return case_main(argc, argv, kCases);
}
