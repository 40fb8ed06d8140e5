// SPDX-License-Identifier: MIT
#include "tools/conversation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "tools/tcp_packet.h"

namespace mpklink {
namespace {

constexpr std::size_t kMostConversations = 65536;      // a flood of invented addresses must not take all memory
constexpr std::uint64_t kLinger_ns = 2'000'000'000;    // the other end's records may be late by so much
constexpr std::uint32_t kInitialStep = 0x01000193;     // sequence numbers of a reused address begin elsewhere
constexpr std::uint32_t kInitialOfServer = 0x40000000;
constexpr int kDelayedAcknowledgement = 2;             // as TCP does: of every second segment

Endpoint end_of(const std::uint8_t (&address)[16], std::uint16_t port) {
  Endpoint end;
  std::copy(std::begin(address), std::end(address), end.address.begin());
  end.port = port;
  return end;
}

Endpoint local_of(const TapMessage& message) {
  return end_of(message.header.local, message.header.local_port);
}

Endpoint peer_of(const TapMessage& message) {
  return end_of(message.header.peer, message.header.peer_port);
}

bool has_first_byte(const TapMessage& message) {
  return message.header.kind == TapKind::kData && message.header.offset == 0;
}

bool is_known(TapKind kind) {
  return kind == TapKind::kData || kind == TapKind::kEnd || kind == TapKind::kReset;
}

}  // namespace

std::optional<TapMessage> parse_tap_message(std::string_view bytes) {
  TapMessage message;
  if (bytes.size() < sizeof message.header) return std::nullopt;
  memcpy(&message.header, bytes.data(), sizeof message.header);
  message.payload = bytes.substr(sizeof message.header);
  const TapRecord& header = message.header;
  const bool whole = header.length == message.payload.size() && header.length <= kTapPayload;
  const bool meaningful = is_known(header.kind) && (header.kind == TapKind::kData) == (header.length > 0) && header.outgoing <= 1;
  if (header.magic != kTapMagic || !whole || !meaningful) return std::nullopt;
  return message;
}

// ---- one record's packets ----

class Conversations::Writer {
 public:
  Writer(Conversation* conversation, const TapMessage& message, std::uint16_t* number)
      : conversation_(*conversation), header_(message.header), payload_(message.payload), number_(*number) {
    const Endpoint from = header_.outgoing != 0 ? local_of(message) : peer_of(message);
    side_ = from == conversation_.client ? 0 : 1;
  }

  void handshake(const std::string& name) {
    std::string comment = "as " + name + " saw it";
    if (!conversation_.from_start) comment += "; the connection is older than this capture";
    put(0, kSyn, 0, {}, std::move(comment), conversation_.directions[0].initial);
    put(1, kSyn | kAck, conversation_.directions[0].initial + 1, {}, {}, conversation_.directions[1].initial);
    acknowledge(0);
  }

  void data() {
    Direction& direction = meet(header_.offset);
    std::uint64_t offset = header_.offset;
    if (offset < direction.taken) {
      const std::uint64_t known = std::min<std::uint64_t>(direction.taken - offset, payload_.size());
      payload_.remove_prefix(static_cast<std::size_t>(known));
      offset += known;
    }
    for (; !payload_.empty(); payload_.remove_prefix(std::min(payload_.size(), kLargestPayload))) {
      const std::string_view chunk = payload_.substr(0, kLargestPayload);
      const bool last = chunk.size() == payload_.size();
      put(side_, last ? kPsh | kAck : kAck, acknowledgement(1 - side_), chunk, path_comment(&direction), sequence(direction, offset));
      offset += chunk.size();
      direction.next = std::max(direction.next, offset);
    }
    direction.first = std::min(direction.first, header_.offset);
    conversation_.directions[1 - side_].unacknowledged = 0;
    if (++direction.unacknowledged == kDelayedAcknowledgement) acknowledge(1 - side_);
  }

