// SPDX-License-Identifier: MIT
// Streams and every way to make a child process that does not run another program. `NAME list` prints the cases.
#include <poll.h>
#include <sched.h>
#include <sys/syscall.h>

#include "case_tools.h"

using namespace testlib;

namespace {

constexpr size_t kRecord = 64;
constexpr int kRecords = 100;  // of each writer: far less than any TCP buffer, so that each send is one piece

// ---- children that leave the stream alone -------------------------------------------------------------------------------

// The child ends, or closes its copy; `make` is the kind of fork.
template <pid_t (*make)()>
void bystander_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  for (int i = 0; i < 3; i++) {
    const Gate gate;
    const pid_t child = make();
    CHECK(child >= 0);
    if (child == 0) {
      if (i == 1) close(fd);
      gate.wait();
      _exit(7);
    }
    exchange(fd, &offset);
    gate.open();
    CHECK_EQ(reap(child), 7);
    exchange(fd, &offset);
  }
  finish(fd, sync);
}

// The child has the stream to itself afterwards.
template <pid_t (*make)()>
void heir_server(int fd, const Sync& sync) {
  const pid_t child = make();
  CHECK(child >= 0);
  if (child == 0) {
    echo_until_eof(fd);
    close(fd);
    _exit(7);
  }
  close(fd);
  CHECK_EQ(reap(child), 7);
  sync.post();
}

void exchange_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset, 3 * kTrips);
  finish(fd, sync);
}

// Parent and child take turns.
template <pid_t (*make)()>
void turns_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  const Gate to_child, to_parent;
  const pid_t child = make();
  CHECK(child >= 0);
  for (int turn = 0; turn < 5; turn++) {
    if (child == 0) {
      to_child.wait();
      exchange(fd, &offset, 5);
      to_parent.open();
      skip_exchange(&offset, 5);  // the parent's
    } else {
      to_child.open();
      to_parent.wait();
      skip_exchange(&offset, 5);
      exchange(fd, &offset, 5);
    }
  }
  if (child == 0) _exit(7);
  CHECK_EQ(reap(child), 7);
  exchange(fd, &offset);
  finish(fd, sync);
}

pid_t by_fork() { return fork(); }
pid_t by_underscore_fork() { return _Fork(); }
pid_t by_clone_call() { return static_cast<pid_t>(syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr)); }

// ---- vfork: the child runs in our memory ---------------------------------------------------------------------------------

// Functions of their own: their child must not change a variable that the parent still needs.
int vfork_exit() {
  const pid_t child = vfork();
  CHECK(child >= 0);
  if (child == 0) _exit(7);
  return reap(child);
}

// What shells do: none of it concerns our descriptors.
int vfork_exec(int fd) {
  const pid_t child = vfork();
  CHECK(child >= 0);
  if (child == 0) {
    dup2(fd, 0);
    dup2(0, 200);
    close(fd);
    fcntl(0, F_SETFD, FD_CLOEXEC);
    execl("/bin/true", "true", nullptr);
    _exit(1);
  }
  return reap(child);
}

int vfork_overwrites(int fd) {
  const pid_t child = vfork();
  CHECK(child >= 0);
  if (child == 0) {
    dup2(2, fd);
    execl("/nonexistent", "nonexistent", nullptr);
    _exit(7);
  }
  return reap(child);
}

void vfork_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  CHECK_EQ(vfork_exit(), 7);
  exchange(fd, &offset);
  CHECK_EQ(vfork_exec(fd), 0);
  exchange(fd, &offset);
  CHECK_ERRNO(fcntl(200, F_GETFD), EBADF);
  CHECK_EQ(vfork_overwrites(fd), 7);
  exchange(fd, &offset);
  finish(fd, sync);
}

// ---- clone with shared parts ---------------------------------------------------------------------------------------------

struct Task {
  int fd;
  uint64_t offset;
};

int task_exchange(void* argument) {
  auto* task = static_cast<Task*>(argument);
  exchange(task->fd, &task->offset);
  return 7;
}

