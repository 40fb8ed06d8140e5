// SPDX-License-Identifier: MIT
// Bad pointers and unusual vectors: what TCP does with them, and that it loses no byte over them. `NAME list` prints the cases.
#include <limits.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>

#include "calls.h"
#include "peer.h"

using namespace testlib;

namespace {

constexpr size_t kPage = 4096;
char g_buffer[4 * kPage];

// Three pages: usable, with the given rights, unmapped.
struct Pages {
  char* good;
  char* special;
  char* unmapped;
  explicit Pages(int rights) {
    void* start = mmap(nullptr, 3 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(start != MAP_FAILED);
    good = static_cast<char*>(start);
    special = good + kPage;
    unmapped = good + 2 * kPage;
    CHECK_EQ(mprotect(special, kPage, rights), 0);
    CHECK_EQ(munmap(unmapped, kPage), 0);
  }
  ~Pages() { munmap(good, 2 * kPage); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
};

// ---- bad buffers ------------------------------------------------------------------------------------------------------

void efault_read_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pages pages(PROT_READ), closed(PROT_NONE);
  char* const bad[] = {nullptr, reinterpret_cast<char*>(8), pages.special, pages.unmapped, closed.special,
                       reinterpret_cast<char*>(uintptr_t{1} << 63)};
  peer.arrive(100);
  for (const ReadCall& c : kReadCalls) {
    note(c.name);
    for (char* pointer : bad) CHECK_ERRNO(c.call(fd, hidden(pointer), 100), EFAULT);
    for (char* pointer : bad) CHECK_ERRNO(recv(fd, hidden(pointer), 100, MSG_PEEK), EFAULT);
  }
  peer.take(100);
  // Without data it is the missing data that counts.
  set_nonblocking(fd);
  for (const ReadCall& c : kReadCalls) CHECK_ERRNO(c.call(fd, hidden(pages.unmapped), 100), EAGAIN);
  set_nonblocking(fd, false);
  // A bad buffer of no length is no error.
  CHECK_EQ(read(fd, hidden(pages.unmapped), 0), 0);
  peer.finish();
}

void efault_write_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pages closed(PROT_NONE);
  const char* const bad[] = {nullptr, reinterpret_cast<char*>(8), closed.special, closed.unmapped,
                             reinterpret_cast<char*>(uintptr_t{1} << 63)};
  for (const SendCall& c : kSendCalls) {
    note(c.name);
    for (const char* pointer : bad) CHECK_ERRNO(c.call(fd, hidden(pointer), 100), EFAULT);
  }
  CHECK_EQ(send(fd, hidden(closed.unmapped), 0, MSG_NOSIGNAL), 0);
  // Read-only memory is good enough for sending.
  const Pages read_only(PROT_READ);
  for (const SendCall& c : kSendCalls) CHECK_EQ(c.call(fd, read_only.special, 100), 100);
  char zeros[100] = {};
  static_assert(sizeof kSendCalls / sizeof *kSendCalls == 6);
  // The peer gets exactly those bytes: it cannot check them against the pattern, so they are read by hand.
  CHECK_EQ(memcmp(zeros, read_only.special, sizeof zeros), 0);
  close(fd);
}

void efault_write_client(int fd, const Sync& sync) {
  char zeros[600];
  recv_all(fd, zeros, sizeof zeros);
  for (char c : zeros) CHECK_EQ(c, 0);
  expect_eof(fd);
  close(fd);
  Order order;  // the Peer's farewell
  CHECK_EQ(recv(sync.fd(), &order, sizeof order, MSG_WAITALL), sizeof order);
  const Report report = {0, 0};
  CHECK_EQ(write(sync.fd(), &report, sizeof report), sizeof report);
}

// A receive buffer whose end is bad: no byte may be lost, whatever the call says. TCP gives all that fits in front of the bad part
// or EFAULT; what it did not give is read next.
void efault_read_partial_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pages pages(PROT_NONE);
  for (const ReadCall& c : kReadCalls) {
    note(c.name);
    peer.arrive(200);
    char* buffer = pages.special - 50;
    const ssize_t n = c.call(fd, buffer, 200);
    if (n < 0) CHECK_EQ(errno, EFAULT);
    CHECK(n == -1 || n <= 50);
    if (n > 0) peer.took(buffer, static_cast<size_t>(n));
    peer.take(200 - static_cast<size_t>(n > 0 ? n : 0));
  }
  peer.finish();
}

