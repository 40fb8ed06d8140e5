// SPDX-License-Identifier: MIT
// Streams that another program inherits, and streams that it must not inherit. `NAME list` prints the cases. The other program is
// /bin/cat, or this one in a role of its own: `NAME echo IN OUT`, `NAME go_on FD SYNC OFFSET`, `NAME hold FD`.
#include <spawn.h>
#include <linux/close_range.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "case_tools.h"

using namespace testlib;

namespace {

// ---- the other programs --------------------------------------------------------------------------------------------------

// An inetd service that uses recv and send.
int role_echo(int in, int out) {
  char buffer[4096];
  ssize_t n;
  while ((n = recv(in, buffer, sizeof buffer, 0)) > 0) send_all(out, buffer, static_cast<size_t>(n));
  CHECK_EQ(n, 0);
  return 0;
}

// Takes the place of a client in the middle of its case.
int role_go_on(int fd, int sync_fd, long unread) {
  uint64_t offset = 0;
  if (unread > 0) recv_pattern(fd, kDown, 0, static_cast<size_t>(unread));
  exchange(fd, &offset);
  finish(fd, Sync(sync_fd));
  return succeed();
}

// Lives until the pipe at `fd` has been written to or closed.
int role_hold(int fd) {
  char byte;
  CHECK(read(fd, &byte, 1) >= 0);
  return 0;
}

// ---- the ways to run them --------------------------------------------------------------------------------------------------

enum class How { kExecv, kExecve, kExecvp, kExecvpe, kExecl, kExecle, kExeclp, kFexecve, kExecveat, kSyscall };

char* const kCatArgv[] = {const_cast<char*>("cat"), nullptr};

[[noreturn]] void run_cat(How how) {
  const char* path = "/bin/cat";
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  switch (how) {
    case How::kExecv: execv(path, kCatArgv); break;
    case How::kExecve: execve(path, kCatArgv, environ); break;
    case How::kExecvp: execvp("cat", kCatArgv); break;
    case How::kExecvpe: execvpe("cat", kCatArgv, environ); break;
    case How::kExecl: execl(path, "cat", nullptr); break;
    case How::kExecle: execle(path, "cat", nullptr, environ); break;
    case How::kExeclp: execlp("cat", "cat", nullptr); break;
    case How::kFexecve: fexecve(fd, kCatArgv, environ); break;
    case How::kExecveat: execveat(fd, "", kCatArgv, environ, AT_EMPTY_PATH); break;
    case How::kSyscall: syscall(SYS_execve, path, kCatArgv, environ); break;
  }
  _exit(1);
}

void become_standard(int fd) {
  for (int i = 0; i < 2; i++) CHECK_EQ(dup2(fd, i), i);
}

// ---- inetd -----------------------------------------------------------------------------------------------------------------

// The stream becomes standard input and output of a program, with bytes unread in it.
template <How how>
void inetd_server(int fd, const Sync& sync) {
  sync.wait();
  const pid_t child = fork_checked();
  if (child == 0) {
    set_close_on_exec(sync.fd());
    become_standard(fd);
    close(fd);
    run_cat(how);
  }
  close(fd);
  CHECK_EQ(reap(child), 0);
  sync.post();
}

void unread_client(int fd, const Sync& sync) {
  send_pattern(fd, kUp, 0, kUnread);
  sync.post();
  recv_pattern(fd, kUp, 0, kUnread);
  uint64_t offset = kUnread;
  exchange(fd, &offset);
  finish(fd, sync);
}

// A program of ours, preloaded as we are or not at all; the parent keeps its copy until the end.
template <bool plain>
void inetd_helper_server(int fd, const Sync& sync) {
  sync.wait();
  const Self echo("echo", 0, 1);
  const pid_t child = fork_checked();
  if (child == 0) {
    set_close_on_exec(sync.fd());
    set_close_on_exec(fd);
    become_standard(fd);
    execve(echo.path(), echo.argv(), plain ? plain_environment() : environ);
    _exit(1);
  }
  CHECK_EQ(reap(child), 0);
  close(fd);
  sync.post();
}

// Half of the unread bytes are read before; both directions have something under way.
void inetd_both_ways_server(int fd, const Sync& sync) {
  send_pattern(fd, kDown, 0, kUnread);
  sync.meet();
  recv_pattern(fd, kUp, 0, kUnread / 2);
  const pid_t child = fork_checked();
  if (child == 0) {
    set_close_on_exec(sync.fd());
    become_standard(fd);
    close(fd);
    run_cat(How::kExecv);
  }
  close(fd);
  sync.post();
  CHECK_EQ(reap(child), 0);
  sync.post();
}

void inetd_both_ways_client(int fd, const Sync& sync) {
  send_pattern(fd, kUp, 0, kUnread);
  sync.meet();
  sync.wait();
  recv_pattern(fd, kDown, 0, kUnread);
  recv_pattern(fd, kUp, kUnread / 2, kUnread / 2);
  uint64_t offset = kUnread;
  exchange(fd, &offset);
  finish(fd, sync);
}

// The stream keeps its number: `cat <&N >&N` of a shell that system() runs.
void shell_server(int fd, const Sync& sync) {
  sync.wait();
  set_close_on_exec(sync.fd());
  CHECK(fd < 10);
  char command[40];
  snprintf(command, sizeof command, "cat <&%d >&%d", fd, fd);
  CHECK_EQ(system(command), 0);
  close(fd);
  sync.post();
}

// ---- posix_spawn -----------------------------------------------------------------------------------------------------------

int spawn(const Self& program, const posix_spawn_file_actions_t* actions, char** environment) {
  pid_t child;
  const int error = posix_spawn(&child, program.path(), actions, nullptr, program.argv(), environment);
  CHECK_EQ(error, 0);
  return child;
}

template <bool plain>
void spawn_server(int fd, const Sync& sync) {
  sync.wait();
  set_close_on_exec(sync.fd());
  posix_spawn_file_actions_t actions;
  CHECK_EQ(posix_spawn_file_actions_init(&actions), 0);
  CHECK_EQ(posix_spawn_file_actions_adddup2(&actions, fd, 0), 0);
  CHECK_EQ(posix_spawn_file_actions_adddup2(&actions, fd, 1), 0);
  CHECK_EQ(posix_spawn_file_actions_addclose(&actions, fd), 0);
  const pid_t child = spawn(Self("echo", 0, 1), &actions, plain ? plain_environment() : environ);
  posix_spawn_file_actions_destroy(&actions);
  close(fd);
  CHECK_EQ(reap(child), 0);
  sync.post();
}

void spawn_inherited_server(int fd, const Sync& sync) {
  sync.wait();
  set_close_on_exec(sync.fd());
  const pid_t child = spawn(Self("echo", fd, fd), nullptr, environ);
  CHECK_EQ(reap(child), 0);
  close(fd);
  sync.post();
}

// dup2 of a descriptor to itself is posix_spawn's way to clear close-on-exec.
void spawn_self_dup2_server(int fd, const Sync& sync) {
  sync.wait();
  set_close_on_exec(sync.fd());
  set_close_on_exec(fd);
  posix_spawn_file_actions_t actions;
  CHECK_EQ(posix_spawn_file_actions_init(&actions), 0);
  CHECK_EQ(posix_spawn_file_actions_adddup2(&actions, fd, fd), 0);
  const pid_t child = spawn(Self("echo", fd, fd), &actions, environ);
  posix_spawn_file_actions_destroy(&actions);
  close(fd);
  CHECK_EQ(reap(child), 0);
  sync.post();
}

// ---- the connected process becomes another program ----------------------------------------------------------------------------

template <bool plain>
void self_client(int fd, const Sync& sync) {
  const Self next("go_on", fd, sync.fd(), 0);
  execve(next.path(), next.argv(), plain ? plain_environment() : environ);
  CHECK(!"execve");
}

void down_unread_server(int fd, const Sync& sync) {
  send_pattern(fd, kDown, 0, kUnread);
  sync.post();
  echo_server(fd, sync);
}

void self_unread_client(int fd, const Sync& sync) {
  sync.wait();
  const Self next("go_on", fd, sync.fd(), kUnread);
  execv(next.path(), next.argv());
  CHECK(!"execv");
}

void* block_in_recv(void* argument) {
  char byte;
  const ssize_t n = recv(*static_cast<int*>(argument), &byte, 1, 0);
  CHECK_EQ(n, -2);  // never comes back: exec ends this thread
  return nullptr;
}

void self_thread_client(int fd, const Sync& sync) {
  start_thread(block_in_recv, &fd);
  sleep_ms(50);  // so that it is probably asleep there; right either way
  const Self next("go_on", fd, sync.fd(), 0);
  execv(next.path(), next.argv());
  CHECK(!"execv");
}

void self_server(int fd, const Sync& sync) {
  sync.wait();
  const Self next("echo_last", fd, sync.fd());
  execv(next.path(), next.argv());
  CHECK(!"execv");
}

int role_echo_last(int fd, int sync_fd) {
  echo_server(fd, Sync(sync_fd));
  return succeed();
}

// exec that fails changes nothing.
void failed_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  for (int i = 0; i < 3; i++) {
    CHECK_ERRNO(execl("/nonexistent/program", "program", nullptr), ENOENT);
    CHECK_ERRNO(execv("/", kCatArgv), EACCES);
    exchange(fd, &offset);
  }
  finish(fd, sync);
}

