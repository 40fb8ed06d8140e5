// SPDX-License-Identifier: MIT
// What the calls that move bytes promise on a TCP stream: flags, vectors, files, counts. `NAME list` prints the cases.
// Built twice: plainly and as semantics_data_fortified with _FORTIFY_SOURCE=2, so that the `_chk` twins are called too.
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <linux/sockios.h>

#include "case_main.h"

using namespace testlib;

namespace {

constexpr uint64_t kUp = 21, kDown = 22;  // pattern seeds: client → server, server → client

void nothing(int fd, const Sync&) { close(fd); }

// Reads `length` bytes with read() and checks them; the length is hidden, so that the fortified build calls __read_chk.
void read_some(int fd, uint64_t seed, uint64_t offset, size_t length) {
  char buffer[4096];
  while (length > 0) {
    const ssize_t n = read(fd, buffer, hidden(length));
    CHECK(n > 0);
    pattern_check(buffer, static_cast<size_t>(n), seed, offset);
    offset += static_cast<size_t>(n);
    length -= static_cast<size_t>(n);
  }
}

// Waits (in the kernel's sense, without touching the data) until `length` bytes can be read.
void await_bytes(int fd, size_t length) {
  const int64_t deadline = now_ms() + 5000;
  for (;;) {
    int available = -1;
    CHECK_EQ(ioctl(fd, FIONREAD, &available), 0);
    if (static_cast<size_t>(available) >= length) return;
    CHECK(now_ms() < deadline);
    sleep_ms(1);
  }
}

// ---- peek -------------------------------------------------------------------------------------------------------------

void peek_server(int fd, const Sync& sync) {
  char buffer[2000];
  CHECK_ERRNO(recv(fd, buffer, sizeof buffer, MSG_PEEK | MSG_DONTWAIT), EAGAIN);
  sync.meet();
  await_bytes(fd, 1000);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(recv(fd, buffer, hidden(sizeof buffer), MSG_PEEK), 1000);
    pattern_check(buffer, 1000, kUp, 0);
  }
  CHECK_EQ(recv(fd, buffer, 300, MSG_PEEK), 300);
  CHECK_EQ(recv(fd, buffer, hidden(size_t{300}), 0), 300);
  pattern_check(buffer, 300, kUp, 0);
  CHECK_EQ(recv(fd, buffer, sizeof buffer, MSG_PEEK | MSG_DONTWAIT), 700);
  pattern_check(buffer, 700, kUp, 300);
  read_some(fd, kUp, 300, 700);
  CHECK_ERRNO(recv(fd, buffer, sizeof buffer, MSG_PEEK | MSG_DONTWAIT), EAGAIN);
  // A blocking peek wakes up for data and leaves it there; a peek at end of file gives 0.
  sync.post();
  CHECK_EQ(recv(fd, buffer, 1, MSG_PEEK), 1);
  read_some(fd, kUp, 1000, 1);
  sync.post();
  CHECK_EQ(recv(fd, buffer, 1, MSG_PEEK), 0);
  CHECK_EQ(recv(fd, buffer, 1, MSG_PEEK), 0);
  expect_eof(fd);
  close(fd);
}

void peek_client(int fd, const Sync& sync) {
  sync.meet();
  send_pattern(fd, kUp, 0, 1000);
  sync.wait();
  sleep_ms(50);
  send_pattern(fd, kUp, 1000, 1);
  sync.wait();
  sleep_ms(50);
  close(fd);
}

// ---- MSG_WAITALL ------------------------------------------------------------------------------------------------------

constexpr size_t kWaitAll = 100000;

void waitall_server(int fd, const Sync& sync) {
  static char buffer[kWaitAll];
  sync.post();
  CHECK_EQ(recv(fd, buffer, 3000, MSG_WAITALL), 3000);  // comes in three parts
  pattern_check(buffer, 3000, kUp, 0);
  sync.post();
  CHECK_EQ(recv(fd, buffer, sizeof buffer, MSG_WAITALL), sizeof buffer);  // more than a small ring holds
  pattern_check(buffer, sizeof buffer, kUp, 3000);
  sync.post();
  CHECK_EQ(recv(fd, buffer, 500, MSG_WAITALL), 123);  // end of file ends the wait
  pattern_check(buffer, 123, kUp, 3000 + sizeof buffer);
  expect_eof(fd);
  close(fd);
}