  void end(std::uint64_t now_ns) {
    end_direction(side_, header_.offset);
    const Direction& other = conversation_.directions[1 - side_];
    if (other.end_elsewhere == other.next) end_direction(1 - side_, other.next);
    finish_if_ended(now_ns);
  }

  /// The other end closes what it sent: said by it alone when the end that is followed had closed before.
  void end_elsewhere(std::uint64_t now_ns) {
    Direction& direction = conversation_.directions[side_];
    direction.end_elsewhere = header_.offset;
    if (!conversation_.directions[1 - side_].ended || header_.offset != direction.next) return;
    end_direction(side_, header_.offset);
    finish_if_ended(now_ns);
  }

  void reset(std::uint64_t now_ns) {
    const Direction& direction = meet(header_.offset);
    put(side_, kRst | kAck, acknowledgement(1 - side_), {}, {}, sequence(direction, direction.next) + (direction.ended ? 1 : 0));
    conversation_.finished_ns = now_ns;
  }

  std::vector<Packet> packets;

 private:
  /// This record's direction, which begins with it if it is the first.
  Direction& meet(std::uint64_t offset) {
    Direction& direction = conversation_.directions[side_];
    if (!direction.seen) {
      direction.base = direction.next = conversation_.from_start ? 0 : offset;
      direction.first = offset;
      direction.seen = true;
    }
    return direction;
  }

  static std::uint32_t sequence(const Direction& direction, std::uint64_t offset) {
    return static_cast<std::uint32_t>(direction.initial + 1 + (offset - direction.base));
  }

  std::uint32_t acknowledgement(int side) const {
    const Direction& direction = conversation_.directions[side];
    return sequence(direction, direction.next) + (direction.ended ? 1 : 0);
  }

  void acknowledge(int side) {
    Direction& other = conversation_.directions[1 - side];
    other.unacknowledged = 0;
    put(side, kAck, acknowledgement(1 - side), {}, {}, acknowledgement(side));
  }

  void end_direction(int side, std::uint64_t offset) {
    side_ = side;
    Direction& direction = meet(offset);
    if (direction.ended) return;
    direction.next = std::max(direction.next, offset);
    put(side, kFin | kAck, acknowledgement(1 - side), {}, {}, sequence(direction, direction.next));
    direction.ended = true;
  }

  void finish_if_ended(std::uint64_t now_ns) {
    if (conversation_.finished_ns != 0 || !conversation_.directions[0].ended || !conversation_.directions[1].ended) return;
    acknowledge(1 - side_);
    conversation_.finished_ns = now_ns;
  }

  std::string path_comment(Direction* direction) const {
    const int before = direction->shared;
    direction->shared = header_.shared != 0 ? 1 : 0;
    if (direction->shared == before || (before == -1 && direction->shared == 0)) return {};
    return direction->shared != 0 ? "from here on through shared memory" : "from here on over TCP";
  }

  void put(int side, int flags, std::uint32_t acknowledged, std::string_view payload, std::string comment, std::uint32_t sequence) {
    TcpSegment segment{conversation_.client, conversation_.server, sequence, acknowledged, static_cast<std::uint8_t>(flags), payload};
    if (side == 1) std::swap(segment.from, segment.to);
    packets.push_back({header_.time_ns, ip_packet(segment, number_++), std::move(comment), !payload.empty()});
  }

