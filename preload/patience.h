// SPDX-License-Identifier: MIT
// How long calls that should not wait (a receive of bytes that are on their way, a close, an exec) wait for what a peer owes. Each wait is
// bounded by itself. All of them together are bounded here to a ninth of the process's time: or many peers, or one that owes again and
// again, would stop the process for everybody else.
#pragma once
#include <cstdint>

namespace mpklink {

bool patience_left();                        // else only for a moment
void patience_lost(std::uint64_t waited_ns);  // in vain
constexpr std::uint64_t kMomentNs = 2000000;  // what a peer that is awake needs, and its turn on a busy machine

}  // namespace mpklink
