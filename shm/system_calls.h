// SPDX-License-Identifier: MIT
// The kernel calls this folder makes, as a value: a test hands in its own and makes the N-th one fail (after SQLite's
// aSyscall[]). All as in their man pages: -1 (mmap: MAP_FAILED) and errno on failure.
#pragma once
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/types.h>

namespace mpklink {

struct SystemCalls {
  int (*memfd_create)(const char*, unsigned);
  int (*memfd_secret)(unsigned);
  int (*ftruncate)(int, off_t);
  int (*fchmod)(int, mode_t);
  int (*fstat)(int, struct stat*);
  int (*fstatfs)(int, struct statfs*);
  int (*add_seals)(int, int);
  int (*get_seals)(int);
  void* (*mmap)(void*, size_t, int, int, int, off_t);
  int (*munmap)(void*, size_t);
  int (*mprotect)(void*, size_t, int);
  int (*madvise)(void*, size_t, int);
};

}  // namespace mpklink
