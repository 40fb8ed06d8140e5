// SPDX-License-Identifier: MIT
// What every program in this folder needs: checks that end the process, command line options, listening and connecting,
// exact I/O and a byte pattern that shows loss, repetition and reordering. libc only: these are the "unmodified programs".
//
// A program is `NAME server [--opt=value]…` (prints "PORT n" when it listens), `NAME client --port=n …` or `NAME both …`
// (both ends in one process). It exits 0 with the last line EXIT-SUCCESS, or prints the check that failed and exits 1.
#pragma once

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

namespace testlib {

[[noreturn]] inline void fail(const char* file, int line, const char* what) {
  const int error = errno;
  fprintf(stderr, "%s:%d: check failed: %s (errno %d: %s)\n", file, line, what, error, strerror(error));
  fflush(stdout);
  fflush(stderr);
  _exit(1);
}

[[noreturn]] inline void fail_equal(const char* file, int line, const char* what, long long got, long long want) {
  const int error = errno;
  fprintf(stderr, "%s:%d: check failed: %s: got %lld, want %lld (errno %d: %s)\n", file, line, what, got, want, error,
          strerror(error));
  fflush(stdout);
  fflush(stderr);
  _exit(1);
}

#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) ::testlib::fail(__FILE__, __LINE__, #condition); \
  } while (0)

#define CHECK_EQ(got_expr, want_expr)                                                              \
  do {                                                                                             \
    const long long check_got = static_cast<long long>(got_expr);                                  \
    const long long check_want = static_cast<long long>(want_expr);                                \
    if (check_got != check_want)                                                                   \
      ::testlib::fail_equal(__FILE__, __LINE__, #got_expr " == " #want_expr, check_got, check_want); \
  } while (0)

// `call` must fail with `error`.
#define CHECK_ERRNO(call, error)   \
  do {                             \
    errno = 0;                     \
    CHECK_EQ(call, -1);            \
    CHECK_EQ(errno, error);        \
  } while (0)

// ---- options ----------------------------------------------------------------------------------------------------------

// The command line, looked up by name where it is needed.
class Options {
 public:
  Options(int argc, char** argv) : argc_(argc), argv_(argv) {}

  const char* role() const { return argc_ > 1 ? argv_[1] : ""; }
  bool is(const char* role_name) const { return strcmp(role(), role_name) == 0; }

  const char* text(const char* name, const char* fallback) const {
    const size_t length = strlen(name);
    for (int i = 2; i < argc_; i++) {
      const char* arg = argv_[i];
      if (strncmp(arg, "--", 2) == 0 && strncmp(arg + 2, name, length) == 0 && arg[2 + length] == '=') return arg + 3 + length;
    }
    return fallback;
  }

  long number(const char* name, long fallback) const {
    const char* value = text(name, nullptr);
    return value != nullptr ? strtol(value, nullptr, 0) : fallback;
  }

 private:
  int argc_;
  char** argv_;
};

// ---- random numbers and patterns --------------------------------------------------------------------------------------

// splitmix64: the same sequence on every machine, one per connection and thread.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // 1 … limit, small values as likely as big ones.
  size_t size(size_t limit) {
    const uint64_t r = next();
    const size_t scale = limit >> (r % 8 * 2);
    return 1 + (r >> 8) % (scale > 0 ? scale : 1);
  }

 private:
  uint64_t state_;
};

// Byte `offset` of the stream called `seed`.
inline uint8_t pattern_byte(uint64_t seed, uint64_t offset) {
  return static_cast<uint8_t>(((offset + seed * 1000003u) * 0x9E3779B97F4A7C15u) >> 56);
}

inline void pattern_fill(void* buffer, size_t length, uint64_t seed, uint64_t offset) {
  auto* bytes = static_cast<uint8_t*>(buffer);
  for (size_t i = 0; i < length; i++) bytes[i] = pattern_byte(seed, offset + i);
}

