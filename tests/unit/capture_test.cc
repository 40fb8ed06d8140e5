// SPDX-License-Identifier: MIT
// What `mpklink dump` writes, from records that are made up here; tests/integration/capture.py reads whole files.
#include <catch2/catch.hpp>
#include <cstring>
#include <string>
#include <vector>

#include "tools/conversation.h"
#include "tools/dump_filter.h"
#include "tools/pcapng.h"
#include "tools/refusal.h"
#include "tools/tcp_packet.h"

namespace mpklink {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;

Endpoint ipv4(std::uint8_t last, std::uint16_t port) {
  Endpoint end;
  end.address = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, last};
  end.port = port;
  return end;
}

std::uint32_t number32(std::string_view bytes, std::size_t at) {
  std::uint32_t value;
  memcpy(&value, bytes.data() + at, 4);
  return value;
}

std::uint32_t big32(std::string_view bytes, std::size_t at) {
  return __builtin_bswap32(number32(bytes, at));
}

/// RFC 1071, written anew: 0 over a part with its checksum in it.
std::uint16_t internet_checksum(std::string bytes) {
  if (bytes.size() % 2 != 0) bytes += '\0';
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < bytes.size(); i += 2) {
    sum += static_cast<std::uint32_t>(static_cast<std::uint8_t>(bytes[i]) * 256 + static_cast<std::uint8_t>(bytes[i + 1]));
    if (sum > 0xffff) sum -= 0xffff;
  }
  return static_cast<std::uint16_t>(~sum);
}

/// The client is 127.0.0.1:1000, the server 127.0.0.1:80.
struct Record {
  std::string payload = {};
  std::uint64_t offset = 0;
  bool outgoing = true, at_client = true, shared = true;
  TapKind kind = TapKind::kData;
  std::uint32_t row = 5;
};

TapMessage message_of(const Record& record) {
  TapMessage message{};
  TapRecord& header = message.header;
  header.magic = kTapMagic;
  header.kind = record.kind;
  header.offset = record.offset;
  header.row = record.row;
  header.length = static_cast<std::uint32_t>(record.payload.size());
  header.outgoing = record.outgoing ? 1 : 0;
  header.connector = record.at_client ? 1 : 0;
  header.shared = record.shared ? 1 : 0;
  Endpoint local = ipv4(1, 1000), peer = ipv4(1, 80);
  if (!record.at_client) std::swap(local, peer);
  memcpy(header.local, local.address.data(), 16);
  memcpy(header.peer, peer.address.data(), 16);
  header.local_port = local.port;
  header.peer_port = peer.port;
  message.payload = record.payload;
  return message;
}

/// A packet again as its parts.
struct Parsed {
  std::uint16_t from;
  std::uint32_t sequence, acknowledged;
  int flags;
  std::string payload;
};

Parsed parse(const Packet& packet) {
  const std::string_view tcp = std::string_view(packet.bytes).substr(20);
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(tcp[i]); };
  return {static_cast<std::uint16_t>(byte(0) << 8 | byte(1)), big32(tcp, 4), big32(tcp, 8), byte(13), std::string(tcp.substr((byte(12) >> 4) * 4u))};
}

class Recorder {
 public:
  std::vector<Parsed> add(const Record& record, std::uint64_t source = 1, std::uint64_t now_ns = kSecond) {
    std::vector<Parsed> parsed;
    for (const Packet& packet : conversations.add(message_of(record), source, "test", now_ns)) parsed.push_back(parse(packet));
    return parsed;
  }
  std::string payload(const Record& record, std::uint64_t source = 1, std::uint64_t now_ns = kSecond) {
    std::string text;
    for (const Parsed& p : add(record, source, now_ns)) text += p.payload;
    return text;
  }
  Conversations conversations;
};

Record server(Record record) {
  record.at_client = false;
  return record;
}

}  // namespace

// ---- packets ----

TEST_CASE("packets have correct lengths and checksums", "[capture]") {
  const std::size_t length = GENERATE(0u, 1u, 2u, 999u, 65495u);
  TcpSegment segment{ipv4(1, 1000), ipv4(2, 80), 0xfffffff0, 77, kAck | kPsh, {}};
  const std::string payload(length, '\xff');
  segment.payload = payload;
  const std::string v4 = ip_packet(segment, 0xffff);
  REQUIRE(v4.size() == 40 + length);
  CHECK(internet_checksum(v4.substr(0, 20)) == 0);
  const auto with_pseudo_header = [&](const std::string& addresses, const std::string& tcp) {
    return addresses + std::string{0, 6, static_cast<char>(tcp.size() >> 8), static_cast<char>(tcp.size())} + tcp;
  };
  CHECK(internet_checksum(with_pseudo_header(v4.substr(12, 8), v4.substr(20))) == 0);

  segment.to.address = {};  // ::
  const std::string v6 = ip_packet(segment, 0);
  REQUIRE(v6.size() == 60 + length);
  CHECK(static_cast<std::uint8_t>(v6[0]) == 0x60);
  CHECK(internet_checksum(with_pseudo_header(v6.substr(8, 32), v6.substr(40))) == 0);
}