int task_close(void* argument) {
  close(static_cast<Task*>(argument)->fd);
  return 7;
}

pid_t clone_child(int (*function)(void*), Task* task, int flags) {
  static char stack[256 * 1024] __attribute__((aligned(16)));
  const pid_t child = clone(function, stack + sizeof stack, flags | SIGCHLD, task);
  CHECK(child > 0);
  return child;
}

// A process of its own with our descriptor table, and with our memory, too. We wait meanwhile, as with vfork.
template <int flags>
void clone_shared_client(int fd, const Sync& sync) {
  Task task = {fd, 0};
  exchange(fd, &task.offset);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(reap(clone_child(task_exchange, &task, flags)), 7);
    if ((flags & CLONE_VM) == 0) skip_exchange(&task.offset);
    exchange(fd, &task.offset);
  }
  finish(fd, sync);
}

// The child closes the one descriptor that both have.
void clone_closes_client(int fd, const Sync& sync) {
  Task task = {fd, 0};
  exchange(fd, &task.offset);
  CHECK_EQ(reap(clone_child(task_close, &task, CLONE_FILES)), 7);
  sync.wait();  // the other end has seen the end of file
  char byte;
  CHECK_ERRNO(recv(fd, &byte, 1, 0), EBADF);
  CHECK_ERRNO(send(fd, "x", 1, MSG_NOSIGNAL), EBADF);
  CHECK_ERRNO(close(fd), EBADF);
}

// ---- both processes use one stream ---------------------------------------------------------------------------------------

constexpr size_t kVolume = 300000;

// One writes, the other reads, at the same time.
template <bool child_reads>
void directions_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  const pid_t child = fork_checked();
  if ((child == 0) == child_reads) recv_pattern(fd, kUp, offset, kVolume);
  else send_pattern(fd, kUp, offset, kVolume);
  if (child == 0) _exit(7);
  CHECK_EQ(reap(child), 7);
  offset += kVolume;
  exchange(fd, &offset);
  finish(fd, sync);
}

void fill_record(char* record, int writer, int number) {
  pattern_fill(record, kRecord, static_cast<uint64_t>(writer) + 200, static_cast<uint64_t>(number));
  record[0] = static_cast<char>(writer);
  record[1] = static_cast<char>(number);
}

// The number of the record; the writer's records come in order.
void check_record(const char* record, int* next) {
  const int writer = record[0];
  CHECK(writer == 0 || writer == 1);
  CHECK(record[1] >= next[writer]);
  char want[kRecord];
  fill_record(want, writer, record[1]);
  CHECK(memcmp(record, want, kRecord) == 0);
  next[writer] = record[1] + 1;
}

void two_writers_server(int fd, const Sync& sync) {
  int next[2] = {};
  char record[kRecord];
  for (int i = 0; i < 2 * kRecords; i++) {
    recv_all(fd, record, sizeof record);
    check_record(record, next);
  }
  CHECK_EQ(next[0], kRecords);
  CHECK_EQ(next[1], kRecords);
  expect_eof(fd);
  sync.post();
  close(fd);
}

void two_writers_client(int fd, const Sync& sync) {
  const pid_t child = fork_checked();
  for (int i = 0; i < kRecords; i++) {
    char record[kRecord];
    fill_record(record, child == 0 ? 1 : 0, i);
    CHECK_EQ(send(fd, record, sizeof record, MSG_NOSIGNAL), kRecord);
  }
  if (child == 0) _exit(7);
  CHECK_EQ(reap(child), 7);
  finish(fd, sync);
}

void two_readers_server(int fd, const Sync& sync) {
  sync.wait();
  for (int i = 0; i < kRecords; i++) {
    char record[kRecord];
    fill_record(record, 0, i);
    CHECK_EQ(send(fd, record, sizeof record, MSG_NOSIGNAL), kRecord);
  }
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  expect_eof(fd);
  sync.post();
  close(fd);
}