inline void pattern_check(const void* buffer, size_t length, uint64_t seed, uint64_t offset) {
  const auto* bytes = static_cast<const uint8_t*>(buffer);
  for (size_t i = 0; i < length; i++) {
    if (bytes[i] == pattern_byte(seed, offset + i)) continue;
    fprintf(stderr, "stream %llu: wrong byte at offset %llu: got %02x, want %02x\n", static_cast<unsigned long long>(seed),
            static_cast<unsigned long long>(offset + i), bytes[i], pattern_byte(seed, offset + i));
    CHECK(!"pattern");
  }
}

// ---- exact I/O --------------------------------------------------------------------------------------------------------

inline void send_all(int fd, const void* buffer, size_t length) {
  const auto* bytes = static_cast<const char*>(buffer);
  while (length > 0) {
    const ssize_t n = send(fd, bytes, length, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    CHECK(n > 0);
    bytes += n;
    length -= static_cast<size_t>(n);
  }
}

// Reads exactly `length` bytes; end of file before that is a failure.
inline void recv_all(int fd, void* buffer, size_t length) {
  auto* bytes = static_cast<char*>(buffer);
  while (length > 0) {
    const ssize_t n = recv(fd, bytes, length, 0);
    if (n < 0 && errno == EINTR) continue;
    CHECK(n > 0);
    bytes += n;
    length -= static_cast<size_t>(n);
  }
}

// The next `length` bytes of the stream called `seed`, through a buffer of `kStep`.
inline constexpr size_t kStep = 16384;

inline void send_pattern(int fd, uint64_t seed, uint64_t offset, size_t length) {
  char buffer[kStep];
  while (length > 0) {
    const size_t step = length < sizeof buffer ? length : sizeof buffer;
    pattern_fill(buffer, step, seed, offset);
    send_all(fd, buffer, step);
    offset += step;
    length -= step;
  }
}

inline void recv_pattern(int fd, uint64_t seed, uint64_t offset, size_t length) {
  char buffer[kStep];
  while (length > 0) {
    const size_t step = length < sizeof buffer ? length : sizeof buffer;
    recv_all(fd, buffer, step);
    pattern_check(buffer, step, seed, offset);
    offset += step;
    length -= step;
  }
}

inline void set_nonblocking(int fd, bool on = true) {
  const int flags = fcntl(fd, F_GETFL);
  CHECK(flags >= 0);
  CHECK_EQ(fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK), 0);
}

inline void sleep_ms(long ms) {
  struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  while (nanosleep(&t, &t) != 0 && errno == EINTR) {
  }
}

// Sends the pattern from `offset` on until nothing more fits, also a little later (TCP makes room by itself for a while). Leaves the
// socket blocking. The number of bytes sent, at least `least`. `step`: of one call, 8192 at most.
inline uint64_t fill_up(int fd, uint64_t seed, uint64_t offset, uint64_t least = 2048, size_t step = 8192) {
  const uint64_t start = offset;
  set_nonblocking(fd);
  for (int quiet = 0; quiet < 3; quiet++) {
    char chunk[8192];
    for (;;) {
      pattern_fill(chunk, step, seed, offset);
      const ssize_t n = send(fd, chunk, step, MSG_NOSIGNAL);
      if (n < 0) break;
      CHECK(n > 0);
      offset += static_cast<uint64_t>(n);
      quiet = 0;
    }
    CHECK_EQ(errno, EAGAIN);
    sleep_ms(20);
  }
  set_nonblocking(fd, false);
  CHECK(offset - start >= least);
  return offset - start;
}

inline void expect_eof(int fd) {
  char byte;
  CHECK_EQ(recv(fd, &byte, 1, 0), 0);
}

// Round trips that give the library every chance to upgrade the stream before the interesting part starts.
inline constexpr int kWarmTrips = 40;
inline constexpr size_t kWarmBytes = 100;

inline void warm_client(int fd, int trips = kWarmTrips) {
  for (int i = 0; i < trips; i++) {
    send_pattern(fd, 7, static_cast<uint64_t>(i) * kWarmBytes, kWarmBytes);
    recv_pattern(fd, 8, static_cast<uint64_t>(i) * kWarmBytes, kWarmBytes);
  }
}