void waitall_client(int fd, const Sync& sync) {
  sync.wait();
  for (size_t i = 0; i < 3; i++) {
    sleep_ms(20);
    send_pattern(fd, kUp, i * 1000, 1000);
  }
  sync.wait();
  send_pattern(fd, kUp, 3000, kWaitAll);
  sync.wait();
  send_pattern(fd, kUp, 3000 + kWaitAll, 123);
  close(fd);
}

// ---- non-blocking -----------------------------------------------------------------------------------------------------

void nonblock_server(int fd, const Sync& sync) {
  char buffer[100];
  // MSG_DONTWAIT on a blocking socket, then O_NONBLOCK with every call that reads.
  CHECK_ERRNO(recv(fd, buffer, sizeof buffer, MSG_DONTWAIT), EAGAIN);
  set_nonblocking(fd);
  struct iovec iov = {buffer, sizeof buffer};
  struct msghdr message = {};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  CHECK_ERRNO(recv(fd, buffer, sizeof buffer, 0), EAGAIN);
  CHECK_ERRNO(read(fd, buffer, sizeof buffer), EAGAIN);
  CHECK_ERRNO(readv(fd, &iov, 1), EAGAIN);
  CHECK_ERRNO(recvmsg(fd, &message, 0), EAGAIN);
  CHECK_ERRNO(recvfrom(fd, buffer, sizeof buffer, 0, nullptr, nullptr), EAGAIN);
  CHECK_ERRNO(recv(fd, buffer, sizeof buffer, MSG_WAITALL), EAGAIN);
  // A short read gives what there is; with WAITALL as well.
  sync.meet();
  await_bytes(fd, 150);
  CHECK_EQ(recv(fd, buffer, 60, 0), 60);
  pattern_check(buffer, 60, kUp, 0);
  CHECK_EQ(recv(fd, buffer, 100, MSG_WAITALL), 90);
  pattern_check(buffer, 90, kUp, 60);
  CHECK_ERRNO(recv(fd, buffer, 1, 0), EAGAIN);
  // Writing until the buffers are full, told to the peer, which then reads exactly that.
  uint64_t written = fill_up(fd, kDown, 0);
  set_nonblocking(fd);
  // Every call that writes says EAGAIN. (TCP may make a little room now and then; what it takes then is part of the pattern.)
  const auto expect_full = [&](auto call) {
    ssize_t n;
    do {
      pattern_fill(buffer, sizeof buffer, kDown, written);
      n = call();
      if (n > 0) written += static_cast<uint64_t>(n);
    } while (n >= 0);
    CHECK_EQ(errno, EAGAIN);
  };
  expect_full([&] { return send(fd, buffer, 1, MSG_NOSIGNAL | MSG_DONTWAIT); });
  expect_full([&] { return write(fd, buffer, 1); });
  expect_full([&] { return writev(fd, &iov, 1); });
  expect_full([&] { return sendmsg(fd, &message, MSG_NOSIGNAL); });
  set_nonblocking(fd, false);
  CHECK_EQ(write(sync.fd(), &written, sizeof written), sizeof written);
  // The peer has read it all: there is room again.
  sync.wait();
  CHECK_EQ(send(fd, buffer, 1, MSG_DONTWAIT), 1);
  close(fd);
}

void nonblock_client(int fd, const Sync& sync) {
  sync.meet();
  send_pattern(fd, kUp, 0, 150);
  uint64_t written;
  CHECK_EQ(recv(sync.fd(), &written, sizeof written, MSG_WAITALL), sizeof written);
  recv_pattern(fd, kDown, 0, written);
  sync.post();
  char last;
  recv_all(fd, &last, 1);
  expect_eof(fd);
  close(fd);
}

// ---- vectors ----------------------------------------------------------------------------------------------------------

