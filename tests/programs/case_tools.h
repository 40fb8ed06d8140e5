// SPDX-License-Identifier: MIT
// What the cases about processes have in common: an echoing end, exchanges with it, children and programs to run.
#pragma once

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>

#include "case_main.h"

namespace testlib {

inline constexpr uint64_t kUp = 71, kDown = 72;
inline constexpr size_t kTripBytes = 200;
inline constexpr int kTrips = 20;
inline constexpr size_t kUnread = 1000;  // fits into the smallest ring

inline void echo_until_eof(int fd) {
  char buffer[4096];
  ssize_t n;
  while ((n = recv(fd, buffer, sizeof buffer, 0)) > 0) send_all(fd, buffer, static_cast<size_t>(n));
  CHECK_EQ(n, 0);
}

// The end that most cases meet: echoes until end of file, and says so.
inline void echo_server(int fd, const Sync& sync) {
  echo_until_eof(fd);
  sync.post();
  close(fd);
}

// Round trips with an echo; `offset` moves on.
inline void exchange(int fd, uint64_t* offset, int trips = kTrips) {
  for (int i = 0; i < trips; i++) {
    send_pattern(fd, kUp, *offset, kTripBytes);
    recv_pattern(fd, kUp, *offset, kTripBytes);
    *offset += kTripBytes;
  }
}

// The counterpart of `exchange` for so many round trips, where end of file is not the end of it.
inline void answer(int fd, uint64_t* offset, int trips = kTrips) {
  for (int i = 0; i < trips; i++) {
    recv_pattern(fd, kUp, *offset, kTripBytes);
    send_pattern(fd, kUp, *offset, kTripBytes);
    *offset += kTripBytes;
  }
}

// Somebody else has made an `exchange`.
inline void skip_exchange(uint64_t* offset, int trips = kTrips) { *offset += static_cast<uint64_t>(trips) * kTripBytes; }

// Ends a stream whose other end is an echo_server.
inline void finish(int fd, const Sync& sync) {
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  expect_eof(fd);
  close(fd);
  sync.wait();
}

inline int reap(pid_t child) {
  int status;
  pid_t got;
  do got = waitpid(child, &status, 0);
  while (got < 0 && errno == EINTR);
  CHECK_EQ(got, child);
  if (!WIFEXITED(status)) fprintf(stderr, "child %d ended by signal %d\n", static_cast<int>(child), WTERMSIG(status));
  CHECK(WIFEXITED(status));
  return WEXITSTATUS(status);
}

inline pid_t fork_checked() {
  const pid_t child = fork();
  CHECK(child >= 0);
  return child;
}

// A pipe on which one process waits for another.
class Gate {
 public:
  Gate() { CHECK_EQ(pipe2(ends_, O_CLOEXEC), 0); }
  void open() const { CHECK_EQ(write(ends_[1], "g", 1), 1); }
  void wait() const {
    char byte;
    CHECK_EQ(read(ends_[0], &byte, 1), 1);
  }

 private:
  int ends_[2];
};

inline void set_close_on_exec(int fd, bool on = true) { CHECK_EQ(fcntl(fd, F_SETFD, on ? FD_CLOEXEC : 0), 0); }

// Until `fd` is readable, without reading it.
inline void wait_readable(int fd) {
  struct pollfd p = {fd, POLLIN, 0};
  CHECK_EQ(poll(&p, 1, 5000), 1);
}

// ---- programs to run --------------------------------------------------------------------------------------------------

// This program once more, in another role: `NAME ROLE [ARGUMENT…]`, numbers as text.
class Self {
 public:
  explicit Self(const char* role, long a = -1, long b = -1, long c = -1) {
    const ssize_t n = readlink("/proc/self/exe", path_, sizeof path_ - 1);
    CHECK(n > 0);
    path_[n] = '\0';
    argv_[0] = path_;
    argv_[1] = const_cast<char*>(role);
    const long numbers[] = {a, b, c};
    for (size_t i = 0; i < 3; i++) {
      snprintf(text_[i], sizeof text_[i], "%ld", numbers[i]);
      argv_[2 + i] = text_[i];
    }
  }
  const char* path() const { return path_; }
  char* const* argv() const { return argv_; }

 private:
  char path_[512];
  char text_[3][24];
  char* argv_[6] = {};
};

// The environment without the variables of the dynamic linker: nothing is preloaded into what runs with it.
inline char** plain_environment() {
  static char* kept[256];
  size_t n = 0;
  for (char** e = environ; *e != nullptr && n < 255; e++)
    if (strncmp(*e, "LD_", 3) != 0) kept[n++] = *e;
  kept[n] = nullptr;
  return kept;
}

}  // namespace testlib
