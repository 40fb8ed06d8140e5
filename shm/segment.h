// SPDX-License-Identifier: MIT
// Memory to be shared: made by us, or checked when a peer gives it to us.
#pragma once
#include <cstddef>

#include "shm/system_calls.h"

namespace mpklink {

// kSecret: memfd_secret(2), Linux 5.14, on by default since 6.5. The kernel itself has no way to its pages: not process_vm_readv, not
// /proc/PID/mem, not ptrace, not io_uring's registered buffers. It is locked memory (RLIMIT_MEMLOCK), and never changes its size.
enum class Backing { kMemfd, kSecret };

// A segment of exactly `bytes`, mode 0600, close-on-exec; a memfd (sparse) is sealed against resizing and against further seals.
// The descriptor, or -1 with errno.
int make_segment(const SystemCalls& sys, const char* name, std::size_t bytes, Backing backing = Backing::kMemfd);

// Whether `fd` is such a segment of exactly `bytes`; with kMemfd, of either kind. Asked before mmap: memory that can shrink is a
// SIGBUS to come.
bool segment_is_sound(const SystemCalls& sys, int fd, std::size_t bytes, Backing wanted = Backing::kMemfd);

}  // namespace mpklink
