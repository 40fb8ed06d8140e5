// SPDX-License-Identifier: MIT
// Sealed memfds: made by us, or checked when a peer gives us one.
#pragma once
#include <cstddef>

#include "shm/system_calls.h"

namespace mpklink {

// A memfd of exactly `bytes` (sparse), mode 0600, close-on-exec, sealed against resizing and against further seals.
// The descriptor, or -1 with errno.
int make_segment(const SystemCalls& sys, const char* name, std::size_t bytes);

// Whether `fd` is such a segment of exactly `bytes`. Asked before mmap: a memfd that can shrink is a SIGBUS to come.
bool segment_is_sound(const SystemCalls& sys, int fd, std::size_t bytes);

}  // namespace mpklink
