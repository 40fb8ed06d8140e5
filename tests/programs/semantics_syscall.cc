// SPDX-License-Identifier: MIT
// Streams used through syscall(): libuv, Go's cgo, sandboxes and many others make system calls by number. `NAME list` prints the
// cases.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "case_tools.h"

using namespace testlib;

namespace {

constexpr size_t kSigsetBytes = 8;  // the kernel's

// What libc's pselect passes as the sixth argument.
struct PselectMask {
  const sigset_t* mask;
  size_t size;
};

// Something to send and to get back: the pattern at `offset`.
struct Trip {
  char sent[kTripBytes], got[kTripBytes];
  explicit Trip(uint64_t offset) {
    pattern_fill(sent, sizeof sent, kUp, offset);
    memset(got, 0, sizeof got);
  }
  void check() const { CHECK(memcmp(sent, got, sizeof sent) == 0); }
};

// The echo comes in one piece only if we wait for all of it: every call below is made again for the rest.
template <typename Receive>
void receive_all(const Trip& trip, char* into, Receive receive) {
  size_t have = 0;
  while (have < kTripBytes) {
    const long n = receive(into + have, kTripBytes - have);
    CHECK(n > 0);
    have += static_cast<size_t>(n);
  }
  trip.check();
}

template <typename Send, typename Receive>
void trips(int fd, const Sync& sync, Send send_some, Receive receive_some) {
  uint64_t offset = 0;
  for (int i = 0; i < kTrips; i++, offset += kTripBytes) {
    Trip trip(offset);
    CHECK_EQ(send_some(trip.sent, kTripBytes), kTripBytes);
    receive_all(trip, trip.got, receive_some);
  }
  exchange(fd, &offset);
  finish(fd, sync);
}

void read_client(int fd, const Sync& sync) {
  trips(
      fd, sync, [fd](char* p, size_t n) { return syscall(SYS_write, fd, p, n); },
      [fd](char* p, size_t n) { return syscall(SYS_read, fd, p, n); });
}

void readv_client(int fd, const Sync& sync) {
  const auto pieces = [](char* p, size_t n, struct iovec* iov) {
    iov[0] = {p, n / 2};
    iov[1] = {p + n / 2, n - n / 2};
  };
  trips(
      fd, sync,
      [&](char* p, size_t n) {
        struct iovec iov[2];
        pieces(p, n, iov);
        return syscall(SYS_writev, fd, iov, 2);
      },
      [&](char* p, size_t n) {
        struct iovec iov[2];
        pieces(p, n, iov);
        return syscall(SYS_readv, fd, iov, 2);
      });
}

void recvfrom_client(int fd, const Sync& sync) {
  trips(
      fd, sync, [fd](char* p, size_t n) { return syscall(SYS_sendto, fd, p, n, MSG_NOSIGNAL, nullptr, 0); },
      [fd](char* p, size_t n) { return syscall(SYS_recvfrom, fd, p, n, 0, nullptr, nullptr); });
}

void recvmsg_client(int fd, const Sync& sync) {
  const auto call = [fd](long number, char* p, size_t n) {
    struct iovec iov = {p, n};
    struct msghdr m = {};
    m.msg_iov = &iov;
    m.msg_iovlen = 1;
    return syscall(number, fd, &m, 0);
  };
  trips(
      fd, sync, [&](char* p, size_t n) { return call(SYS_sendmsg, p, n); },
      [&](char* p, size_t n) { return call(SYS_recvmsg, p, n); });
}

void recvmmsg_client(int fd, const Sync& sync) {
  const auto message = [](char* p, size_t n, struct iovec* iov) {
    *iov = {p, n};
    struct mmsghdr m = {};
    m.msg_hdr.msg_iov = iov;
    m.msg_hdr.msg_iovlen = 1;
    return m;
  };
  trips(
      fd, sync,
      [&](char* p, size_t n) {
        struct iovec iov;
        struct mmsghdr m = message(p, n, &iov);
        CHECK_EQ(syscall(SYS_sendmmsg, fd, &m, 1, MSG_NOSIGNAL), 1);
        return static_cast<long>(m.msg_len);
      },
      [&](char* p, size_t n) {
        struct iovec iov;
        struct mmsghdr m = message(p, n, &iov);
        CHECK_EQ(syscall(SYS_recvmmsg, fd, &m, 1, 0, nullptr), 1);
        return static_cast<long>(m.msg_len);
      });
}

void sendfile_client(int fd, const Sync& sync) {
  FILE* file = tmpfile();
  CHECK(file != nullptr);
  trips(
      fd, sync,
      [&](char* p, size_t n) {
        CHECK_EQ(pwrite(fileno(file), p, n, 0), n);
        off_t offset = 0;
        const long moved = syscall(SYS_sendfile, fd, fileno(file), &offset, n);
        CHECK_EQ(offset, n);
        return moved;
      },
      [fd](char* p, size_t n) { return syscall(SYS_read, fd, p, n); });
  fclose(file);
}

void splice_client(int fd, const Sync& sync) {
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  trips(
      fd, sync,
      [&](char* p, size_t n) {
        CHECK_EQ(write(ends[1], p, n), n);
        return syscall(SYS_splice, ends[0], nullptr, fd, nullptr, n, 0);
      },
      [&](char* p, size_t n) {
        const long moved = syscall(SYS_splice, fd, nullptr, ends[1], nullptr, n, 0);
        CHECK(moved > 0);
        return static_cast<long>(read(ends[0], p, static_cast<size_t>(moved)));
      });
  close(ends[0]);
  close(ends[1]);
}

// ---- waiting ---------------------------------------------------------------------------------------------------------------

// `wait(timeout_ms)`: is it readable? Asked when it is not, and when it will be.
template <typename Wait>
void waits(int fd, const Sync& sync, Wait wait) {
  uint64_t offset = 0;
  for (int i = 0; i < kTrips; i++) {
    CHECK(!wait(0));
    if (i == 0) CHECK(!wait(20));
    send_pattern(fd, kUp, offset, kTripBytes);
    CHECK(wait(5000));
    recv_pattern(fd, kUp, offset, kTripBytes);
    offset += kTripBytes;
  }
  exchange(fd, &offset);
  finish(fd, sync);
}

struct timespec timespec_of(int ms) { return {ms / 1000, ms % 1000 * 1000000L}; }

void poll_client(int fd, const Sync& sync) {
  waits(fd, sync, [fd](int ms) {
    struct pollfd p = {fd, POLLIN, 0};
    return syscall(SYS_poll, &p, 1, ms) == 1;
  });
}

void ppoll_client(int fd, const Sync& sync) {
  waits(fd, sync, [fd](int ms) {
    struct pollfd p = {fd, POLLIN, 0};
    struct timespec t = timespec_of(ms);
    sigset_t none;
    sigemptyset(&none);
    return syscall(SYS_ppoll, &p, 1, &t, &none, kSigsetBytes) == 1;
  });
}

void select_client(int fd, const Sync& sync) {
  waits(fd, sync, [fd](int ms) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fd, &set);
    struct timeval t = {ms / 1000, ms % 1000 * 1000};
    return syscall(SYS_select, fd + 1, &set, nullptr, nullptr, &t) == 1 && FD_ISSET(fd, &set);
  });
}

