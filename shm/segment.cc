// SPDX-License-Identifier: MIT
#include "shm/segment.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <cerrno>

#include "shm/raw_syscall.h"

namespace mpklink {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
constexpr int kSealFutureWrite = 0x10;  // F_SEAL_FUTURE_WRITE, Linux 5.1, include/uapi/linux/fcntl.h

constexpr long kSecretMemory = 0x5345434d;  // SECRETMEM_MAGIC, include/uapi/linux/magic.h

bool is_secret(const SystemCalls& sys, int fd) {
  struct statfs fs = {};
  return sys.fstatfs(fd, &fs) == 0 && fs.f_type == kSecretMemory;
}

}  // namespace

int make_segment(const SystemCalls& sys, const char* name, std::size_t bytes, Backing backing) {
  // ftruncate beyond RLIMIT_FSIZE raises SIGXFSZ, which ends the program.
  rlimit limit = {};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < bytes) {
    errno = EFBIG;
    return -1;
  }
  const bool secret = backing == Backing::kSecret;
  const int fd = secret ? sys.memfd_secret(O_CLOEXEC) : sys.memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return -1;
  // memfds are born 0777: another user who sees /proc/PID/fd in the moment before it is closed must not open it.
  if (sys.fchmod(fd, 0600) == 0 && sys.ftruncate(fd, static_cast<off_t>(bytes)) == 0 && (secret || sys.add_seals(fd, kSeals) == 0)) {
    return fd;
  }
  raw_syscall(SYS_close, fd);
  return -1;
}

bool segment_is_sound(const SystemCalls& sys, int fd, std::size_t bytes, Backing wanted) {
  if (!is_secret(sys, fd)) {
    const int seals = sys.get_seals(fd);
    const bool sealed = seals >= 0 && (seals & kSeals) == kSeals && (seals & (F_SEAL_WRITE | kSealFutureWrite)) == 0;
    if (!sealed || wanted == Backing::kSecret) return false;
  }
  // The mapping begins as PROT_NONE, which a descriptor that is open for reading only allows: the first store would be a SIGSEGV.
  if ((raw_syscall(SYS_fcntl, fd, F_GETFL) & O_ACCMODE) != O_RDWR) return false;
  // Secret memory can be given a size once, while it has none (mm/secretmem.c, secretmem_setattr).
  struct stat st = {};
  return sys.fstat(fd, &st) == 0 && st.st_size == static_cast<off_t>(bytes);
}

}  // namespace mpklink