// The second entry is bad: the first, which came whole in one segment of its own, is given; the rest stays.
void efault_readv_second_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pages pages(PROT_NONE);
  struct iovec iov[] = {{g_buffer, 100}, {pages.special, 100}};
  struct msghdr message = {};
  message.msg_iov = iov;
  message.msg_iovlen = 2;
  for (int i = 0; i < 2; i++) {
    peer.arrive(100);
    peer.arrive(100);
    const ssize_t n = i == 0 ? readv(fd, iov, 2) : recvmsg(fd, &message, 0);
    if (n < 0) CHECK_EQ(errno, EFAULT);
    CHECK(n == -1 || n == 100);
    if (n > 0) peer.took(g_buffer, 100);
    peer.take(n > 0 ? 100 : 200);
  }
  peer.arrive(60);
  CHECK_EQ(readv(fd, iov, 2), 60);  // never gets as far as the bad one
  peer.took(g_buffer, 60);
  peer.finish();
}

// Sending from a buffer whose end is bad: a count or EFAULT; the peer gets what was counted and not a byte more.
void efault_write_partial_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pages pages(PROT_NONE);
  for (const SendCall& c : kSendCalls) {
    note(c.name);
    char* buffer = pages.special - 50;
    peer.prepare(buffer, 50);
    const ssize_t n = c.call(fd, buffer, 200);
    if (n < 0) CHECK_EQ(errno, EFAULT);
    CHECK(n == -1 || (n > 0 && n <= 50));
    if (n > 0) peer.wrote(static_cast<size_t>(n));
    peer.put(10);
    peer.drained();
  }
  peer.finish();
}

void efault_writev_second_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pages pages(PROT_NONE);
  struct iovec iov[] = {{g_buffer, 100}, {pages.special, 100}};
  struct msghdr message = {};
  message.msg_iov = iov;
  message.msg_iovlen = 2;
  for (int i = 0; i < 2; i++) {
    peer.prepare(g_buffer, 100);
    const ssize_t n = i == 0 ? writev(fd, iov, 2) : sendmsg(fd, &message, MSG_NOSIGNAL);
    if (n < 0) CHECK_EQ(errno, EFAULT);
    CHECK(n == -1 || (n > 0 && n <= 100));
    if (n > 0) peer.wrote(static_cast<size_t>(n));
    peer.put(10);
    peer.drained();
  }
  peer.finish();
}

// Large transfers with a bad end, more than any ring holds at once: what is counted is what went.
void efault_large_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  constexpr size_t kLarge = 64 * kPage;
  void* start = mmap(nullptr, kLarge + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(start != MAP_FAILED);
  char* data = static_cast<char*>(start);
  CHECK_EQ(munmap(data + kLarge, kPage), 0);
  peer.prepare(data, kLarge);
  peer.start(Do::kReadToEnd);
  const ssize_t n = send(fd, data, 2 * kLarge, MSG_NOSIGNAL);
  if (n < 0) CHECK_EQ(errno, EFAULT);
  const size_t sent = n > 0 ? static_cast<size_t>(n) : 0;
  CHECK(sent <= kLarge);
  peer.wrote(sent);
  peer.put(10);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  const Report report = peer.settle();
  CHECK_EQ(report.bytes, sent + 10);
  CHECK_EQ(report.error, 0);
  munmap(data, kLarge);
  close(fd);
}