TEST_CASE("pcapng blocks have their length at both ends and are padded", "[capture]") {
  for (std::size_t size : {0u, 1u, 2u, 3u, 4u, 100u}) {
    const std::string block = pcapng_packet(0x123456789abcdef0, std::string(size, 'x'), std::string(size, 'c'));
    CHECK(block.size() % 4 == 0);
    CHECK(number32(block, 0) == 6);
    CHECK(number32(block, 4) == block.size());
    CHECK(number32(block, block.size() - 4) == block.size());
    CHECK(number32(block, 12) == 0x12345678);
    CHECK(number32(block, 16) == 0x9abcdef0);
    CHECK(number32(block, 20) == size);
  }
  const std::string begin = pcapng_begin("test", "if");
  CHECK(number32(begin, 8) == 0x1a2b3c4d);
  CHECK(number32(begin, number32(begin, 4)) == 1);
}

// ---- conversations ----

TEST_CASE("a conversation has a handshake, data with acknowledgements, and an end", "[capture]") {
  Recorder r;
  const auto first = r.add({"hello"});
  REQUIRE(first.size() == 4);
  CHECK(first[0].flags == kSyn);
  CHECK(first[1].flags == (kSyn | kAck));
  CHECK(first[1].acknowledged == first[0].sequence + 1);
  CHECK(first[2].flags == kAck);
  CHECK(first[3].sequence == first[0].sequence + 1);
  CHECK(first[3].acknowledged == first[1].sequence + 1);
  CHECK(first[3].payload == "hello");
  const auto answer = r.add({"good day", 0, false});
  REQUIRE(answer.size() == 1);
  CHECK(answer[0].from == 80);
  CHECK(answer[0].sequence == first[1].sequence + 1);
  CHECK(answer[0].acknowledged == first[0].sequence + 6);
  const auto fin = r.add({"", 5, true, true, true, TapKind::kEnd});
  REQUIRE(fin.size() == 1);
  CHECK(fin[0].flags == (kFin | kAck));
  CHECK(fin[0].sequence == first[0].sequence + 6);
  const auto last = r.add({"", 8, false, true, true, TapKind::kEnd});
  REQUIRE(last.size() == 2);
  CHECK(last[0].acknowledged == first[0].sequence + 7);
  CHECK(last[1].flags == kAck);
  CHECK(last[1].acknowledged == first[1].sequence + 10);
}

TEST_CASE("each byte is written once, although both ends send records", "[capture]") {
  Recorder r;
  CHECK(r.payload({"abc"}) == "abc");
  CHECK(r.payload(server({"abc", 0, false}), 2).empty());
  CHECK(r.payload(server({"xyz", 0, true}), 2).empty());
  CHECK(r.payload({"xyz", 0, false}) == "xyz");
  CHECK(r.conversations.connections() == 1);
}

TEST_CASE("a dropped record is a gap in the sequence numbers", "[capture]") {
  Recorder r;
  const auto first = r.add({"abc"});
  const auto later = r.add({"xyz", 100});
  CHECK(later[0].sequence - first[3].sequence == 100);
  CHECK(r.add({"", 200, true, true, true, TapKind::kEnd})[0].sequence - first[3].sequence == 200);
}

TEST_CASE("a conversation that is older than the capture begins without a gap", "[capture]") {
  Recorder r;
  const std::uint64_t far = (std::uint64_t{1} << 40) + 7;
  const auto first = r.add({"abc", far});
  CHECK(first[3].sequence == first[0].sequence + 1);
  CHECK(r.add({"xyz", 12345, false})[0].sequence == first[1].sequence + 1);
}

TEST_CASE("sequence numbers wrap", "[capture]") {
  Recorder r;
  const auto first = r.add({"abc"});
  const auto later = r.add({"xyz", (std::uint64_t{1} << 32) + 1});
  CHECK(later[0].sequence - first[3].sequence == 1);
}

TEST_CASE("the other end takes over when the process of the first is gone, where that stopped", "[capture]") {
  Recorder r;
  r.add({"abc"});
  r.add({"de", 3});
  r.conversations.forget_source(1);
  CHECK(r.payload(server({"cdefg", 2, false}), 2) == "fg");
  CHECK(r.payload(server({"answer", 0, true}), 2) == "answer");
  CHECK(r.conversations.connections() == 1);
}

