// SPDX-License-Identifier: MIT
// Writes pcapng (draft-ietf-opsawg-pcapng): one section, one interface of raw IP packets, times in nanoseconds. Bytes only, no files.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mpklink {

/// What a file begins with.
std::string pcapng_begin(std::string_view application, std::string_view interface_name);

/// `packet` begins with its IP header. `comment` may be empty; it must be UTF-8.
std::string pcapng_packet(std::uint64_t time_ns, std::string_view packet, std::string_view comment = {});

/// What it may end with. Times are CLOCK_REALTIME.
struct CaptureStatistics {
  std::uint64_t start_ns = 0, end_ns = 0;
  std::uint64_t received = 0;  // what there was to capture
  std::uint64_t dropped = 0;   // of it, what was lost before it came here
};
std::string pcapng_statistics(const CaptureStatistics& statistics);

}  // namespace mpklink
