// SPDX-License-Identifier: MIT
// What others have set as the most that this process may have.
#pragma once
#include <cstdint>

namespace mpklink {

// Bytes of memory, and of addresses, that our mappings may take in all: an eighth of RLIMIT_AS, a quarter of the limit of the memory
// cgroup, whichever is less; all ones without a limit. A page fault beyond a cgroup's limit kills: no call fails that could be answered.
std::uint64_t share_of_limits();

}  // namespace mpklink