void failed_unread_client(int fd, const Sync& sync) {
  sync.wait();
  CHECK_ERRNO(execl("/nonexistent/program", "program", nullptr), ENOENT);
  recv_pattern(fd, kDown, 0, kUnread);
  uint64_t offset = 0;
  exchange(fd, &offset);
  finish(fd, sync);
}

// ---- close-on-exec -----------------------------------------------------------------------------------------------------------

// The peer sees the end although the process lives on as another program.
template <void (*mark)(int)>
void cloexec_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  send_pattern(fd, kUp, offset, kUnread);
  mark(fd);
  succeed();
  const Self next("hold", sync.fd());
  execv(next.path(), next.argv());
  CHECK(!"execv");
}

void mark_fcntl(int fd) { set_close_on_exec(fd); }
void mark_ioctl(int fd) { CHECK_EQ(ioctl(fd, FIOCLEX), 0); }
void mark_dup(int fd) {
  CHECK_EQ(dup3(fd, 100, O_CLOEXEC), 100);
  CHECK(fcntl(fd, F_DUPFD_CLOEXEC, 200) >= 200);
  CHECK_EQ(close(fd), 0);
}
void mark_range(int fd) {
  CHECK_EQ(close_range(static_cast<unsigned>(fd), static_cast<unsigned>(fd), CLOSE_RANGE_CLOEXEC), 0);
}