// Bad vectors and headers, as opposed to bad buffers.
void efault_header_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pages pages(PROT_NONE);
  auto* bad_iov = hidden(reinterpret_cast<struct iovec*>(pages.special));
  auto* bad_message = hidden(reinterpret_cast<struct msghdr*>(pages.special));
  auto* bad_messages = hidden(reinterpret_cast<struct mmsghdr*>(pages.special));
  peer.arrive(100);
  CHECK_ERRNO(readv(fd, bad_iov, 2), EFAULT);
  CHECK_ERRNO(writev(fd, bad_iov, 2), EFAULT);
  CHECK_ERRNO(recvmsg(fd, bad_message, 0), EFAULT);
  CHECK_ERRNO(sendmsg(fd, bad_message, MSG_NOSIGNAL), EFAULT);
  CHECK_ERRNO(recvmmsg(fd, bad_messages, 2, 0, nullptr), EFAULT);
  CHECK_ERRNO(sendmmsg(fd, bad_messages, 2, MSG_NOSIGNAL), EFAULT);
  struct msghdr message = {};
  message.msg_iov = bad_iov;
  message.msg_iovlen = 2;
  CHECK_ERRNO(recvmsg(fd, &message, 0), EFAULT);
  CHECK_ERRNO(sendmsg(fd, &message, MSG_NOSIGNAL), EFAULT);
  CHECK_EQ(recvmmsg(fd, bad_messages, 0, 0, nullptr), 0);
  CHECK_EQ(sendmmsg(fd, bad_messages, 0, MSG_NOSIGNAL), 0);
  peer.take(100);
  peer.finish();
}

// Where the answer goes: addresses, lengths, counts.
void efault_out_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pages pages(PROT_NONE);
  auto* bad_address = hidden(reinterpret_cast<struct sockaddr*>(pages.special));
  auto* bad_length = hidden(reinterpret_cast<socklen_t*>(pages.special));
  auto* bad_int = hidden(reinterpret_cast<int*>(pages.special));
  Address a;
  a.length = sizeof a.storage;
  CHECK_ERRNO(getpeername(fd, bad_address, &a.length), EFAULT);
  CHECK_ERRNO(getpeername(fd, a.get(), bad_length), EFAULT);
  CHECK_ERRNO(getsockname(fd, a.get(), bad_length), EFAULT);
  socklen_t length = sizeof(int);
  CHECK_ERRNO(getsockopt(fd, SOL_SOCKET, SO_ERROR, bad_int, &length), EFAULT);
  int value;
  CHECK_ERRNO(getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, bad_length), EFAULT);
  CHECK_ERRNO(setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, bad_int, sizeof(int)), EFAULT);
  CHECK_ERRNO(ioctl(fd, FIONREAD, bad_int), EFAULT);
  CHECK_ERRNO(ioctl(fd, FIONBIO, bad_int), EFAULT);
  // recvfrom: a stream has no address to give, so that a bad place for it is not touched; the length is.
  peer.arrive(30);
  length = sizeof(struct sockaddr_in);
  CHECK_EQ(recvfrom(fd, g_buffer, 10, 0, bad_address, &length), 10);
  peer.took(g_buffer, 10);
  CHECK_EQ(length, 0);
  CHECK_EQ(recvfrom(fd, g_buffer, 10, 0, nullptr, bad_length), 10);  // no address asked for: not looked at
  peer.took(g_buffer, 10);
  CHECK_ERRNO(recvfrom(fd, g_buffer, 10, 0, a.get(), bad_length), EFAULT);
  peer.count(10);  // TCP has taken the bytes by then
  peer.finish();
}

void efault_sendfile_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pages pages(PROT_NONE), read_only(PROT_READ);
  const int file = memfd_create("file", MFD_CLOEXEC);
  CHECK(file >= 0);
  peer.prepare(g_buffer, 200);
  CHECK_EQ(write(file, g_buffer, 200), 200);
  CHECK_ERRNO(sendfile(fd, file, hidden(reinterpret_cast<off_t*>(pages.special)), 100), EFAULT);
  CHECK_EQ(lseek(file, 0, SEEK_SET), 0);
  CHECK_EQ(sendfile(fd, file, nullptr, 100), 100);
  peer.wrote(100);
  peer.drained();
  close(file);
  peer.finish();
}

// The waiting calls.
void efault_wait_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pages pages(PROT_NONE);
  CHECK_ERRNO(poll(hidden(reinterpret_cast<struct pollfd*>(pages.special)), 1, 0), EFAULT);
  CHECK_ERRNO(poll(hidden(reinterpret_cast<struct pollfd*>(pages.unmapped)), 3, 100), EFAULT);
  CHECK_ERRNO(select(fd + 1, hidden(reinterpret_cast<fd_set*>(pages.special)), nullptr, nullptr, nullptr), EFAULT);
  CHECK_EQ(poll(nullptr, 0, 0), 0);
  peer.finish();
}

