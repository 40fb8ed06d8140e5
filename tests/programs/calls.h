// SPDX-License-Identifier: MIT
// Every call that reads from or writes to a stream, in tables, for the promises that all of them make.
#pragma once

#include <sys/uio.h>

#include "testlib.h"

namespace testlib {

struct ReadCall {
  const char* name;
  ssize_t (*call)(int fd, void* buffer, size_t length);
};

struct SendCall {
  const char* name;
  ssize_t (*call)(int fd, const void* buffer, size_t length);
};

inline struct msghdr one_entry(struct iovec* iov) {
  struct msghdr message = {};
  message.msg_iov = iov;
  message.msg_iovlen = 1;
  return message;
}

inline constexpr ReadCall kReadCalls[] = {
    {"read", [](int fd, void* b, size_t n) { return read(fd, b, n); }},
    {"recv", [](int fd, void* b, size_t n) { return recv(fd, b, n, 0); }},
    {"recvfrom", [](int fd, void* b, size_t n) { return recvfrom(fd, b, n, 0, nullptr, nullptr); }},
    {"readv",
     [](int fd, void* b, size_t n) {
       const struct iovec iov = {b, n};
       return readv(fd, &iov, 1);
     }},
    {"recvmsg",
     [](int fd, void* b, size_t n) {
       struct iovec iov = {b, n};
       struct msghdr message = one_entry(&iov);
       return recvmsg(fd, &message, 0);
     }},
    {"recvmmsg",
     [](int fd, void* b, size_t n) {
       struct iovec iov = {b, n};
       struct mmsghdr message = {one_entry(&iov), 0};
       const int messages = recvmmsg(fd, &message, 1, 0, nullptr);
       return messages == 1 ? static_cast<ssize_t>(message.msg_len) : static_cast<ssize_t>(messages);
     }},
};

inline constexpr SendCall kSendCalls[] = {
    {"write", [](int fd, const void* b, size_t n) { return write(fd, b, n); }},
    {"send", [](int fd, const void* b, size_t n) { return send(fd, b, n, 0); }},
    {"sendto", [](int fd, const void* b, size_t n) { return sendto(fd, b, n, 0, nullptr, 0); }},
    {"writev",
     [](int fd, const void* b, size_t n) {
       const struct iovec iov = {const_cast<void*>(b), n};
       return writev(fd, &iov, 1);
     }},
    {"sendmsg",
     [](int fd, const void* b, size_t n) {
       struct iovec iov = {const_cast<void*>(b), n};
       const struct msghdr message = one_entry(&iov);
       return sendmsg(fd, &message, 0);
     }},
    {"sendmmsg",
     [](int fd, const void* b, size_t n) {
       struct iovec iov = {const_cast<void*>(b), n};
       struct mmsghdr message = {one_entry(&iov), 0};
       const int messages = sendmmsg(fd, &message, 1, 0);
       return messages == 1 ? static_cast<ssize_t>(message.msg_len) : static_cast<ssize_t>(messages);
     }},
};

// Says on stderr which call of a table comes next: a failed check names only its line.
inline void note(const char* what) { fprintf(stderr, "-- %s\n", what); }

}  // namespace testlib