void pselect_client(int fd, const Sync& sync) {
  waits(fd, sync, [fd](int ms) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fd, &set);
    struct timespec t = timespec_of(ms);
    sigset_t none;
    sigemptyset(&none);
    const PselectMask mask = {&none, kSigsetBytes};
    return syscall(SYS_pselect6, fd + 1, &set, nullptr, nullptr, &t, &mask) == 1 && FD_ISSET(fd, &set);
  });
}

template <long number>
long epoll_call(int set, struct epoll_event* event, int ms) {
  struct timespec t = timespec_of(ms);
  if (number == SYS_epoll_wait) return syscall(number, set, event, 1, ms);
  if (number == SYS_epoll_pwait) return syscall(number, set, event, 1, ms, nullptr, kSigsetBytes);
  return syscall(number, set, event, 1, &t, nullptr, kSigsetBytes);
}

template <long number>
void epoll_client(int fd, const Sync& sync) {
  const int set = static_cast<int>(syscall(SYS_epoll_create1, EPOLL_CLOEXEC));
  CHECK(set >= 0);
  struct epoll_event event = {};
  event.events = EPOLLIN;
  event.data.u64 = 0x1234567890;
  CHECK_EQ(syscall(SYS_epoll_ctl, set, EPOLL_CTL_ADD, fd, &event), 0);
  waits(fd, sync, [set](int ms) {
    struct epoll_event got = {};
    const long n = epoll_call<number>(set, &got, ms);
    if (n == 1) CHECK(got.data.u64 == 0x1234567890 && got.events == EPOLLIN);
    return n == 1;
  });
  CHECK_EQ(syscall(SYS_close, set), 0);
}

// ---- descriptors and options -----------------------------------------------------------------------------------------------

void dup_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  const int second = static_cast<int>(syscall(SYS_dup, fd));
  CHECK(second >= 0);
  exchange(second, &offset);
  CHECK_EQ(syscall(SYS_close, fd), 0);
  CHECK_EQ(syscall(SYS_dup2, second, 300), 300);
  CHECK_EQ(syscall(SYS_dup3, second, 301, O_CLOEXEC), 301);
  CHECK_EQ(syscall(SYS_close, second), 0);
  exchange(300, &offset);
  exchange(301, &offset);
  const int last = static_cast<int>(syscall(SYS_fcntl, 301, F_DUPFD_CLOEXEC, 400));
  CHECK(last >= 400);
  CHECK_EQ(syscall(SYS_close_range, 300, 301, 0), 0);
  CHECK_ERRNO(send(300, "x", 1, MSG_NOSIGNAL), EBADF);
  exchange(last, &offset);
  CHECK_EQ(syscall(SYS_shutdown, last, SHUT_WR), 0);
  expect_eof(last);
  CHECK_EQ(syscall(SYS_close, last), 0);
  sync.wait();
}

