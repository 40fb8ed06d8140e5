// SPDX-License-Identifier: MIT
// Turns the records of taps (shm/status.h) into the packets of TCP connections that never were. Pure: no system calls, no clock but the one
// that is handed in.
//
// Both ends of a connection send records of all its bytes. One end's are written, those of the end that spoke first; the other end only
// takes over when the first one's process is gone. Sequence numbers follow the offsets, so what a tap dropped is a gap, as a lost packet.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "shm/status.h"
#include "tools/status_page.h"

namespace mpklink {

/// A message of a tap, checked.
struct TapMessage {
  TapRecord header;
  std::string_view payload;
};
std::optional<TapMessage> parse_tap_message(std::string_view bytes);

struct Packet {
  std::uint64_t time_ns = 0;
  std::string bytes, comment;
  bool has_data = false;
};

class Conversations {
 public:
  /// `source` tells processes apart, `name` is for the reader of the capture. The packets of one record, in their order: often none.
  std::vector<Packet> add(const TapMessage& message, std::uint64_t source, const std::string& name, std::uint64_t now_ns);
  /// The process will not send any more.
  void forget_source(std::uint64_t source);
  /// Drops what has ended a while ago.
  void expire(std::uint64_t now_ns);

  std::size_t connections() const { return connections_; }  // that were written

 private:
  struct Source {
    std::uint64_t process;
    std::uint32_t row;
    bool operator==(const Source& other) const { return process == other.process && row == other.row; }
  };
  struct Direction {
    bool seen = false, ended = false;
    int shared = -1;         // of the last data: through the ring; -1: none yet
    std::uint64_t base = 0;   // the offset that follows the SYN
    std::uint64_t first = 0;  // lowest offset written
    std::uint64_t next = 0;   // behind the highest byte written
    std::uint64_t taken = 0;  // what lies below was written by the end that was followed before
    std::uint32_t initial = 0;
    int unacknowledged = 0;  // records since the other side was heard
    std::optional<std::uint64_t> end_elsewhere;  // the other end of the connection says that it ends here
  };
  struct Conversation {
    Source owner;
    Endpoint local;  // the owner's
    Endpoint client, server;
    bool owner_gone = false, from_start = false;
    std::uint64_t finished_ns = 0;  // 0: not
    Direction directions[2];        // from the client, from the server
  };
  using Key = std::pair<Endpoint, Endpoint>;
  enum class Relation { kFollowed, kOtherEnd, kNew };
  class Writer;

  static Relation relation(const Conversation& conversation, const TapMessage& message, const Source& source, std::uint64_t now_ns);
  static Relation relation_of_stranger(const Conversation& conversation, const TapMessage& message, std::uint64_t now_ns);
  Conversation& start(const Key& key, const TapMessage& message, const Source& source);

  std::map<Key, Conversation> conversations_;
  std::size_t connections_ = 0;
  std::uint16_t packet_number_ = 0;
};

}  // namespace mpklink
