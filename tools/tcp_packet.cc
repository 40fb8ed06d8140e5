// SPDX-License-Identifier: MIT
#include "tools/tcp_packet.h"

namespace mpklink {
namespace {

constexpr std::uint8_t kTcp = 6;        // the protocol's number in an IP header
constexpr std::uint8_t kHopLimit = 64;  // what Linux sends
// Maximum segment size, no-operation, window scale 14: windows are never in the way.
constexpr std::string_view kSynOptions("\x02\x04\xff\xd7\x01\x03\x03\x0e", 8);

void add16(std::string* bytes, std::uint32_t value) {
  *bytes += static_cast<char>(value >> 8);
  *bytes += static_cast<char>(value);
}

void add32(std::string* bytes, std::uint32_t value) {
  add16(bytes, value >> 16);
  add16(bytes, value);
}

void put16(std::string* bytes, std::size_t at, std::uint32_t value) {
  (*bytes)[at] = static_cast<char>(value >> 8);
  (*bytes)[at + 1] = static_cast<char>(value);
}

/// The sum of 16-bit words that RFC 1071 has, not yet complemented.
std::uint32_t sum_words(std::string_view bytes, std::uint64_t sum = 0) {
  const auto byte = [&](std::size_t i) { return std::uint64_t{static_cast<std::uint8_t>(bytes[i])}; };
  for (std::size_t i = 0; i + 1 < bytes.size(); i += 2) sum += byte(i) << 8 | byte(i + 1);
  if (bytes.size() % 2 != 0) sum += byte(bytes.size() - 1) << 8;
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint32_t>(sum);
}

std::string tcp_bytes(const TcpSegment& segment) {
  const std::string_view options = (segment.flags & kSyn) != 0 ? kSynOptions : std::string_view();
  std::string tcp;
  add16(&tcp, segment.from.port);
  add16(&tcp, segment.to.port);
  add32(&tcp, segment.sequence);
  add32(&tcp, segment.acknowledged);
  const auto words = static_cast<std::uint32_t>((20 + options.size()) / 4);
  add16(&tcp, words << 12 | segment.flags);
  add16(&tcp, 0xffff);  // window
  add32(&tcp, 0);       // checksum, to come, and urgent pointer
  tcp += options;
  tcp += segment.payload;
  return tcp;
}

/// With what both kinds of IP put in front of it for the sum.
void set_tcp_checksum(std::string* tcp, std::string_view addresses) {
  const std::uint32_t pseudo_header = sum_words(addresses, kTcp + tcp->size());
  put16(tcp, 16, ~sum_words(*tcp, pseudo_header));
}

std::string ipv4_header(std::string_view addresses, std::size_t payload, std::uint16_t number) {
  std::string ip;
  add16(&ip, 0x4500);
  add16(&ip, static_cast<std::uint32_t>(20 + payload));
  add16(&ip, number);
  add16(&ip, 0x4000);  // do not fragment
  add16(&ip, std::uint32_t{kHopLimit} << 8 | kTcp);
  add16(&ip, 0);
  ip += addresses;
  put16(&ip, 10, ~sum_words(ip));
  return ip;
}

std::string ipv6_header(std::string_view addresses, std::size_t payload) {
  std::string ip;
  add32(&ip, 0x60000000);
  add16(&ip, static_cast<std::uint32_t>(payload));
  add16(&ip, std::uint32_t{kTcp} << 8 | kHopLimit);
  ip += addresses;
  return ip;
}

}  // namespace

std::string ip_packet(const TcpSegment& segment, std::uint16_t number) {
  const bool ipv4 = is_ipv4(segment.from.address) && is_ipv4(segment.to.address);
  const std::size_t skip = ipv4 ? 12 : 0;
  std::string addresses;
  for (const Endpoint* end : {&segment.from, &segment.to}) addresses.append(end->address.begin() + skip, end->address.end());
  std::string tcp = tcp_bytes(segment);
  set_tcp_checksum(&tcp, addresses);
  return (ipv4 ? ipv4_header(addresses, tcp.size(), number) : ipv6_header(addresses, tcp.size())) + tcp;
}

}  // namespace mpklink
