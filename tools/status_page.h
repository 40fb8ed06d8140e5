// SPDX-License-Identifier: MIT
// The status page of one process (shm/status.h), mapped. Whoever owns the process wrote it: each number is input. Copies are made of what
// was checked, and nothing else is given out. The file must be sealed against shrinking, or a lie could end the reader by SIGBUS.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "shm/status.h"

namespace mpklink {

/// One end's address as sockaddr_in6 has it, IPv4 as v4-mapped.
struct Endpoint {
  std::array<std::uint8_t, 16> address{};
  std::uint16_t port = 0;
  bool operator==(const Endpoint& other) const { return address == other.address && port == other.port; }
  bool operator<(const Endpoint& other) const { return address != other.address ? address < other.address : port < other.port; }
};
bool is_ipv4(const std::array<std::uint8_t, 16>& address);
std::string address_text(const std::array<std::uint8_t, 16>& address);  // "127.0.0.1", "::1"
std::string endpoint_text(const Endpoint& end);                         // "127.0.0.1:80", "[::1]:80"

/// A row, copied whole.
struct StreamInfo {
  std::uint32_t row = 0;
  RowMode mode = RowMode::kFree;  // never kFree
  std::uint32_t reason = 0;       // Reason + 1; 0: none. May be one that this tool does not know: reason_slug()
  std::uint32_t fd = 0;
  Endpoint local, peer;
  bool connector = false;
  std::uint64_t since_ns = 0;
  std::uint32_t upgrades = 0, revokes = 0;
  std::uint64_t tx_bytes = 0, rx_bytes = 0, tx_calls = 0, rx_calls = 0, tcp_tx_bytes = 0, tcp_rx_bytes = 0;
};

struct ProcessCounters {
  std::uint64_t upgraded = 0, revoked = 0, ring_tx = 0, ring_rx = 0, ring_returned = 0, tcp_tx = 0, tcp_rx = 0;
  std::uint64_t bells = 0, sleeps = 0, spin_hits = 0, gates = 0, gate_found_open = 0, tap_records = 0, tap_dropped = 0;
  std::array<std::uint64_t, kStatusReasons> plain{};
};

/// What a process says of itself.
struct PageContent {
  std::uint32_t pid = 0;  // in its own pid namespace
  std::uint32_t layout_version = 0;
  std::string library_version, guard_why;
  std::uint32_t guard = 0;
  bool disabled = false;
  std::uint32_t rows_missing = 0;
  std::uint64_t started_ns = 0;
  ProcessCounters counters;
  std::vector<StreamInfo> streams;
};

class StatusPage {
 public:
  enum class Access { kRead, kRequest };  // kRequest: requests() may be written

  /// Maps the file behind `fd`, which is left open; nothing if it is no status page.
  static std::optional<StatusPage> map(int fd, Access access);
  StatusPage(StatusPage&& other) noexcept;
  StatusPage& operator=(StatusPage&& other) noexcept;
  ~StatusPage();

  std::uint32_t version() const { return version_; }
  /// Only then may anything below be called.
  bool same_version() const { return version_ == kStatusVersion; }
  std::uint32_t pid() const;
  PageContent read() const;
  std::vector<StreamInfo> streams() const;
  ProcessCounters counters() const;
  Requests& requests() { return header_->requests; }

 private:
  StatusPage(StatusHeader* header, std::size_t bytes, std::uint32_t version) : header_(header), bytes_(bytes), version_(version) {}
  StatusHeader* header_ = nullptr;
  std::size_t bytes_ = 0;
  std::uint32_t version_ = 0;
};

/// Slug, sentence and remedy of StatusRow::reason; of an unknown one a slug made of its number.
std::string reason_slug(std::uint32_t reason);
std::string reason_sentence(std::uint32_t reason);
std::string reason_remedy(std::uint32_t reason);

}  // namespace mpklink
