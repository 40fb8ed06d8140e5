// SPDX-License-Identifier: MIT
#include "tools/pcapng.h"

namespace mpklink {
namespace {

constexpr std::uint32_t kSectionHeader = 0x0a0d0d0a, kInterface = 1, kStatistics = 5, kPacket = 6;
constexpr std::uint32_t kByteOrder = 0x1a2b3c4d;
constexpr std::uint16_t kLinkTypeRaw = 101;
constexpr std::uint16_t kEndOfOptions = 0, kComment = 1, kUserApplication = 4, kInterfaceName = 2, kTimeResolution = 9;
constexpr std::uint16_t kStartTime = 2, kEndTime = 3, kReceived = 4, kDropped = 5;

/// A block in this machine's byte order, which the section header tells.
class Block {
 public:
  explicit Block(std::uint32_t type) : type_(type) {}

  template <class Number>
  Block& number(Number value) {
    body_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Block& padded(std::string_view bytes) {
    body_ += bytes;
    body_.append((4 - bytes.size() % 4) % 4, '\0');
    return *this;
  }
  Block& option(std::uint16_t code, std::string_view value) {
    value = value.substr(0, 0xffff);
    return number(code).number(static_cast<std::uint16_t>(value.size())).padded(value);
  }
  Block& option(std::uint16_t code, std::uint64_t value) { return option(code, {reinterpret_cast<const char*>(&value), sizeof value}); }
  Block& time(std::uint64_t time_ns) { return number(static_cast<std::uint32_t>(time_ns >> 32)).number(static_cast<std::uint32_t>(time_ns)); }
  Block& time_option(std::uint16_t code, std::uint64_t time_ns) {
    return number(code).number(std::uint16_t{8}).time(time_ns);
  }
  Block& end_of_options() { return number(kEndOfOptions).number(std::uint16_t{0}); }

  std::string text() const {
    Block whole(type_);
    const auto length = static_cast<std::uint32_t>(body_.size() + 12);
    whole.number(type_).number(length);
    whole.body_ += body_;
    return whole.number(length).body_;
  }

 private:
  std::uint32_t type_;
  std::string body_;
};

}  // namespace

std::string pcapng_begin(std::string_view application, std::string_view interface_name) {
  Block section(kSectionHeader);
  section.number(kByteOrder).number(std::uint16_t{1}).number(std::uint16_t{0});
  section.number(std::int64_t{-1});  // its length: unknown while it is written
  section.option(kUserApplication, application).end_of_options();
  Block interface(kInterface);
  interface.number(kLinkTypeRaw).number(std::uint16_t{0}).number(std::uint32_t{0});  // packets are whole
  const char nanoseconds = 9;
  interface.option(kInterfaceName, interface_name).option(kTimeResolution, {&nanoseconds, 1}).end_of_options();
  return section.text() + interface.text();
}

std::string pcapng_packet(std::uint64_t time_ns, std::string_view packet, std::string_view comment) {
  const auto length = static_cast<std::uint32_t>(packet.size());
  Block block(kPacket);
  block.number(std::uint32_t{0}).time(time_ns).number(length).number(length).padded(packet);
  if (!comment.empty()) block.option(kComment, comment).end_of_options();
  return block.text();
}

std::string pcapng_statistics(const CaptureStatistics& statistics) {
  Block block(kStatistics);
  block.number(std::uint32_t{0}).time(statistics.end_ns);
  block.time_option(kStartTime, statistics.start_ns).time_option(kEndTime, statistics.end_ns);
  block.option(kReceived, statistics.received).option(kDropped, statistics.dropped).end_of_options();
  return block.text();
}

}  // namespace mpklink