  Conversation& conversation_;
  const TapRecord& header_;
  std::string_view payload_;
  std::uint16_t& number_;
  int side_;
};

// ---- which end is followed ----

Conversations::Relation Conversations::relation(const Conversation& conversation, const TapMessage& message, const Source& source, std::uint64_t now_ns) {
  const bool is_data = message.header.kind == TapKind::kData;
  if (source.process != conversation.owner.process || !(local_of(message) == conversation.local)) {
    return relation_of_stranger(conversation, message, now_ns);
  }
  if (source.row != conversation.owner.row) return is_data ? Relation::kNew : Relation::kOtherEnd;
  // The same row again, for a later connection of the same addresses, shows in offsets that begin anew.
  const bool outgoing_is_client = (message.header.outgoing != 0) == (conversation.local == conversation.client);
  const Direction& direction = conversation.directions[outgoing_is_client ? 0 : 1];
  const bool again = has_first_byte(message) && direction.seen && direction.next > 0 && (direction.first == 0 || !conversation.from_start);
  if (conversation.finished_ns != 0 || again) return has_first_byte(message) ? Relation::kNew : Relation::kOtherEnd;
  return Relation::kFollowed;
}

Conversations::Relation Conversations::relation_of_stranger(const Conversation& conversation, const TapMessage& message, std::uint64_t now_ns) {
  if (conversation.finished_ns != 0) {
    const bool late = now_ns - conversation.finished_ns < kLinger_ns;
    return late || message.header.kind != TapKind::kData ? Relation::kOtherEnd : Relation::kNew;
  }
  // Another process with the addresses of the one that is followed: a later connection.
  if (local_of(message) == conversation.local && has_first_byte(message)) return Relation::kNew;
  return conversation.owner_gone ? Relation::kFollowed : Relation::kOtherEnd;
}

Conversations::Conversation& Conversations::start(const Key& key, const TapMessage& message, const Source& source) {
  if (conversations_.size() >= kMostConversations) conversations_.erase(conversations_.begin());
  Conversation conversation{};
  conversation.owner = source;
  conversation.local = local_of(message);
  conversation.client = message.header.connector != 0 ? local_of(message) : peer_of(message);
  conversation.server = message.header.connector != 0 ? peer_of(message) : local_of(message);
  conversation.from_start = message.header.offset == 0;
  conversation.directions[0].initial = static_cast<std::uint32_t>(++connections_) * kInitialStep;
  conversation.directions[1].initial = conversation.directions[0].initial + kInitialOfServer;
  return conversations_[key] = conversation;
}

std::vector<Packet> Conversations::add(const TapMessage& message, std::uint64_t source_process, const std::string& name, std::uint64_t now_ns) {
  const Source source{source_process, message.header.row};
  const Key key = std::minmax(local_of(message), peer_of(message));
  const auto found = conversations_.find(key);
  const bool is_data = message.header.kind == TapKind::kData;
  if (found == conversations_.end() && !is_data) return {};
  const Relation relation = found == conversations_.end() ? Relation::kNew : Conversations::relation(found->second, message, source, now_ns);
  Conversation& conversation = relation == Relation::kNew ? start(key, message, source) : found->second;
  Writer writer(&conversation, message, &packet_number_);
  if (relation == Relation::kOtherEnd) {
    if (message.header.kind == TapKind::kEnd && message.header.outgoing != 0 && conversation.finished_ns == 0) writer.end_elsewhere(now_ns);
    return std::move(writer.packets);
  }
  if (conversation.owner_gone) {
    conversation.owner = source;
    conversation.local = local_of(message);
    conversation.owner_gone = false;
    for (Direction& direction : conversation.directions) direction.taken = direction.next;
  }
  if (relation == Relation::kNew) writer.handshake(name);
  switch (message.header.kind) {
    case TapKind::kData: writer.data(); break;
    case TapKind::kEnd: writer.end(now_ns); break;
    case TapKind::kReset: writer.reset(now_ns); break;
  }
  return std::move(writer.packets);
}

void Conversations::forget_source(std::uint64_t source) {
  for (auto& entry : conversations_) {
    if (entry.second.owner.process == source) entry.second.owner_gone = true;
  }
}

void Conversations::expire(std::uint64_t now_ns) {
  for (auto it = conversations_.begin(); it != conversations_.end();) {
    const std::uint64_t finished_ns = it->second.finished_ns;
    it = finished_ns != 0 && now_ns - finished_ns >= kLinger_ns ? conversations_.erase(it) : std::next(it);
  }
}

}  // namespace mpklink
