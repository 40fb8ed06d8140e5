// SPDX-License-Identifier: MIT
// Calls that hand a descriptor to code that bypasses this library: another program, or stdio. Streams go back to TCP first.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "preload/export.h"
#include "preload/hook_scope.h"
#include "preload/revoke.h"
#include "preload/stats.h"

using namespace mpklink;

namespace {

constexpr int kArgumentsMax = 1 << 16;

// What an exec hands on goes back to TCP; what it closes gives back what a peer still wants.
void before_handover() {
  const ErrnoSaver keep;
  if (!in_foreign_child()) answer_all_freezes(false);
  revoke_inheritable(Reason::kExec);
}

// `exec` comes back only when it fails.
template <class Exec>
int become(Exec exec) {
  before_handover();
  write_stats_before_exec();
  const int result = exec();
  exec_failed();
  return result;
}

void before_stdio(int fd) {
  if (Stream* s = stream_of(fd)) revoke(fd, s, Reason::kStdio);
}

int count_arguments(va_list list) {
  int n = 1;
  while (n < kArgumentsMax && va_arg(list, char*) != nullptr) ++n;
  return n;
}

// The arguments of execl and its kin as an array of n + 1, the last one null.
void collect_arguments(const char* first, va_list list, char** out, int n) {
  out[0] = const_cast<char*>(first);
  for (int i = 1; i <= n; ++i) out[i] = va_arg(list, char*);
}

}  // namespace

extern "C" {

FILE* mpklink_fdopen(int fd, const char* mode) noexcept {
  before_stdio(fd);
  return real().fdopen(fd, mode);
}
int mpklink_vdprintf(int fd, const char* format, va_list arguments) {
  before_stdio(fd);
  return real().vdprintf(fd, format, arguments);
}
int mpklink_dprintf(int fd, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const int n = mpklink_vdprintf(fd, format, arguments);
  va_end(arguments);
  return n;
}
int mpklink___vdprintf_chk(int fd, int flag, const char* format, va_list arguments) {
  before_stdio(fd);
  return real().__vdprintf_chk(fd, flag, format, arguments);
}
int mpklink___dprintf_chk(int fd, int flag, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const int n = mpklink___vdprintf_chk(fd, flag, format, arguments);
  va_end(arguments);
  return n;
}

int mpklink_execve(const char* path, char* const argv[], char* const envp[]) noexcept {
  return become([&] { return real().execve(path, argv, envp); });
}
int mpklink_execv(const char* path, char* const argv[]) noexcept {
  return become([&] { return real().execv(path, argv); });
}
int mpklink_execvp(const char* file, char* const argv[]) noexcept {
  return become([&] { return real().execvp(file, argv); });
}
int mpklink_execvpe(const char* file, char* const argv[], char* const envp[]) noexcept {
  return become([&] { return real().execvpe(file, argv, envp); });
}
int mpklink_fexecve(int fd, char* const argv[], char* const envp[]) noexcept {
  return become([&] { return real().fexecve(fd, argv, envp); });
}
int mpklink_execveat(int dir, const char* path, char* const argv[], char* const envp[], int flags) noexcept {
  return become([&] { return real().execveat(dir, path, argv, envp, flags); });
}

// On the stack, as glibc's own do: a child of vfork must not allocate.
int mpklink_execl(const char* path, const char* first, ...) noexcept {
  va_list list;
  va_start(list, first);
  const int n = first == nullptr ? 0 : count_arguments(list);
  va_end(list);
  auto** argv = static_cast<char**>(__builtin_alloca(static_cast<size_t>(n + 1) * sizeof(char*)));
  va_start(list, first);
  collect_arguments(first, list, argv, n);
  va_end(list);
  return mpklink_execv(path, argv);
}
int mpklink_execlp(const char* file, const char* first, ...) noexcept {
  va_list list;
  va_start(list, first);
  const int n = first == nullptr ? 0 : count_arguments(list);
  va_end(list);
  auto** argv = static_cast<char**>(__builtin_alloca(static_cast<size_t>(n + 1) * sizeof(char*)));
  va_start(list, first);
  collect_arguments(first, list, argv, n);
  va_end(list);
  return mpklink_execvp(file, argv);
}
int mpklink_execle(const char* path, const char* first, ...) noexcept {
  va_list list;
  va_start(list, first);
  const int n = first == nullptr ? 0 : count_arguments(list);
  va_end(list);
  auto** argv = static_cast<char**>(__builtin_alloca(static_cast<size_t>(n + 1) * sizeof(char*)));
  va_start(list, first);
  collect_arguments(first, list, argv, n);
  char** envp = va_arg(list, char**);  // behind the null pointer
  va_end(list);
  return mpklink_execve(path, argv, envp);
}

// The child is made inside libc, by clone: no hook runs in it.
int mpklink_posix_spawn(pid_t* pid, const char* path, const posix_spawn_file_actions_t* actions,
                        const posix_spawnattr_t* attributes, char* const argv[], char* const envp[]) {
  before_handover();
  return real().posix_spawn(pid, path, actions, attributes, argv, envp);
}
int mpklink_posix_spawnp(pid_t* pid, const char* file, const posix_spawn_file_actions_t* actions,
                         const posix_spawnattr_t* attributes, char* const argv[], char* const envp[]) {
  before_handover();
  return real().posix_spawnp(pid, file, actions, attributes, argv, envp);
}
int mpklink_posix_spawn_file_actions_adddup2(posix_spawn_file_actions_t* actions, int fd, int to) noexcept {
  if (Stream* s = stream_of(fd)) revoke(fd, s, Reason::kExec);
  return real().posix_spawn_file_actions_adddup2(actions, fd, to);
}
int mpklink_system(const char* command) {
  if (command != nullptr) before_handover();
  return real().system(command);
}
FILE* mpklink_popen(const char* command, const char* mode) {
  before_handover();
  return real().popen(command, mode);
}

}  // extern "C"

MPKLINK_EXPORT(fdopen)
MPKLINK_EXPORT_AS(_IO_fdopen, fdopen)
MPKLINK_EXPORT(dprintf)
MPKLINK_EXPORT(vdprintf)
MPKLINK_EXPORT(__dprintf_chk)
MPKLINK_EXPORT(__vdprintf_chk)
MPKLINK_EXPORT(execve)
MPKLINK_EXPORT(execv)
MPKLINK_EXPORT(execvp)
MPKLINK_EXPORT(execvpe)
MPKLINK_EXPORT(execl)
MPKLINK_EXPORT(execlp)
MPKLINK_EXPORT(execle)
MPKLINK_EXPORT(fexecve)
MPKLINK_EXPORT(execveat)
MPKLINK_EXPORT(posix_spawn)
MPKLINK_EXPORT(posix_spawnp)
MPKLINK_EXPORT(posix_spawn_file_actions_adddup2)
MPKLINK_EXPORT(system)
MPKLINK_EXPORT(popen)
MPKLINK_EXPORT_AS(_IO_popen, popen)