void cloexec_server(int fd, const Sync& sync) {
  uint64_t offset = 0;
  answer(fd, &offset);
  recv_pattern(fd, kUp, offset, kUnread);
  expect_eof(fd);
  sync.post();  // lets the other program end
  close(fd);
}

// Bytes that the process had not read when it became another program: its stream ends with a reset.
void cloexec_unread_client(int fd, const Sync& sync) {
  sync.wait();
  wait_readable(fd);
  set_close_on_exec(fd);
  succeed();
  const Self next("hold", sync.fd());
  execv(next.path(), next.argv());
  CHECK(!"execv");
}

void cloexec_unread_server(int fd, const Sync& sync) {
  send_pattern(fd, kDown, 0, kUnread);
  sync.post();
  char byte;
  CHECK_ERRNO(recv(fd, &byte, 1, 0), ECONNRESET);
  sync.post();
  close(fd);
}

// The stream of the parent stays as it is when a child that has a close-on-exec copy runs a program.
void cloexec_child_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  set_close_on_exec(fd);
  for (int i = 0; i < 3; i++) {
    const pid_t child = fork_checked();
    if (child == 0) {
      execl("/bin/true", "true", nullptr);
      _exit(1);
    }
    exchange(fd, &offset);
    CHECK_EQ(reap(child), 0);
    exchange(fd, &offset);
  }
  finish(fd, sync);
}

// ---- programs that have the stream by accident ------------------------------------------------------------------------------------