void vectored_server(int fd, const Sync& sync) {
  char a[3], b[700], c[1], d[500];
  // writev from the peer, readv here; an entry of length 0 in the middle
  struct iovec iov[] = {{a, sizeof a}, {nullptr, 0}, {b, sizeof b}, {c, sizeof c}};
  sync.meet();
  await_bytes(fd, 704);
  CHECK_EQ(readv(fd, iov, 4), 704);
  pattern_check(a, 3, kUp, 0);
  pattern_check(b, 700, kUp, 3);
  pattern_check(c, 1, kUp, 703);
  // recvmsg: TCP gives no address and no control data
  char control[64];
  struct sockaddr_in name;
  struct msghdr message = {};
  message.msg_name = &name;
  message.msg_namelen = sizeof name;
  message.msg_iov = iov;
  message.msg_iovlen = 4;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  message.msg_flags = -1;
  CHECK_EQ(recvmsg(fd, &message, MSG_WAITALL), 704);
  pattern_check(a, 3, kUp, 704);
  pattern_check(b, 700, kUp, 707);
  pattern_check(c, 1, kUp, 1407);
  CHECK_EQ(message.msg_namelen, 0);
  CHECK_EQ(message.msg_controllen, 0);
  CHECK_EQ(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC | MSG_OOB), 0);
  // sendmmsg from the peer, recvmmsg here
  sync.meet();
  await_bytes(fd, 600);
  struct iovec halves[2] = {{d, 200}, {d + 200, 300}};
  struct mmsghdr messages[2] = {};
  for (int i = 0; i < 2; i++) {
    messages[i].msg_hdr.msg_iov = &halves[i];
    messages[i].msg_hdr.msg_iovlen = 1;
  }
  CHECK_EQ(recvmmsg(fd, messages, 2, 0, nullptr), 2);
  CHECK_EQ(messages[0].msg_len, 200);
  CHECK_EQ(messages[1].msg_len, 300);
  pattern_check(d, 500, kUp, 1408);
  struct sockaddr_storage from;
  socklen_t from_length = sizeof from;
  CHECK_EQ(recvfrom(fd, d, hidden(sizeof d), 0, reinterpret_cast<struct sockaddr*>(&from), &from_length), 100);
  pattern_check(d, 100, kUp, 1908);
  CHECK_EQ(from_length, 0);
  CHECK_ERRNO(readv(fd, iov, hidden(-1)), EINVAL);
  CHECK_ERRNO(readv(fd, iov, hidden(1025)), EINVAL);
  expect_eof(fd);
  close(fd);
}

void vectored_client(int fd, const Sync& sync) {
  char data[2008];
  pattern_fill(data, sizeof data, kUp, 0);
  struct iovec iov[] = {{data, 100}, {data + 100, 0}, {data + 100, 1}, {data + 101, 603}};
  sync.meet();
  CHECK_EQ(writev(fd, iov, 4), 704);
  struct iovec iov2[] = {{data + 704, 1}, {data + 705, 703}};
  struct msghdr message = {};
  message.msg_iov = iov2;
  message.msg_iovlen = 2;
  CHECK_EQ(sendmsg(fd, &message, MSG_NOSIGNAL), 704);
  sync.meet();
  struct iovec thirds[3] = {{data + 1408, 200}, {data + 1608, 200}, {data + 1808, 100}};
  struct mmsghdr messages[3] = {};
  for (int i = 0; i < 3; i++) {
    messages[i].msg_hdr.msg_iov = &thirds[i];
    messages[i].msg_hdr.msg_iovlen = 1;
  }
  CHECK_EQ(sendmmsg(fd, messages, 3, MSG_NOSIGNAL), 3);
  for (int i = 0; i < 3; i++) CHECK_EQ(messages[i].msg_len, thirds[i].iov_len);
  // On a connected stream sendto ignores the address.
  CHECK_EQ(sendto(fd, data + 1908, 100, MSG_NOSIGNAL, nullptr, 0), 100);
  close(fd);
}

// ---- nothing at all ---------------------------------------------------------------------------------------------------

void zero_server(int fd, const Sync& sync) {
  char byte = 'x';
  CHECK_EQ(read(fd, &byte, 0), 0);
  CHECK_EQ(recv(fd, &byte, 0, MSG_DONTWAIT), -1);  // recv(0) waits for data, unlike read(0)
  CHECK_EQ(errno, EAGAIN);
  sync.meet();
  await_bytes(fd, 1);
  CHECK_EQ(recv(fd, &byte, 0, 0), 0);
  CHECK_EQ(read(fd, &byte, 0), 0);
  CHECK_EQ(recv(fd, &byte, 1, 0), 1);
  CHECK_EQ(byte, 'z');
  expect_eof(fd);
  close(fd);
}