// Every record comes to one of the two readers, none to both.
void two_readers_client(int fd, const Sync& sync) {
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  const pid_t child = fork_checked();
  if (child != 0) sync.post();
  bool got[kRecords] = {};
  int next[2] = {};
  char record[kRecord];
  ssize_t n;
  while ((n = recv(fd, record, sizeof record, 0)) > 0) {
    CHECK_EQ(n, sizeof record);
    check_record(record, next);
    got[next[0] - 1] = true;
  }
  CHECK_EQ(n, 0);
  if (child == 0) {
    CHECK_EQ(write(ends[1], got, sizeof got), sizeof got);
    _exit(7);
  }
  bool theirs[kRecords];
  CHECK_EQ(read(ends[0], theirs, sizeof theirs), sizeof theirs);
  CHECK_EQ(reap(child), 7);
  for (int i = 0; i < kRecords; i++) CHECK_EQ(got[i] + theirs[i], 1);
  finish(fd, sync);
}

// shutdown() concerns the stream, so also the reader in the other process.
void shutdown_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  const Gate gate;
  const pid_t child = fork_checked();
  if (child == 0) {
    gate.open();
    expect_eof(fd);
    _exit(7);
  }
  gate.wait();
  sleep_ms(50);  // so that it is probably asleep in recv(); right either way
  CHECK_EQ(shutdown(fd, SHUT_RDWR), 0);
  CHECK_EQ(reap(child), 7);
  sync.wait();
  close(fd);
}

// The child sleeps in poll() on the stream when the bytes come; the parent leaves them alone.
void child_polls_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  const Gate gate;
  const pid_t child = fork_checked();
  if (child == 0) {
    gate.open();
    for (int i = 0; i < kTrips; i++) {
      wait_readable(fd);
      recv_pattern(fd, kUp, offset, kTripBytes);
      offset += kTripBytes;
      gate.open();
    }
    _exit(7);
  }
  gate.wait();
  for (int i = 0; i < kTrips; i++) {
    send_pattern(fd, kUp, offset, kTripBytes);
    offset += kTripBytes;
    gate.wait();
  }
  CHECK_EQ(reap(child), 7);
  exchange(fd, &offset);
  finish(fd, sync);
}

// Unread bytes are divided between a parent that reads some, its child, and the child's child.
void grandchild_server(int fd, const Sync& sync) {
  sync.wait();
  recv_pattern(fd, kUp, 0, 100);
  uint64_t offset = kUnread;
  const pid_t child = fork_checked();
  if (child == 0) {
    recv_pattern(fd, kUp, 100, 200);
    const pid_t grandchild = fork_checked();
    if (grandchild == 0) {
      recv_pattern(fd, kUp, 300, kUnread - 300);
      send_pattern(fd, kUp, 0, kUnread);
      answer(fd, &offset);
      _exit(8);
    }
    CHECK_EQ(reap(grandchild), 8);
    skip_exchange(&offset);
    answer(fd, &offset);
    _exit(7);
  }
  CHECK_EQ(reap(child), 7);
  skip_exchange(&offset, 2 * kTrips);
  answer(fd, &offset);
  expect_eof(fd);
  sync.post();
  close(fd);
}

void unread_client(int fd, const Sync& sync) {
  send_pattern(fd, kUp, 0, kUnread);
  sync.post();
  recv_pattern(fd, kUp, 0, kUnread);
  uint64_t offset = kUnread;
  exchange(fd, &offset, 3 * kTrips);
  finish(fd, sync);
}

// ---- servers and daemons -------------------------------------------------------------------------------------------------

