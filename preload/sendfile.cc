// SPDX-License-Identifier: MIT
#include "preload/sendfile.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>

#include "preload/fd_table.h"
#include "preload/transfer.h"
#include "shm/raw_syscall.h"
#include "shm/user_copy.h"

namespace mpklink {
namespace {

constexpr std::size_t kChunk = 8192;            // on the stack, which may have PTHREAD_STACK_MIN bytes in all
constexpr std::size_t kCountMax = 0x7ffff000;   // MAX_RW_COUNT, as sendfile(2) transfers at most

}  // namespace

// Through a buffer: reading ahead of what the ring takes is harmless with pread, and no lock or gate spans the disk.
ssize_t send_file(int fd, Stream* s, int in_fd, off64_t* offset, std::size_t count) {
  if (process().guard.range().touches(offset, sizeof *offset)) {
    errno = EFAULT;
    return -1;
  }
  if (fd_table().stream(in_fd) != nullptr) {
    errno = EINVAL;  // from a socket: as sendfile(2)
    return -1;
  }
  off64_t at = 0;
  if (offset == nullptr) {
    at = ::lseek64(in_fd, 0, SEEK_CUR);
  } else if (user_copy(&at, offset, sizeof at) != 0) {
    errno = EFAULT;
    return -1;
  }
  if (at < 0) {
    const int mode = real().fcntl(in_fd, F_GETFL);
    errno = mode < 0 || (mode & O_ACCMODE) == O_WRONLY ? EBADF : EINVAL;
    return -1;
  }
  if (count > kCountMax) count = kCountMax;
  std::size_t done = 0;
  int error = 0;
  bool ours = true;
  char buffer[kChunk];
  while (done < count) {
    const std::size_t want = count - done < kChunk ? count - done : kChunk;
    const long got = raw_syscall(SYS_pread64, in_fd, reinterpret_cast<long>(buffer), static_cast<long>(want), at);
    if (got == 0) break;
    if (got < 0) {
      error = static_cast<int>(-got);
      if ((error == ESPIPE && offset == nullptr) || error == EISDIR) error = EINVAL;
      break;
    }
    const iovec part = {buffer, static_cast<std::size_t>(got)};
    const ssize_t sent = send_stream(fd, s, &part, 1, done > 0 ? MSG_NOSIGNAL : 0);
    if (sent == kNotOurs) {
      ours = false;
      break;
    }
    if (sent < 0) {
      error = errno;
      if (done > 0) keep_for_next_call(s, error);
      break;
    }
    done += static_cast<std::size_t>(sent);
    at += sent;
    if (sent < got) break;
  }
  if (done == 0 && !ours) return kNotOurs;
  if (offset != nullptr) {
    user_copy(offset, &at, sizeof at);  // as the kernel: too late to fail
  } else if (done > 0) {
    ::lseek64(in_fd, at, SEEK_SET);
  }
  if (done > 0 || error == 0) return static_cast<ssize_t>(done);
  errno = error;
  return -1;
}

}  // namespace mpklink
