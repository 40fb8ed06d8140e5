// SPDX-License-Identifier: MIT
#include "preload/lifetime.h"

#include "shm/atomic.h"

namespace mpklink {
namespace {

constexpr unsigned kEntries = 256;

Atomic<std::uint32_t> g_entries[kEntries];  // the port << 16, and how many in a row were short

Atomic<std::uint32_t>& entry_of(std::uint16_t port) { return g_entries[port % kEntries]; }

std::uint32_t short_in_a_row(std::uint32_t entry, std::uint16_t port) { return entry >> 16 == port ? entry & 0xffff : 0; }

}  // namespace

bool connections_are_short(std::uint16_t port) {
  return short_in_a_row(entry_of(port).load_relaxed(), port) >= kShortInARow;  // relaxed: a hint
}

void learn_lifetime(std::uint16_t port, std::uint32_t operations) {
  Atomic<std::uint32_t>& entry = entry_of(port);
  const std::uint32_t before = short_in_a_row(entry.load_relaxed(), port);  // relaxed: a hint
  const std::uint32_t now = operations >= kShortOperations ? 0 : before < kShortInARow ? before + 1 : before;
  entry.store_relaxed(std::uint32_t{port} << 16 | now);
}

}  // namespace mpklink