// redis: a child writes what it has inherited to a file, slowly, while the parent serves on.
void bgsave_server(int fd, const Sync& sync) {
  char memory[4096];
  pattern_fill(memory, sizeof memory, 5, 0);
  FILE* file = tmpfile();
  CHECK(file != nullptr);
  const pid_t child = fork_checked();
  if (child == 0) {
    for (int i = 0; i < 40; i++) {
      CHECK_EQ(fwrite(memory, 1, sizeof memory, file), sizeof memory);
      CHECK_EQ(fflush(file), 0);
      sleep_ms(5);
    }
    exit(7);
  }
  sync.post();
  echo_until_eof(fd);
  CHECK_EQ(reap(child), 7);
  CHECK_EQ(lseek(fileno(file), 0, SEEK_END), 40 * static_cast<off_t>(sizeof memory));
  fclose(file);
  sync.post();
  close(fd);
}

void bgsave_client(int fd, const Sync& sync) {
  sync.wait();
  uint64_t offset = 0;
  exchange(fd, &offset, 20 * kTrips);
  finish(fd, sync);
}

// The parent keeps its copy until the child has ended: only then does the peer see the end.
void keeper_server(int fd, const Sync& sync) {
  const pid_t child = fork_checked();
  if (child == 0) {
    uint64_t offset = 0;
    answer(fd, &offset);
    close(fd);
    _exit(7);
  }
  CHECK_EQ(reap(child), 7);
  sync.wait();  // the peer has looked, and there was no end
  close(fd);
}

void keeper_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  struct pollfd p = {fd, POLLIN | POLLRDHUP, 0};
  CHECK_EQ(poll(&p, 1, 100), 0);
  sync.post();
  expect_eof(fd);
  close(fd);
}

// The process that connected goes away at once, and what is left of it goes on with the stream.
[[noreturn]] void leave_successfully() {
  succeed();
  _exit(0);
}

void double_fork_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  if (fork_checked() != 0) leave_successfully();
  CHECK(setsid() > 0);
  if (fork_checked() != 0) _exit(0);
  exchange(fd, &offset);
  finish(fd, sync);
  _exit(0);
}

void daemon_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  succeed();  // by whom it is said does not matter: the other end sees what comes after
  CHECK_EQ(daemon(1, 1), 0);
  exchange(fd, &offset);
  finish(fd, sync);
  _exit(0);
}

// As double_fork, with bytes on their way to the process that goes away.
void daemon_unread_server(int fd, const Sync& sync) {
  sync.wait();
  if (fork_checked() != 0) leave_successfully();
  recv_pattern(fd, kUp, 0, kUnread);
  send_pattern(fd, kUp, 0, kUnread);
  echo_server(fd, sync);
  _exit(0);
}

const Case kCases[] = {
    {"fork", echo_server, bystander_client<by_fork>},
    {"underscore_fork", echo_server, bystander_client<by_underscore_fork>},
    {"clone_call", echo_server, bystander_client<by_clone_call>},
    {"heir_fork", heir_server<by_fork>, exchange_client},
    {"heir_underscore_fork", heir_server<by_underscore_fork>, exchange_client},
    {"heir_clone_call", heir_server<by_clone_call>, exchange_client},
    {"turns_fork", echo_server, turns_client<by_fork>},
    {"turns_underscore_fork", echo_server, turns_client<by_underscore_fork>},
    {"turns_clone_call", echo_server, turns_client<by_clone_call>},
    {"vfork", echo_server, vfork_client},
    {"clone_files", echo_server, clone_shared_client<CLONE_FILES>},
    {"clone_vm", echo_server, clone_shared_client<CLONE_FILES | CLONE_VM>},
    {"clone_closes", echo_server, clone_closes_client},
    {"child_reads", echo_server, directions_client<true>},
    {"child_writes", echo_server, directions_client<false>},
    {"two_writers", two_writers_server, two_writers_client},
    {"two_readers", two_readers_server, two_readers_client},
    {"shutdown", echo_server, shutdown_client},
    {"child_polls", echo_server, child_polls_client},
    {"grandchild", grandchild_server, unread_client},
    {"bgsave", bgsave_server, bgsave_client},
    {"keeper", keeper_server, keeper_client},
    {"double_fork", echo_server, double_fork_client},
    {"daemon", echo_server, daemon_client},
    {"daemon_unread", daemon_unread_server, unread_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
