// SPDX-License-Identifier: MIT
#include "preload/patience.h"

#include "preload/process.h"

namespace mpklink {
namespace {

Atomic<std::uint64_t> g_again_at;  // as now_ns()

}  // namespace

bool patience_left() { return now_ns() >= g_again_at.load_relaxed(); }                      // relaxed: a hint about time
void patience_lost(std::uint64_t waited_ns) { g_again_at.store_relaxed(now_ns() + 8 * waited_ns); }  // relaxed: as above

}  // namespace mpklink
