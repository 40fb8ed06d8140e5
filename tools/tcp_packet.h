// SPDX-License-Identifier: MIT
// Makes the bytes of IPv4 and IPv6 packets with a TCP segment each, checksums included.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "tools/status_page.h"

namespace mpklink {

enum TcpFlag : std::uint8_t { kFin = 1, kSyn = 2, kRst = 4, kPsh = 8, kAck = 16 };

/// So that it fits in a packet of either kind, whose lengths are 16 bits: 40 bytes for the headers of IPv4.
constexpr std::size_t kLargestPayload = 65495;

struct TcpSegment {
  Endpoint from, to;  // IPv4 when both are v4-mapped
  std::uint32_t sequence = 0, acknowledged = 0;
  std::uint8_t flags = 0;  // TcpFlag; with kSyn come the usual options
  std::string_view payload;
};

/// `number` is the packet's identification (IPv4). The payload is kLargestPayload bytes at most.
std::string ip_packet(const TcpSegment& segment, std::uint16_t number);

}  // namespace mpklink