void zero_client(int fd, const Sync& sync) {
  char byte = 'z';
  CHECK_EQ(send(fd, &byte, 0, 0), 0);
  CHECK_EQ(write(fd, &byte, 0), 0);
  CHECK_EQ(writev(fd, nullptr, 0), 0);
  sync.meet();
  CHECK_EQ(send(fd, &byte, 1, 0), 1);
  CHECK_EQ(send(fd, &byte, 0, 0), 0);
  close(fd);
}

// ---- sendfile ---------------------------------------------------------------------------------------------------------

constexpr size_t kFile = 1 << 20;

void sendfile_server(int fd, const Sync& sync) {
  recv_pattern(fd, kUp, 0, kFile);       // whole file, from the file position
  recv_pattern(fd, kUp, 1000, 50000);    // from an offset
  recv_pattern(fd, kUp, kFile - 10, 10); // the tail, asked for more
  sync.wait();
  expect_eof(fd);
  close(fd);
}

void sendfile_client(int fd, const Sync& sync) {
  char path[] = "/tmp/mpklink-sendfile-XXXXXX";
  const int file = mkstemp(path);
  CHECK(file >= 0);
  unlink(path);
  static char data[kFile];
  pattern_fill(data, sizeof data, kUp, 0);
  CHECK_EQ(write(file, data, sizeof data), sizeof data);

  // Without an offset the file position moves with the bytes.
  CHECK_EQ(lseek(file, 0, SEEK_SET), 0);
  size_t sent = 0;
  while (sent < kFile) {
    const ssize_t n = sendfile(fd, file, nullptr, kFile - sent);
    CHECK(n > 0);
    sent += static_cast<size_t>(n);
    CHECK_EQ(lseek(file, 0, SEEK_CUR), sent);
  }
  CHECK_EQ(sendfile(fd, file, nullptr, 100), 0);  // end of file

  // With an offset the offset moves and the file position does not.
  CHECK_EQ(lseek(file, 77, SEEK_SET), 77);
  off_t offset = 1000;
  while (offset < 51000) {
    const off_t before = offset;
    const ssize_t n = sendfile(fd, file, &offset, static_cast<size_t>(51000 - offset));
    CHECK(n > 0);
    CHECK_EQ(offset, before + n);
  }
  offset = kFile - 10;
  CHECK_EQ(sendfile64(fd, file, &offset, 500), 10);
  CHECK_EQ(offset, kFile);
  CHECK_EQ(sendfile(fd, file, &offset, 500), 0);
  CHECK_EQ(lseek(file, 0, SEEK_CUR), 77);
  CHECK_ERRNO(sendfile(fd, -1, nullptr, 10), EBADF);
  sync.post();
  close(file);
  close(fd);
}

// ---- counts -----------------------------------------------------------------------------------------------------------

void fionread_server(int fd, const Sync& sync) {
  int available = -1;
  CHECK_EQ(ioctl(fd, FIONREAD, &available), 0);
  CHECK_EQ(available, 0);
  sync.meet();
  await_bytes(fd, 777);
  CHECK_EQ(ioctl(fd, FIONREAD, &available), 0);
  CHECK_EQ(available, 777);
  read_some(fd, kUp, 0, 700);
  CHECK_EQ(ioctl(fd, FIONREAD, &available), 0);
  CHECK_EQ(available, 77);
  read_some(fd, kUp, 700, 77);
  CHECK_EQ(ioctl(fd, FIONREAD, &available), 0);
  CHECK_EQ(available, 0);
  sync.meet();
  expect_eof(fd);
  CHECK_EQ(ioctl(fd, FIONREAD, &available), 0);
  CHECK_EQ(available, 0);
  close(fd);
}

void fionread_client(int fd, const Sync& sync) {
  sync.meet();
  send_pattern(fd, kUp, 0, 777);
  sync.meet();
  const int64_t deadline = now_ms() + 5000;
  int unsent = -1;
  do {  // what the peer has taken is no longer queued
    CHECK(now_ms() < deadline);
    CHECK_EQ(ioctl(fd, SIOCOUTQ, &unsent), 0);
  } while (unsent != 0);
  close(fd);
}

// ---- errno and options ------------------------------------------------------------------------------------------------

// A call that succeeds leaves errno alone; the socket stays a TCP socket to whoever asks.
void identity_server(int fd, const Sync& sync) {
  char buffer[500];
  errno = 4711;
  CHECK_EQ(recv(fd, buffer, sizeof buffer, MSG_WAITALL), sizeof buffer);
  CHECK_EQ(errno, 4711);
  CHECK_EQ(send(fd, buffer, sizeof buffer, 0), sizeof buffer);
  CHECK_EQ(errno, 4711);
  sync.meet();
  close(fd);
}