TEST_CASE("addresses that are used again are a new conversation", "[capture]") {
  Recorder r;
  const auto first = r.add({"abc"});
  SECTION("after an end") {
    r.add({"", 3, true, true, true, TapKind::kEnd});
    r.add({"", 0, false, true, true, TapKind::kEnd});
  }
  SECTION("after a reset") { CHECK(r.add({"", 3, true, true, true, TapKind::kReset})[0].flags == (kRst | kAck)); }
  SECTION("without an end") {}
  const auto second = r.add({"new"});
  REQUIRE(second.size() == 4);
  CHECK(second[0].flags == kSyn);
  CHECK(second[0].sequence != first[0].sequence);
  const auto third = r.add({"row", 0, true, true, true, TapKind::kData, 6});
  CHECK(third[0].flags == kSyn);
  CHECK(r.conversations.connections() == 3);
}

TEST_CASE("late records of the other end are not a new conversation", "[capture]") {
  Recorder r;
  r.add({"abc"});
  r.add({"", 3, true, true, true, TapKind::kReset});
  CHECK(r.add(server({"abc", 0, false}), 2).empty());
  CHECK(r.add(server({"", 3, false, true, true, TapKind::kEnd}), 2).empty());
  CHECK(r.payload(server({"new", 0, true}), 2, 10 * kSecond) == "new");
  CHECK(r.conversations.connections() == 2);
}

TEST_CASE("the end of the other side is known from it alone when the first one has closed", "[capture]") {
  Recorder r;
  r.add({"abc"});
  SECTION("told before") {
    CHECK(r.add(server({"", 0, true, false, true, TapKind::kEnd}), 2).empty());
    CHECK(r.add({"", 3, true, true, true, TapKind::kEnd}).size() == 3);
  }
  SECTION("told behind") {
    CHECK(r.add({"", 3, true, true, true, TapKind::kEnd}).size() == 1);
    CHECK(r.add(server({"", 0, true, false, true, TapKind::kEnd}), 2).size() == 2);
  }
}

TEST_CASE("a flood of addresses is bounded", "[capture]") {
  Recorder r;
  TapMessage message = message_of({"x"});
  for (std::uint32_t i = 0; i < 70000; ++i) {
    memcpy(message.header.peer, &i, 4);
    r.conversations.add(message, 1, "test", 1);
  }
  CHECK(r.conversations.connections() == 70000);
}

// ---- input ----

TEST_CASE("messages of taps are checked", "[capture]") {
  const TapMessage good = message_of({"payload"});
  const auto bytes_of = [](const TapRecord& header, const std::string& payload) {
    return std::string(reinterpret_cast<const char*>(&header), sizeof header) + payload;
  };
  REQUIRE(parse_tap_message(bytes_of(good.header, "payload")));
  CHECK(parse_tap_message(bytes_of(good.header, "payload"))->payload == "payload");
  CHECK_FALSE(parse_tap_message(bytes_of(good.header, "payloa")));
  CHECK_FALSE(parse_tap_message(bytes_of(good.header, "payload.")));
  CHECK_FALSE(parse_tap_message(std::string(sizeof(TapRecord) - 1, '\0')));
  CHECK_FALSE(parse_tap_message(""));
  TapRecord bad = good.header;
  bad.magic = 0;
  CHECK_FALSE(parse_tap_message(bytes_of(bad, "payload")));
  bad = good.header;
  bad.kind = static_cast<TapKind>(77);
  CHECK_FALSE(parse_tap_message(bytes_of(bad, "payload")));
  bad = good.header;
  bad.length = kTapPayload + 1;
  CHECK_FALSE(parse_tap_message(bytes_of(bad, std::string(kTapPayload + 1, 'x'))));
}

TEST_CASE("filters of dump", "[capture]") {
  const auto matches = [](const std::vector<std::string>& words, const Record& record) { return parse_dump_filter(words).matches(message_of(record).header); };
  CHECK(matches({}, {"x"}));
  CHECK(matches({"port", "80"}, {"x"}));
  CHECK(matches({"port 80 and port 1000 and host localhost"}, server({"x"})));
  CHECK_FALSE(matches({"port", "81"}, {"x"}));
  CHECK_FALSE(matches({"port", "80", "and", "port", "81"}, {"x"}));
  CHECK(matches({"host", "127.0.0.1"}, {"x"}));
  CHECK_FALSE(matches({"host", "::1"}, {"x"}));
  CHECK(parse_dump_filter({"pid", "12"}).pid == 12);
  for (const char* wrong : {"port", "port 0", "port 65536", "port 8x", "host", "host a.b", "pid 0", "and", "port 80 and", "or port 80", "pid 1 and pid 2"}) {
    CHECK_THROWS_AS(parse_dump_filter({wrong}), UsageError);
  }
}

}  // namespace mpklink