// system() and popen() while the stream is in use; it is not close-on-exec.
void commands_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(WEXITSTATUS(system("exit 9")), 9);
    exchange(fd, &offset);
    FILE* in = popen("echo hello", "r");
    CHECK(in != nullptr);
    exchange(fd, &offset);
    char line[32];
    CHECK(fgets(line, sizeof line, in) != nullptr);
    CHECK_EQ(strcmp(line, "hello\n"), 0);
    CHECK_EQ(pclose(in), 0);
    FILE* out = popen("cat >/dev/null", "w");
    CHECK(out != nullptr);
    CHECK(fputs("hello\n", out) >= 0);
    exchange(fd, &offset);
    CHECK_EQ(pclose(out), 0);
  }
  finish(fd, sync);
}

// The program outlives our copy: no end of file for the peer until it has gone.
void leaked_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  const Self hold("hold", ends[0]);
  const pid_t child = fork_checked();
  if (child == 0) {
    close(ends[1]);
    execv(hold.path(), hold.argv());
    _exit(1);
  }
  close(ends[0]);
  exchange(fd, &offset);
  close(fd);
  sync.post();
  sync.wait();  // the peer has looked, and there was no end
  close(ends[1]);
  CHECK_EQ(reap(child), 0);
  sync.wait();
}

void leaked_server(int fd, const Sync& sync) {
  uint64_t offset = 0;
  answer(fd, &offset, 2 * kTrips);
  sync.wait();
  struct pollfd p = {fd, POLLIN | POLLRDHUP, 0};
  CHECK_EQ(poll(&p, 1, 100), 0);
  sync.post();
  expect_eof(fd);
  sync.post();
  close(fd);
}

const Case kCases[] = {
    {"inetd_execv", inetd_server<How::kExecv>, unread_client},
    {"inetd_execve", inetd_server<How::kExecve>, unread_client},
    {"inetd_execvp", inetd_server<How::kExecvp>, unread_client},
    {"inetd_execvpe", inetd_server<How::kExecvpe>, unread_client},
    {"inetd_execl", inetd_server<How::kExecl>, unread_client},
    {"inetd_execle", inetd_server<How::kExecle>, unread_client},
    {"inetd_execlp", inetd_server<How::kExeclp>, unread_client},
    {"inetd_fexecve", inetd_server<How::kFexecve>, unread_client},
    {"inetd_execveat", inetd_server<How::kExecveat>, unread_client},
    {"inetd_syscall", inetd_server<How::kSyscall>, unread_client},
    {"inetd_helper", inetd_helper_server<false>, unread_client},
    {"inetd_helper_plain", inetd_helper_server<true>, unread_client},
    {"inetd_both_ways", inetd_both_ways_server, inetd_both_ways_client},
    {"shell", shell_server, unread_client},
    {"spawn", spawn_server<false>, unread_client},
    {"spawn_plain", spawn_server<true>, unread_client},
    {"spawn_inherited", spawn_inherited_server, unread_client},
    {"spawn_self_dup2", spawn_self_dup2_server, unread_client},
    {"self", echo_server, self_client<false>},
    {"self_plain", echo_server, self_client<true>},
    {"self_unread", down_unread_server, self_unread_client},
    {"self_thread", echo_server, self_thread_client},
    {"self_server", self_server, unread_client},
    {"failed", echo_server, failed_client},
    {"failed_unread", down_unread_server, failed_unread_client},
    {"cloexec_fcntl", cloexec_server, cloexec_client<mark_fcntl>},
    {"cloexec_ioctl", cloexec_server, cloexec_client<mark_ioctl>},
    {"cloexec_dup", cloexec_server, cloexec_client<mark_dup>},
    {"cloexec_range", cloexec_server, cloexec_client<mark_range>},
    {"cloexec_unread", cloexec_unread_server, cloexec_unread_client},
    {"cloexec_child", echo_server, cloexec_child_client},
    {"commands", echo_server, commands_client},
    {"leaked", leaked_server, leaked_client},
};

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const auto number = [&](int i) { return i < argc ? atoi(argv[i]) : -1; };
  if (options.is("echo")) return role_echo(number(2), number(3));
  if (options.is("echo_last")) return role_echo_last(number(2), number(3));
  if (options.is("go_on")) return role_go_on(number(2), number(3), number(4));
  if (options.is("hold")) return role_hold(number(2));
  return case_main(argc, argv, kCases);
}