void close_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  CHECK_EQ(syscall(SYS_close, fd), 0);
  sync.wait();
  CHECK_ERRNO(syscall(SYS_close, fd), EBADF);
  CHECK_ERRNO(recv(fd, &offset, 1, 0), EBADF);
}

void options_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  const long flags = syscall(SYS_fcntl, fd, F_GETFL, 0);
  CHECK_EQ(syscall(SYS_fcntl, fd, F_SETFL, flags | O_NONBLOCK), 0);
  char byte;
  CHECK_ERRNO(recv(fd, &byte, 1, 0), EAGAIN);
  int off = 0, unread = -1;
  CHECK_EQ(syscall(SYS_ioctl, fd, FIONBIO, &off), 0);
  const struct timeval t = {0, 20000};
  CHECK_EQ(syscall(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t), 0);
  CHECK_ERRNO(recv(fd, &byte, 1, 0), EAGAIN);
  const struct timeval forever = {0, 0};
  CHECK_EQ(syscall(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, &forever, sizeof forever), 0);
  int type = 0;
  socklen_t length = sizeof type;
  CHECK_EQ(syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_TYPE, &type, &length), 0);
  CHECK_EQ(type, SOCK_STREAM);
  send_pattern(fd, kUp, offset, kTripBytes);
  const int64_t deadline = now_ms() + 5000;
  while (unread < static_cast<int>(kTripBytes)) {
    CHECK(now_ms() < deadline);
    CHECK_EQ(syscall(SYS_ioctl, fd, FIONREAD, &unread), 0);
  }
  recv_pattern(fd, kUp, offset, kTripBytes);
  offset += kTripBytes;
  CHECK_EQ(syscall(SYS_ioctl, fd, FIOCLEX, nullptr), 0);
  CHECK_EQ(syscall(SYS_fcntl, fd, F_GETFD, 0), FD_CLOEXEC);
  exchange(fd, &offset);
  finish(fd, sync);
}

// A second connection, made and taken by number.
void accept_server(int fd, const Sync& sync) {
  const int listener = listen_on("127.0.0.1");
  const int port = port_of(listener);
  send_all(fd, &port, sizeof port);
  const int second = static_cast<int>(syscall(SYS_accept4, listener, nullptr, nullptr, SOCK_CLOEXEC));
  CHECK(second >= 0);
  close(listener);
  no_delay(second);
  echo_until_eof(second);
  CHECK_EQ(syscall(SYS_close, second), 0);
  echo_server(fd, sync);
}

void accept_client(int fd, const Sync& sync) {
  int port;
  recv_all(fd, &port, sizeof port);
  Address a = make_address("127.0.0.1", port);
  const int second = static_cast<int>(syscall(SYS_socket, AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  CHECK(second >= 0);
  CHECK_EQ(syscall(SYS_connect, second, a.get(), a.length), 0);
  no_delay(second);
  uint64_t offset = 0;
  exchange(second, &offset, 10 * kTrips);
  CHECK_EQ(syscall(SYS_shutdown, second, SHUT_WR), 0);
  expect_eof(second);
  CHECK_EQ(syscall(SYS_close, second), 0);
  offset = 0;
  exchange(fd, &offset);
  finish(fd, sync);
}

// ---- processes -------------------------------------------------------------------------------------------------------------

template <long number>
void fork_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  const pid_t child = static_cast<pid_t>(number == SYS_clone ? syscall(number, SIGCHLD, nullptr, nullptr, nullptr, nullptr)
                                                              : syscall(number));
  CHECK(child >= 0);
  if (child == 0) {
    exchange(fd, &offset);
    syscall(SYS_exit_group, 7);
  }
  CHECK_EQ(reap(child), 7);
  skip_exchange(&offset);
  exchange(fd, &offset);
  finish(fd, sync);
}

const Case kCases[] = {
    {"read", echo_server, read_client},
    {"readv", echo_server, readv_client},
    {"recvfrom", echo_server, recvfrom_client},
    {"recvmsg", echo_server, recvmsg_client},
    {"recvmmsg", echo_server, recvmmsg_client},
    {"sendfile", echo_server, sendfile_client},
    {"splice", echo_server, splice_client},
    {"poll", echo_server, poll_client},
    {"ppoll", echo_server, ppoll_client},
    {"select", echo_server, select_client},
    {"pselect6", echo_server, pselect_client},
    {"epoll_wait", echo_server, epoll_client<SYS_epoll_wait>},
    {"epoll_pwait", echo_server, epoll_client<SYS_epoll_pwait>},
    {"epoll_pwait2", echo_server, epoll_client<SYS_epoll_pwait2>},
    {"dup", echo_server, dup_client},
    {"close", echo_server, close_client},
    {"options", echo_server, options_client},
    {"accept4", accept_server, accept_client},
    {"fork", echo_server, fork_client<SYS_fork>},
    {"clone", echo_server, fork_client<SYS_clone>},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
