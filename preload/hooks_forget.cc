// SPDX-License-Identifier: MIT
// Calls after which a number may name another file than the table believes: it forgets what it knew. Most only make descriptors (a close
// that we did not see, by an inlined system call, may have come before); a few close or replace some inside of libc.
#include <stdarg.h>

#include "preload/export.h"
#include "preload/hook_scope.h"

using namespace mpklink;

namespace {

__attribute__((noinline)) int forget(int fd) { return fresh_fd(fd); }

int forget_pair(int result, const int* first, const int* second) {
  if (result == 0) forget(*first), forget(*second);
  return result;
}

// Before the call that closes it: afterwards the number may be another thread's already.
void forget_file(FILE* file) {
  const ErrnoSaver keep;  // a FILE in memory has no descriptor
  if (file != nullptr) forget(fileno(file));
}

FILE* new_file(FILE* file) {
  forget_file(file);
  return file;
}

void forget_standard() {
  for (int fd = 0; fd <= 2; ++fd) forget(fd);
}

}  // namespace

extern "C" {

// open and its kin under _FORTIFY_SOURCE, without a mode.
int mpklink___open_2(const char* path, int flags) { return forget(real().__open_2(path, flags)); }
int mpklink___open64_2(const char* path, int flags) { return forget(real().__open64_2(path, flags)); }
int mpklink___openat_2(int dir, const char* path, int flags) { return forget(real().__openat_2(dir, path, flags)); }
int mpklink___openat64_2(int dir, const char* path, int flags) { return forget(real().__openat64_2(dir, path, flags)); }

int mpklink_mkstemp(char* name) { return forget(real().mkstemp(name)); }
int mpklink_mkostemp(char* name, int flags) { return forget(real().mkostemp(name, flags)); }
int mpklink_mkstemps(char* name, int suffix) { return forget(real().mkstemps(name, suffix)); }
int mpklink_mkostemps(char* name, int suffix, int flags) { return forget(real().mkostemps(name, suffix, flags)); }
int mpklink_shm_open(const char* name, int flags, mode_t mode) { return forget(real().shm_open(name, flags, mode)); }
int mpklink_open_by_handle_at(int mount, struct file_handle* handle, int flags) {
  return forget(real().open_by_handle_at(mount, handle, flags));
}
int mpklink_fanotify_init(unsigned flags, unsigned event_flags) noexcept {
  return forget(real().fanotify_init(flags, event_flags));
}
int mpklink_pidfd_open(pid_t pid, unsigned flags) noexcept { return forget(real().pidfd_open(pid, flags)); }
int mpklink_pidfd_getfd(int pidfd, int fd, unsigned flags) noexcept { return forget(real().pidfd_getfd(pidfd, fd, flags)); }
int mpklink_fsopen(const char* name, unsigned flags) noexcept { return forget(real().fsopen(name, flags)); }
int mpklink_fspick(int dir, const char* path, unsigned flags) noexcept { return forget(real().fspick(dir, path, flags)); }
int mpklink_fsmount(int fd, unsigned flags, unsigned attributes) noexcept {
  return forget(real().fsmount(fd, flags, attributes));
}
int mpklink_open_tree(int dir, const char* path, unsigned flags) noexcept {
  return forget(real().open_tree(dir, path, flags));
}

mqd_t mpklink_mq_open(const char* name, int flags, ...) noexcept {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = va_arg(arguments, mode_t);
  mq_attr* attributes = va_arg(arguments, mq_attr*);
  va_end(arguments);
  return forget(real().mq_open(name, flags, mode, attributes));
}
mqd_t mpklink___mq_open_2(const char* name, int flags) noexcept { return forget(real().__mq_open_2(name, flags)); }

int mpklink_posix_openpt(int flags) { return forget(real().posix_openpt(flags)); }
int mpklink_getpt() { return forget(real().getpt()); }
int mpklink_openpty(int* master, int* slave, char* name, const struct termios* mode, const struct winsize* size) noexcept {
  return forget_pair(real().openpty(master, slave, name, mode, size), master, slave);
}
int mpklink_forkpty(int* master, char* name, const struct termios* mode, const struct winsize* size) noexcept {
  const int child = real().forkpty(master, name, mode, size);
  if (child == 0) forget_standard();  // the terminal has replaced them
  if (child > 0) forget(*master);
  return child;
}
int mpklink_login_tty(int fd) noexcept {
  const int result = real().login_tty(fd);
  if (result == 0) forget_standard();
  return result;
}
int mpklink_daemon(int keep_directory, int keep_open) noexcept {
  const int result = real().daemon(keep_directory, keep_open);
  if (result == 0 && keep_open == 0) forget_standard();  // /dev/null has replaced them
  return result;
}

FILE* mpklink_fopen(const char* path, const char* mode) { return new_file(real().fopen(path, mode)); }
FILE* mpklink_tmpfile() { return new_file(real().tmpfile()); }
FILE* mpklink_freopen(const char* path, const char* mode, FILE* file) {
  forget_file(file);
  return new_file(real().freopen(path, mode, file));
}
FILE* mpklink_freopen64(const char* path, const char* mode, FILE* file) {
  forget_file(file);
  return new_file(real().freopen64(path, mode, file));
}
int mpklink_fclose(FILE* file) {
  forget_file(file);
  return real().fclose(file);
}
DIR* mpklink_opendir(const char* path) {
  DIR* directory = real().opendir(path);
  if (directory != nullptr) forget(dirfd(directory));
  return directory;
}

}  // extern "C"

MPKLINK_EXPORT(__open_2)
MPKLINK_EXPORT(__open64_2)
MPKLINK_EXPORT(__openat_2)
MPKLINK_EXPORT(__openat64_2)
MPKLINK_EXPORT(mkstemp)
MPKLINK_EXPORT_AS(mkstemp64, mkstemp)
MPKLINK_EXPORT(mkostemp)
MPKLINK_EXPORT_AS(mkostemp64, mkostemp)
MPKLINK_EXPORT(mkstemps)
MPKLINK_EXPORT_AS(mkstemps64, mkstemps)
MPKLINK_EXPORT(mkostemps)
MPKLINK_EXPORT_AS(mkostemps64, mkostemps)
MPKLINK_EXPORT(shm_open)
MPKLINK_EXPORT(open_by_handle_at)
MPKLINK_EXPORT(fanotify_init)
MPKLINK_EXPORT(pidfd_open)
MPKLINK_EXPORT(pidfd_getfd)
MPKLINK_EXPORT(fsopen)
MPKLINK_EXPORT(fspick)
MPKLINK_EXPORT(fsmount)
MPKLINK_EXPORT(open_tree)
MPKLINK_EXPORT(mq_open)
MPKLINK_EXPORT(__mq_open_2)
MPKLINK_EXPORT(posix_openpt)
MPKLINK_EXPORT(getpt)
MPKLINK_EXPORT(openpty)
MPKLINK_EXPORT(forkpty)
MPKLINK_EXPORT(login_tty)
MPKLINK_EXPORT(daemon)
MPKLINK_EXPORT(fopen)
MPKLINK_EXPORT_AS(fopen64, fopen)
MPKLINK_EXPORT_AS(_IO_fopen, fopen)
MPKLINK_EXPORT(tmpfile)
MPKLINK_EXPORT_AS(tmpfile64, tmpfile)
MPKLINK_EXPORT(freopen)
MPKLINK_EXPORT(freopen64)
MPKLINK_EXPORT(fclose)
MPKLINK_EXPORT_AS(_IO_fclose, fclose)
MPKLINK_EXPORT(opendir)
