// SPDX-License-Identifier: MIT
// Every call that can sleep on a stream, in one table, each with what makes it return: for signals, cancellation and descriptors
// that are closed under a sleeping thread.
#pragma once

#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>

#include "calls.h"
#include "peer.h"

namespace testlib {

inline constexpr size_t kBlockBytes = 1000;

enum class Kind {
  kRead,  // sleeps until bytes come; moves at most kBlockBytes
  kSend,  // sleeps while the stream is full; moves kBlockBytes
  kWait,  // sleeps until there is something to read; moves nothing; never restarted after a signal
};

struct BlockingCall {
  const char* name;
  Kind kind;
  ssize_t (*call)(int fd, void* buffer);
};

// Closed even when the thread that waits is cancelled.
inline void close_number(void* fd) { close(*static_cast<int*>(fd)); }

template <typename Wait>
ssize_t wait_in_epoll(int fd, Wait wait) {
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  CHECK(epoll >= 0);
  ssize_t n;
  int saved;
  pthread_cleanup_push(close_number, &epoll);
  struct epoll_event event = {}, got;
  event.events = EPOLLIN;
  CHECK_EQ(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
  n = wait(epoll, &got);
  saved = errno;
  pthread_cleanup_pop(1);
  errno = saved;
  return n;
}

inline ssize_t send_file(int fd, void* buffer) {
  int file = memfd_create("file", MFD_CLOEXEC);
  CHECK(file >= 0);
  ssize_t n;
  int saved;
  pthread_cleanup_push(close_number, &file);
  CHECK_EQ(write(file, buffer, kBlockBytes), kBlockBytes);
  off_t offset = 0;
  n = sendfile(fd, file, &offset, kBlockBytes);
  saved = errno;
  pthread_cleanup_pop(1);
  errno = saved;
  return n;
}

inline fd_set only(int fd) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(fd, &set);
  return set;
}

inline constexpr struct timespec kTenSeconds = {10, 0};

template <size_t N>
ssize_t read_with(int fd, void* buffer) {
  return kReadCalls[N].call(fd, buffer, kBlockBytes);
}

template <size_t N>
ssize_t send_with(int fd, void* buffer) {
  return kSendCalls[N].call(fd, buffer, kBlockBytes);
}

inline constexpr BlockingCall kBlockingCalls[] = {
    {"read", Kind::kRead, read_with<0>},
    {"recv", Kind::kRead, read_with<1>},
    {"recvfrom", Kind::kRead, read_with<2>},
    {"readv", Kind::kRead, read_with<3>},
    {"recvmsg", Kind::kRead, read_with<4>},
    {"recvmmsg", Kind::kRead, read_with<5>},
    {"write", Kind::kSend, send_with<0>},
    {"send", Kind::kSend, send_with<1>},
    {"sendto", Kind::kSend, send_with<2>},
    {"writev", Kind::kSend, send_with<3>},
    {"sendmsg", Kind::kSend, send_with<4>},
    {"sendmmsg", Kind::kSend, send_with<5>},
    {"sendfile", Kind::kSend, send_file},
    {"poll", Kind::kWait,
     [](int fd, void*) -> ssize_t {
       struct pollfd p = {fd, POLLIN, 0};
       return poll(&p, 1, 10000);
     }},
    {"ppoll", Kind::kWait,
     [](int fd, void*) -> ssize_t {
       struct pollfd p = {fd, POLLIN, 0};
       return ppoll(&p, 1, &kTenSeconds, nullptr);
     }},
    {"select", Kind::kWait,
     [](int fd, void*) -> ssize_t {
       fd_set set = only(fd);
       struct timeval ten = {10, 0};
       return select(fd + 1, &set, nullptr, nullptr, &ten);
     }},
    {"pselect", Kind::kWait,
     [](int fd, void*) -> ssize_t {
       fd_set set = only(fd);
       return pselect(fd + 1, &set, nullptr, nullptr, &kTenSeconds, nullptr);
     }},
    {"epoll_wait", Kind::kWait,
     [](int fd, void*) {
       return wait_in_epoll(fd, [](int epoll, struct epoll_event* got) { return epoll_wait(epoll, got, 1, 10000); });
     }},
    {"epoll_pwait", Kind::kWait,
     [](int fd, void*) {
       return wait_in_epoll(fd, [](int epoll, struct epoll_event* got) { return epoll_pwait(epoll, got, 1, 10000, nullptr); });
     }},
    {"epoll_pwait2", Kind::kWait,
     [](int fd, void*) {
       return wait_in_epoll(fd, [](int epoll, struct epoll_event* got) { return epoll_pwait2(epoll, got, 1, &kTenSeconds, nullptr); });
     }},
};

}  // namespace testlib
