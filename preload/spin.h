// SPDX-License-Identifier: MIT
// How long to look at shared memory before going to sleep in the kernel. Pure.
//
// A wait that ends within the time a sleep and a wake-up cost (tens of microseconds here) is cheaper spun; a longer one
// is pure waste. So each waiter learns how long its waits are (exponential mean of clipped samples) and spins only when
// they are short. Never when the peer last ran on this very CPU: it cannot run while we spin.
#pragma once
#include <cstdint>

#include "preload/settings.h"

namespace mpklink {

constexpr std::uint32_t kGapClipNs = 4 * kSpinMaxUs * 1000;  // one long idle time must not outweigh many short waits
constexpr std::uint32_t kFirstSpinNs = 10000;                // before anything is learnt

constexpr std::uint32_t spin_budget_ns(int setting_us, std::uint32_t mean_gap_ns) {
  if (setting_us >= 0) return static_cast<std::uint32_t>(setting_us) * 1000;
  if (mean_gap_ns == 0) return kFirstSpinNs;
  const std::uint32_t max = kSpinMaxUs * 1000;
  if (mean_gap_ns > max) return 0;
  const std::uint32_t twice = 2 * mean_gap_ns + 2000;
  return twice < max ? twice : max;
}

constexpr std::uint32_t learn_gap_ns(std::uint32_t mean_gap_ns, std::uint64_t sample_ns) {
  const std::uint64_t sample = sample_ns < kGapClipNs ? sample_ns : kGapClipNs;
  const std::uint64_t mean = mean_gap_ns == 0 ? sample : (std::uint64_t{mean_gap_ns} * 7 + sample) / 8;
  return mean == 0 ? 1 : static_cast<std::uint32_t>(mean);
}

}  // namespace mpklink