inline void warm_server(int fd, int trips = kWarmTrips) {
  for (int i = 0; i < trips; i++) {
    recv_pattern(fd, 7, static_cast<uint64_t>(i) * kWarmBytes, kWarmBytes);
    send_pattern(fd, 8, static_cast<uint64_t>(i) * kWarmBytes, kWarmBytes);
  }
}

// A value the compiler knows nothing about: for the wrong arguments it would warn of.
template <typename T>
T hidden(T value) {
  asm("" : "+r"(value));
  return value;
}

inline int64_t now_ms() {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

// ---- sockets ----------------------------------------------------------------------------------------------------------

struct Address {
  struct sockaddr_storage storage = {};
  socklen_t length = 0;
  struct sockaddr* get() { return reinterpret_cast<struct sockaddr*>(&storage); }
};

// `host`: a numeric IPv4 or IPv6 address.
inline Address make_address(const char* host, int port) {
  Address a;
  if (strchr(host, ':') != nullptr) {
    auto* in6 = reinterpret_cast<struct sockaddr_in6*>(&a.storage);
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(static_cast<uint16_t>(port));
    CHECK_EQ(inet_pton(AF_INET6, host, &in6->sin6_addr), 1);
    a.length = sizeof *in6;
  } else {
    auto* in = reinterpret_cast<struct sockaddr_in*>(&a.storage);
    in->sin_family = AF_INET;
    in->sin_port = htons(static_cast<uint16_t>(port));
    CHECK_EQ(inet_pton(AF_INET, host, &in->sin_addr), 1);
    a.length = sizeof *in;
  }
  return a;
}

inline int port_of(int fd) {
  Address a;
  a.length = sizeof a.storage;
  CHECK_EQ(getsockname(fd, a.get(), &a.length), 0);
  return ntohs(a.storage.ss_family == AF_INET6 ? reinterpret_cast<struct sockaddr_in6*>(&a.storage)->sin6_port
                                               : reinterpret_cast<struct sockaddr_in*>(&a.storage)->sin_port);
}

inline int listen_on(const char* host, int port = 0, int backlog = 128) {
  Address a = make_address(host, port);
  const int fd = socket(a.storage.ss_family, SOCK_STREAM, 0);
  CHECK(fd >= 0);
  const int one = 1;
  CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one), 0);
  if (a.storage.ss_family == AF_INET6) {
    const int off = 0;  // `::` takes IPv4 clients too
    CHECK_EQ(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off), 0);
  }
  CHECK_EQ(bind(fd, a.get(), a.length), 0);
  CHECK_EQ(listen(fd, backlog), 0);
  return fd;
}

// Tells the harness where the server is.
inline void announce(int listener) {
  printf("PORT %d\n", port_of(listener));
  fflush(stdout);
}

inline int accept_one(int listener) {
  const int fd = accept(listener, nullptr, nullptr);
  CHECK(fd >= 0);
  return fd;
}

inline int connect_to(const char* host, int port, int source_port = 0) {
  Address a = make_address(host, port);
  const int fd = socket(a.storage.ss_family, SOCK_STREAM, 0);
  CHECK(fd >= 0);
  if (source_port != 0) {
    const int one = 1;
    CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one), 0);
    Address source = make_address(host, source_port);
    CHECK_EQ(bind(fd, source.get(), source.length), 0);
  }
  CHECK_EQ(connect(fd, a.get(), a.length), 0);
  return fd;
}

inline void no_delay(int fd) {
  const int one = 1;
  CHECK_EQ(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), 0);
}

// ---- threads ----------------------------------------------------------------------------------------------------------

// Runs `function(argument)` in a thread; `T` must be alive until join.
template <typename T>
pthread_t start_thread(void* (*function)(void*), T* argument) {
  pthread_t thread;
  const int error = pthread_create(&thread, nullptr, function, argument);
  errno = error;
  CHECK_EQ(error, 0);
  return thread;
}

inline void join_thread(pthread_t thread) { CHECK_EQ(pthread_join(thread, nullptr), 0); }

inline int succeed() {
  printf("EXIT-SUCCESS\n");
  fflush(stdout);
  return 0;
}

}  // namespace testlib
