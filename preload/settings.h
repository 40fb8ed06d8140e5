// SPDX-License-Identifier: MIT
// The MPKLINK_* settings (DESIGN section 8). Pure: reads strings, makes a value, reports what it did not understand.
#pragma once
#include <cstddef>
#include <cstdint>

#include "shm/segment.h"

namespace mpklink {

enum class GuardSetting { kAuto, kPkey, kMprotect, kOff, kRequire };
enum class LogLevel : unsigned { kOff, kError, kWarn, kInfo, kDebug };
enum class PeerPolicy { kVerified, kSameUid, kList, kAny };

struct PortRange {
  std::uint16_t first, last;
  bool allow;
};

struct Settings {
  GuardSetting guard = GuardSetting::kAuto;
  Backing backing = Backing::kMemfd;
  bool fault_report = true;    // a touch of guarded memory is reported on stderr
  unsigned warmup = 2;         // operations on a connection before its upgrade is tried
  bool warmup_learns = true;   // more of them where connections have been short (preload/lifetime.h)
  int spin_us = -1;            // -1: adaptive, up to kSpinMaxUs
  std::uint64_t ring_bytes = std::uint64_t{256} * 1024;  // largest ring per direction, a power of two
  PeerPolicy peers = PeerPolicy::kVerified;
  static constexpr std::size_t kListMax = 16;
  std::uint32_t peer_uids[kListMax] = {};
  std::size_t peer_uid_count = 0;
  PortRange ports[kListMax] = {};
  std::size_t port_count = 0;
  LogLevel log = LogLevel::kError;
  bool disabled = false;
  char stats_path[512] = "";

  bool port_allowed(std::uint16_t port) const;
};

constexpr int kSpinMaxUs = 50;

// `get(name)` is getenv or a test's; `complain(name, value, expected)` is called once per value not understood.
Settings parse_settings(const char* (*get)(const char*),
                        void (*complain)(const char* name, const char* value, const char* expected));

}  // namespace mpklink
