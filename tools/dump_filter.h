// SPDX-License-Identifier: MIT
// The filter of `mpklink dump`: conditions that all must hold, of which tcpdump has the words.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "shm/status.h"

namespace mpklink {

struct DumpFilter {
  using Addresses = std::vector<std::array<std::uint8_t, 16>>;  // any of them
  std::vector<int> ports;
  std::vector<Addresses> hosts;
  int pid = 0;  // 0: any

  bool matches(const TapRecord& record) const;
};

/// "port N", "host ADDRESS", "pid N", joined by "and"; throws a UsageError.
DumpFilter parse_dump_filter(const std::vector<std::string>& words);

}  // namespace mpklink