// ---- vectors ----------------------------------------------------------------------------------------------------------

// As many entries as are allowed, and one more.
void iov_max_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  static struct iovec iov[IOV_MAX + 1];
  for (size_t i = 0; i <= IOV_MAX; i++) iov[i] = {g_buffer + i, 1};
  struct msghdr message = {};
  message.msg_iov = iov;
  message.msg_iovlen = IOV_MAX;
  peer.arrive(2 * IOV_MAX);
  CHECK_EQ(readv(fd, iov, IOV_MAX), IOV_MAX);
  peer.took(g_buffer, IOV_MAX);
  CHECK_EQ(recvmsg(fd, &message, 0), IOV_MAX);
  peer.took(g_buffer, IOV_MAX);
  peer.prepare(g_buffer, IOV_MAX);
  CHECK_EQ(writev(fd, iov, IOV_MAX), IOV_MAX);
  peer.wrote(IOV_MAX);
  peer.prepare(g_buffer, IOV_MAX);
  CHECK_EQ(sendmsg(fd, &message, MSG_NOSIGNAL), IOV_MAX);
  peer.wrote(IOV_MAX);
  peer.drained();
  message.msg_iovlen = IOV_MAX + 1;
  CHECK_ERRNO(readv(fd, iov, hidden(IOV_MAX + 1)), EINVAL);
  CHECK_ERRNO(writev(fd, iov, hidden(IOV_MAX + 1)), EINVAL);
  CHECK_ERRNO(recvmsg(fd, &message, 0), EMSGSIZE);
  CHECK_ERRNO(sendmsg(fd, &message, MSG_NOSIGNAL), EMSGSIZE);
  CHECK_ERRNO(writev(fd, iov, hidden(-1)), EINVAL);
  message.msg_iovlen = hidden(SIZE_MAX);
  CHECK_ERRNO(recvmsg(fd, &message, 0), EMSGSIZE);
  CHECK_ERRNO(sendmsg(fd, &message, MSG_NOSIGNAL), EMSGSIZE);
  peer.finish();
}

// Entries of length 0, with pointers nobody may follow.
void iov_empty_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pages pages(PROT_NONE);
  struct iovec iov[] = {{nullptr, 0}, {pages.special, 0}, {g_buffer, 10}, {nullptr, 0}, {g_buffer + 10, 20}, {pages.unmapped, 0}};
  peer.arrive(30);
  CHECK_EQ(readv(fd, iov, 6), 30);
  peer.took(g_buffer, 30);
  peer.prepare(g_buffer, 30);
  CHECK_EQ(writev(fd, iov, 6), 30);
  peer.wrote(30);
  peer.drained();
  CHECK_EQ(writev(fd, iov, 2), 0);
  CHECK_EQ(writev(fd, iov, 0), 0);
  CHECK_EQ(readv(fd, iov, 2), 0);  // at once, although there is no data
  CHECK_EQ(readv(fd, iov, 0), 0);
  struct msghdr message = {};
  message.msg_iov = iov;
  message.msg_iovlen = 2;
  CHECK_EQ(sendmsg(fd, &message, MSG_NOSIGNAL), 0);
  CHECK_ERRNO(recvmsg(fd, &message, MSG_DONTWAIT), EAGAIN);  // but recvmsg waits
  message.msg_iov = nullptr;
  message.msg_iovlen = 0;
  CHECK_EQ(sendmsg(fd, &message, MSG_NOSIGNAL), 0);
  CHECK_ERRNO(recvmsg(fd, &message, MSG_DONTWAIT), EAGAIN);
  peer.arrive(1);
  CHECK_EQ(recvmsg(fd, &message, 0), 0);
  peer.take(1);
  peer.finish();
}

// The same memory twice: on the way in the later entry wins, on the way out it goes twice.
void iov_overlap_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(30);
  char expected[20];
  pattern_fill(expected, 20, kUp, 0);
  pattern_fill(expected + 5, 15, kUp, 15);
  struct iovec iov[] = {{g_buffer, 15}, {g_buffer + 5, 15}};
  CHECK_EQ(readv(fd, iov, 2), 30);
  CHECK_EQ(memcmp(g_buffer, expected, 20), 0);
  peer.count(30);
  memset(g_buffer, 'o', 100);
  struct iovec twice[] = {{g_buffer, 60}, {g_buffer + 30, 60}};
  CHECK_EQ(writev(fd, twice, 2), 120);
  close(fd);
}

