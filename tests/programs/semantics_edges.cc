// SPDX-License-Identifier: MIT
// Oddities around a stream: the widest arrays and sets, the smallest stack, a call that is no cancellation point, handlers that did not
// run, a flag that another process sets. `NAME list` prints the cases.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/wait.h>

#include <initializer_list>

#include "asleep.h"
#include "case_main.h"

using namespace testlib;

namespace {

constexpr uint64_t kUp = 91;
constexpr size_t kBytes = 100;

// The other end of most cases: sends as often as it is asked to, then closes.
void sender_client(int fd, const Sync& sync) {
  sync.wait();
  send_pattern(fd, kUp, 0, kBytes);
  expect_eof(fd);
  close(fd);
}

void take(int fd) {
  recv_pattern(fd, kUp, 0, kBytes);
  close(fd);
}

// As many entries as poll takes, all but one unused.
void full_array_server(int fd, const Sync& sync) {
  struct rlimit limit;
  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const auto n = static_cast<nfds_t>(limit.rlim_cur);
  auto* entries = static_cast<struct pollfd*>(calloc(n, sizeof(struct pollfd)));
  CHECK(entries != nullptr);
  for (nfds_t i = 0; i < n; i++) entries[i] = {-1, POLLIN, 0};
  entries[n / 2].fd = fd;
  CHECK_EQ(poll(entries, n, 50), 0);
  WhenAsleep later([&sync] { sync.post(); });
  CHECK_EQ(poll(entries, n, 5000), 1);
  CHECK_EQ(entries[n / 2].revents, POLLIN);
  free(entries);
  take(fd);
}

// select(getdtablesize(), …) on a set of FD_SETSIZE: the kernel looks no further than there are descriptors.
void wide_select_server(int fd, const Sync& sync) {
  constexpr size_t kBehind = 1 << 16;
  auto* memory = static_cast<unsigned char*>(malloc(sizeof(fd_set) + kBehind));
  CHECK(memory != nullptr);
  auto* set = reinterpret_cast<fd_set*>(memory);
  const auto expect_behind = [&] {
    for (size_t i = 0; i < kBehind; i++) CHECK_EQ(memory[sizeof(fd_set) + i], 0x5a);
  };
  memset(memory + sizeof(fd_set), 0x5a, kBehind);
  sync.post();
  FD_ZERO(set);
  FD_SET(fd, set);
  struct timeval limit = {5, 0};
  CHECK_EQ(select(1 << 16, set, nullptr, nullptr, &limit), 1);
  CHECK(FD_ISSET(fd, set));
  expect_behind();
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  CHECK_EQ(write(ends[1], "x", 1), 1);
  FD_ZERO(set);
  FD_SET(ends[0], set);
  CHECK_EQ(select(1 << 16, set, nullptr, nullptr, &limit), 1);
  CHECK(FD_ISSET(ends[0], set));
  expect_behind();
  close(ends[0]);
  close(ends[1]);
  free(memory);
  take(fd);
}

int file_of_pattern(size_t bytes) {
  const int file = memfd_create("pattern", MFD_CLOEXEC);
  CHECK(file >= 0);
  char buffer[4096];
  for (size_t at = 0; at < bytes; at += sizeof buffer) {
    pattern_fill(buffer, sizeof buffer, kUp, at);
    CHECK_EQ(write(file, buffer, sizeof buffer), sizeof buffer);
  }
  return file;
}

constexpr size_t kFileBytes = 4 << 20;

struct Job {
  int fd;
  int file;
  ssize_t sent;
};

void* send_all_of_it(void* argument) {
  auto* job = static_cast<Job*>(argument);
  off_t offset = 0;
  job->sent = 0;
  while (static_cast<size_t>(offset) < kFileBytes) {
    const ssize_t n = sendfile(job->fd, job->file, &offset, kFileBytes - static_cast<size_t>(offset));
    if (n <= 0) break;
    job->sent += n;
  }
  return nullptr;
}

void small_stack_server(int fd, const Sync&) {
  Job job = {fd, file_of_pattern(kFileBytes), 0};
  pthread_attr_t small;
  CHECK_EQ(pthread_attr_init(&small), 0);
  CHECK_EQ(pthread_attr_setstacksize(&small, static_cast<size_t>(PTHREAD_STACK_MIN)), 0);
  pthread_t thread;
  CHECK_EQ(pthread_create(&thread, &small, send_all_of_it, &job), 0);
  join_thread(thread);
  CHECK_EQ(job.sent, kFileBytes);
  close(job.file);
  close(fd);
}

// Cancelled while it sleeps in sendfile, which goes on until all is sent.
void cancel_sendfile_server(int fd, const Sync& sync) {
  Job job = {fd, file_of_pattern(kFileBytes), 0};
  const pthread_t thread = start_thread(send_all_of_it, &job);
  CHECK_EQ(pthread_cancel(thread), 0);
  sync.post();
  join_thread(thread);
  CHECK_EQ(job.sent, kFileBytes);
  close(job.file);
  close(fd);
}

void reader_client(int fd, const Sync&) {
  recv_pattern(fd, kUp, 0, kFileBytes);
  expect_eof(fd);
  close(fd);
}

void late_reader_client(int fd, const Sync& sync) {
  sync.wait();
  reader_client(fd, sync);
}

// A crash handler without SA_RESTART says nothing about the handler that has run, nor does one whose signal is blocked.
void crash_handler_server(int fd, const Sync& sync) {
  struct sigaction action = {};
  action.sa_handler = [](int) {};
  for (const int number : {SIGSEGV, SIGFPE, SIGUSR2}) CHECK_EQ(sigaction(number, &action, nullptr), 0);
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR2);
  CHECK_EQ(pthread_sigmask(SIG_BLOCK, &blocked, nullptr), 0);
  action.sa_flags = SA_RESTART;
  CHECK_EQ(sigaction(SIGUSR1, &action, nullptr), 0);
  const pthread_t self = pthread_self();
  const pid_t tid = gettid();
  WhenAsleep later([self, tid, &sync] {
    pthread_kill(self, SIGUSR1);
    await_asleep(tid);
    sync.post();
  });
  char byte;
  CHECK_EQ(recv(fd, &byte, 1, 0), 1);
  char rest[kBytes - 1];
  CHECK_EQ(recv(fd, rest, sizeof rest, MSG_WAITALL), sizeof rest);
  close(fd);
}

// O_NONBLOCK is the open file's: a child that sets it sets it for its parent, too.
void nonblocking_child_server(int fd, const Sync& sync) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    set_nonblocking(fd);
    kill(getpid(), SIGKILL);
  }
  int status;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK(WIFSIGNALED(status));
  char byte;
  CHECK_ERRNO(recv(fd, &byte, 1, 0), EAGAIN);
  CHECK_EQ(fcntl(fd, F_SETFL, 0), 0);
  sync.post();
  take(fd);
}

const Case kCases[] = {
    {"full_array", full_array_server, sender_client},
    {"wide_select", wide_select_server, sender_client},
    {"small_stack", small_stack_server, reader_client},
    {"cancel_sendfile", cancel_sendfile_server, late_reader_client},
    {"crash_handler", crash_handler_server, sender_client},
    {"nonblocking_child", nonblocking_child_server, sender_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
