// SPDX-License-Identifier: MIT
// Loops and calls that close everything, as daemons and programs about to exec do: also what the library has hidden in the
// process. `NAME list` prints the cases.
#include <dirent.h>
#include <linux/close_range.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "case_tools.h"

using namespace testlib;

namespace {

// Traffic with pauses that are long enough to put either end to sleep in the kernel.
void sleepy_exchange(int fd, uint64_t* offset) {
  for (int i = 0; i < 5; i++) {
    exchange(fd, offset, 5);
    sleep_ms(5);
  }
}

void close_from(unsigned first) { CHECK_EQ(close_range(first, ~0u, 0), 0); }

unsigned above(int fd, const Sync& sync) { return static_cast<unsigned>(fd > sync.fd() ? fd : sync.fd()) + 1; }

// ---- everything but the stream -------------------------------------------------------------------------------------------

void loop(int fd, const Sync& sync) {
  struct rlimit limit;
  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const int end = limit.rlim_cur < 65536 ? static_cast<int>(limit.rlim_cur) : 65536;
  for (int i = 3; i < end; i++)
    if (i != fd && i != sync.fd()) close(i);
}

void raw_loop(int fd, const Sync& sync) {
  for (int i = 3; i < 4096; i++)
    if (i != fd && i != sync.fd()) syscall(SYS_close, i);
}

// As Python's and others' fallback: what /proc says is open.
void proc_loop(int fd, const Sync& sync) {
  DIR* dir = opendir("/proc/self/fd");
  CHECK(dir != nullptr);
  for (struct dirent* e = readdir(dir); e != nullptr; e = readdir(dir)) {
    const int number = atoi(e->d_name);
    if (number > 2 && number != fd && number != sync.fd() && number != dirfd(dir)) close(number);
  }
  closedir(dir);
}

void by_closefrom(int fd, const Sync& sync) { closefrom(static_cast<int>(above(fd, sync))); }
void by_close_range(int fd, const Sync& sync) { close_from(above(fd, sync)); }
void by_close_range_call(int fd, const Sync& sync) { CHECK_EQ(syscall(SYS_close_range, above(fd, sync), ~0u, 0), 0); }
void by_unshare(int fd, const Sync& sync) { CHECK_EQ(close_range(above(fd, sync), ~0u, CLOSE_RANGE_UNSHARE), 0); }
void by_cloexec(int fd, const Sync& sync) { CHECK_EQ(close_range(above(fd, sync), ~0u, CLOSE_RANGE_CLOEXEC), 0); }
void by_both_flags(int fd, const Sync& sync) {
  CHECK_EQ(close_range(above(fd, sync), ~0u, CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC), 0);
}

template <void (*close_all)(int, const Sync&)>
void kept_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  sleepy_exchange(fd, &offset);
  for (int i = 0; i < 2; i++) {
    close_all(fd, sync);
    sleepy_exchange(fd, &offset);
  }
  finish(fd, sync);
}

// The peer is asleep on the stream meanwhile; and new streams can be made afterwards.
void new_stream_server(int fd, const Sync& sync) {
  const int listener = listen_on("127.0.0.1");
  const int port = port_of(listener);
  send_all(fd, &port, sizeof port);
  const int second = accept_one(listener);
  close(listener);
  no_delay(second);
  echo_until_eof(second);
  close(second);
  echo_server(fd, sync);
}

void new_stream_client(int fd, const Sync& sync) {
  int port;
  recv_all(fd, &port, sizeof port);
  loop(fd, sync);
  const int second = connect_to("127.0.0.1", port);
  no_delay(second);
  uint64_t offset = 0;
  exchange(second, &offset, 10 * kTrips);
  loop(fd, sync);  // closes it
  CHECK_ERRNO(close(second), EBADF);
  offset = 0;
  sleepy_exchange(fd, &offset);
  finish(fd, sync);
}

// ---- in a child -------------------------------------------------------------------------------------------------------------

// Between fork and exec: the parent's stream goes on.
template <bool by_vfork>
pid_t closing_child(void (*close_all)()) {
  const pid_t child = by_vfork ? vfork() : fork();
  if (child == 0) {
    close_all();
    execl("/bin/true", "true", nullptr);
    _exit(1);
  }
  CHECK(child > 0);
  return child;
}

void child_loop() {
  for (int i = 3; i < 1024; i++) close(i);
}
void child_range() { close_range(3, ~0u, 0); }
void child_closefrom() { closefrom(3); }
void child_cloexec() { close_range(3, ~0u, CLOSE_RANGE_CLOEXEC); }

template <bool by_vfork>
void child_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  sleepy_exchange(fd, &offset);
  void (*const ways[])() = {child_loop, child_range, child_closefrom, child_cloexec};
  for (const auto way : ways) {
    const pid_t child = closing_child<by_vfork>(way);
    exchange(fd, &offset);
    CHECK_EQ(reap(child), 0);
    sleepy_exchange(fd, &offset);
  }
  finish(fd, sync);
}

// ---- the stream as well -------------------------------------------------------------------------------------------------------

void end_loop(int fd) {
  for (int i = fd; i < 4096; i++) close(i);
}
void end_range(int fd) { close_from(static_cast<unsigned>(fd)); }
void end_closefrom(int fd) { closefrom(fd); }
void end_unshare(int fd) { CHECK_EQ(close_range(static_cast<unsigned>(fd), ~0u, CLOSE_RANGE_UNSHARE), 0); }

// The peer reads what was sent, then sees the end; the side channel is kept by a high number in front of the range's end.
template <void (*close_all)(int)>
void ended_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  CHECK_EQ(dup2(sync.fd(), 0), 0);
  const int high = dup2(fd, 500);  // so that nothing below it is in the way
  CHECK_EQ(high, 500);
  CHECK_EQ(close(fd), 0);
  send_pattern(high, kUp, offset, kUnread);
  close_all(high);
  Sync(0).wait();  // the other end has seen it
  CHECK_ERRNO(send(high, "x", 1, MSG_NOSIGNAL), EBADF);
}

void ended_server(int fd, const Sync& sync) {
  uint64_t offset = 0;
  answer(fd, &offset);
  recv_pattern(fd, kUp, offset, kUnread);
  expect_eof(fd);
  sync.post();
  close(fd);
}

const Case kCases[] = {
    {"loop", echo_server, kept_client<loop>},
    {"raw_loop", echo_server, kept_client<raw_loop>},
    {"proc_loop", echo_server, kept_client<proc_loop>},
    {"closefrom", echo_server, kept_client<by_closefrom>},
    {"range", echo_server, kept_client<by_close_range>},
    {"range_call", echo_server, kept_client<by_close_range_call>},
    {"range_unshare", echo_server, kept_client<by_unshare>},
    {"range_cloexec", echo_server, kept_client<by_cloexec>},
    {"range_both", echo_server, kept_client<by_both_flags>},
    {"new_stream", new_stream_server, new_stream_client},
    {"child_fork", echo_server, child_client<false>},
    {"child_vfork", echo_server, child_client<true>},
    {"ended_loop", ended_server, ended_client<end_loop>},
    {"ended_range", ended_server, ended_client<end_range>},
    {"ended_closefrom", ended_server, ended_client<end_closefrom>},
    {"ended_unshare", ended_server, ended_client<end_unshare>},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
