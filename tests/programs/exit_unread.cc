// SPDX-License-Identifier: MIT
// exit_unread run --rounds=N: a child ends while its parent sends to it. Preloaded, with MPKLINK_WARMUP=0. Prints how often a receive of the
// parent's said "end of file" of a child that had bytes unread, which TCP calls a reset. The two meet in the microseconds between the FIN
// of a close and the kernel's taking the socket from its process.
#include <sys/wait.h>
#include <time.h>

#include "testlib.h"

using namespace testlib;

namespace {

constexpr int kTrips = 30;

void busy_us(unsigned us) {
  timespec begin = {}, now = {};
  clock_gettime(CLOCK_MONOTONIC, &begin);
  do clock_gettime(CLOCK_MONOTONIC, &now);
  while ((now.tv_sec - begin.tv_sec) * 1000000 + (now.tv_nsec - begin.tv_nsec) / 1000 < us);
}

[[noreturn]] void child(int port, int gone, unsigned linger_us) {
  const int fd = connect_to("127.0.0.1", port);
  char message[8] = "1234567";
  for (int i = 0; i < kTrips; i++) {
    CHECK_EQ(send(fd, message, sizeof message, 0), 8);
    CHECK_EQ(recv(fd, message, sizeof message, MSG_WAITALL), 8);
  }
  CHECK_EQ(write(gone, "g", 1), 1);
  busy_us(linger_us);
  _exit(0);
}

// True: the end of file came in the place of the reset.
bool round_of(int listener, unsigned number) {
  int pipe_ends[2];
  CHECK_EQ(pipe(pipe_ends), 0);
  unsigned seed = number;
  const unsigned child_us = static_cast<unsigned>(rand_r(&seed)) % 500, our_us = static_cast<unsigned>(rand_r(&seed)) % 400;
  const pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) child(port_of(listener), pipe_ends[1], child_us);
  const int fd = accept(listener, nullptr, nullptr);
  CHECK(fd >= 0);
  char message[8];
  for (int i = 0; i < kTrips; i++) {
    CHECK_EQ(recv(fd, message, sizeof message, MSG_WAITALL), 8);
    CHECK_EQ(send(fd, message, sizeof message, 0), 8);
  }
  CHECK_EQ(read(pipe_ends[0], message, 1), 1);
  busy_us(our_us);
  const bool sent = send(fd, message, sizeof message, MSG_NOSIGNAL) == 8;
  ssize_t n = 0;
  const int flags = number % 2 != 0 ? MSG_DONTWAIT : 0;
  do n = recv(fd, message, sizeof message, flags);
  while (n < 0 && errno == EAGAIN);
  CHECK(n <= 0);
  close(fd);
  close(pipe_ends[0]);
  close(pipe_ends[1]);
  CHECK_EQ(waitpid(pid, nullptr, 0), pid);
  return sent && n == 0;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const auto rounds = static_cast<unsigned>(options.number("rounds", 100));
  const int listener = listen_on("127.0.0.1");
  unsigned silent = 0;
  for (unsigned i = 0; i < rounds; i++) silent += round_of(listener, i);
  printf("ROUNDS %u SILENT %u\nEXIT-SUCCESS\n", rounds, silent);
  return silent == 0 ? 0 : 1;
}