void iov_overlap_client(int fd, const Sync& sync) {
  Obedient self = {fd, sync};
  for (int i = 0; i < 2; i++) {  // arrive() and the farewell
    Order order;
    CHECK_EQ(recv(sync.fd(), &order, sizeof order, MSG_WAITALL), sizeof order);
    const Report report = self.obey(order);
    CHECK_EQ(write(sync.fd(), &report, sizeof report), sizeof report);
  }
  char data[120];
  recv_all(fd, data, sizeof data);
  for (char c : data) CHECK_EQ(c, 'o');
  expect_eof(fd);
  close(fd);
}

// Lengths that cannot be meant: negative ones, and sums that no ssize_t holds.
void iov_huge_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const size_t negative = static_cast<size_t>(-1), half = SIZE_MAX / 4;
  struct iovec minus[] = {{g_buffer, 10}, {g_buffer, negative}};
  CHECK_ERRNO(writev(fd, minus, 2), EINVAL);
  peer.arrive(100);
  CHECK_ERRNO(readv(fd, minus, 2), EINVAL);
  struct msghdr message = {};
  message.msg_iov = minus;
  message.msg_iovlen = 2;
  CHECK_ERRNO(recvmsg(fd, &message, 0), EINVAL);
  CHECK_ERRNO(sendmsg(fd, &message, MSG_NOSIGNAL), EINVAL);
  struct iovec sum[] = {{g_buffer, half}, {g_buffer, half}, {g_buffer, half}};
  const ssize_t n = readv(fd, sum, 3);
  CHECK_EQ(n, -1);
  CHECK_EQ(errno, EFAULT);  // Linux looks at the ranges first
  CHECK_ERRNO(writev(fd, sum, 3), EFAULT);
  // Long but possible: what there is is given.
  struct iovec longer[] = {{g_buffer, 10}, {g_buffer + 10, size_t{1} << 40}, {g_buffer, size_t{1} << 40}};
  CHECK_EQ(readv(fd, longer, 3), 100);
  peer.took(g_buffer, 100);
  peer.finish();
}

// Lengths of the calls without vectors. The kernel moves at most 2 GiB - 4096 at once.
void length_huge_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(40);
  CHECK_EQ(recv(fd, g_buffer, hidden(size_t{1} << 40), 0), 40);
  peer.took(g_buffer, 40);
  peer.arrive(40);
  CHECK_EQ(read(fd, g_buffer, hidden(size_t{1} << 40)), 40);
  peer.took(g_buffer, 40);
  peer.arrive(40);
  CHECK_EQ(recv(fd, g_buffer, hidden(SIZE_MAX), 0), 40);
  peer.took(g_buffer, 40);
  peer.arrive(40);
  CHECK_ERRNO(read(fd, g_buffer, hidden(SIZE_MAX)), EFAULT);
  CHECK_ERRNO(write(fd, g_buffer, hidden(SIZE_MAX)), EFAULT);
  peer.take(40);
  peer.finish();
}

const Case kCases[] = {
    {"efault_read", efault_read_server, obedient_client},
    {"efault_write", efault_write_server, efault_write_client},
    {"efault_read_partial", efault_read_partial_server, obedient_client},
    {"efault_readv_second", efault_readv_second_server, obedient_client},
    {"efault_write_partial", efault_write_partial_server, obedient_client},
    {"efault_writev_second", efault_writev_second_server, obedient_client},
    {"efault_large", efault_large_server, obedient_client},
    {"efault_header", efault_header_server, obedient_client},
    {"efault_out", efault_out_server, obedient_client},
    {"efault_sendfile", efault_sendfile_server, obedient_client},
    {"efault_wait", efault_wait_server, obedient_client},
    {"iov_max", iov_max_server, obedient_client},
    {"iov_empty", iov_empty_server, obedient_client},
    {"iov_overlap", iov_overlap_server, iov_overlap_client},
    {"iov_huge", iov_huge_server, obedient_client},
    {"length_huge", length_huge_server, obedient_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