void identity_client(int fd, const Sync& sync) {
  char buffer[500] = {};
  errno = 4711;
  CHECK_EQ(write(fd, buffer, sizeof buffer), sizeof buffer);
  CHECK_EQ(errno, 4711);
  recv_all(fd, buffer, sizeof buffer);
  CHECK_EQ(errno, 4711);

  int value = -1;
  socklen_t length = sizeof value;
  CHECK_EQ(getsockopt(fd, SOL_SOCKET, SO_TYPE, &value, &length), 0);
  CHECK_EQ(value, SOCK_STREAM);
  CHECK_EQ(getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &value, &length), 0);
  CHECK_EQ(value, AF_INET);
  CHECK_EQ(getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &length), 0);
  CHECK_EQ(value, 0);
  struct tcp_info info = {};
  length = sizeof info;
  CHECK_EQ(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length), 0);
  CHECK_EQ(info.tcpi_state, TCP_ESTABLISHED);
  struct sockaddr_in peer;
  length = sizeof peer;
  CHECK_EQ(getpeername(fd, reinterpret_cast<struct sockaddr*>(&peer), &length), 0);
  CHECK_EQ(peer.sin_addr.s_addr, htonl(INADDR_LOOPBACK));
  struct sockaddr_in extra;
  CHECK_ERRNO(connect(fd, reinterpret_cast<struct sockaddr*>(&peer), sizeof extra), EISCONN);
  CHECK_ERRNO(lseek(fd, 0, SEEK_CUR), ESPIPE);
  CHECK_ERRNO(pread(fd, buffer, 1, 0), ESPIPE);
  sync.meet();
  close(fd);
}

// ---- bad pointers -----------------------------------------------------------------------------------------------------

void efault_server(int fd, const Sync& sync) {
  auto* bad = hidden(reinterpret_cast<char*>(8));
  sync.meet();
  await_bytes(fd, 100);
  CHECK_ERRNO(recv(fd, bad, 100, 0), EFAULT);
  recv_pattern(fd, kUp, 0, 100);  // nothing was lost
  CHECK_ERRNO(send(fd, bad, 100, MSG_NOSIGNAL), EFAULT);
  send_pattern(fd, kDown, 0, 100);
  close(fd);
}

void efault_client(int fd, const Sync& sync) {
  sync.meet();
  send_pattern(fd, kUp, 0, 100);
  recv_pattern(fd, kDown, 0, 100);
  expect_eof(fd);
  close(fd);
}

// ---- many sizes -------------------------------------------------------------------------------------------------------

// Every size around the powers of two, both ways.
template <typename Function>
void each_size(Function function) {
  uint64_t offset = 0;
  for (size_t power = 1; power <= 65536; power *= 2) {
    for (size_t size = power > 1 ? power - 1 : 1; size <= power + 1; size++) {
      function(offset, size);
      offset += size;
    }
  }
}

void sizes_server(int fd, const Sync&) {
  each_size([fd](uint64_t offset, size_t size) {
    recv_pattern(fd, kUp, offset, size);
    send_pattern(fd, kDown, offset, size);
  });
  expect_eof(fd);
  close(fd);
}

void sizes_client(int fd, const Sync&) {
  static char buffer[65538];
  each_size([fd](uint64_t offset, size_t size) {
    pattern_fill(buffer, size, kUp, offset);
    CHECK_EQ(send(fd, buffer, size, MSG_NOSIGNAL), size);  // a blocking send takes everything
    recv_all(fd, buffer, size);
    pattern_check(buffer, size, kDown, offset);
  });
  close(fd);
}

const Case kCases[] = {
    {"idle", nothing, nothing},
    {"peek", peek_server, peek_client},
    {"waitall", waitall_server, waitall_client},
    {"nonblock", nonblock_server, nonblock_client},
    {"vectored", vectored_server, vectored_client},
    {"zero", zero_server, zero_client},
    {"sendfile", sendfile_server, sendfile_client},
    {"fionread", fionread_server, fionread_client},
    {"identity", identity_server, identity_client},
    {"efault", efault_server, efault_client},
    {"sizes", sizes_server, sizes_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
