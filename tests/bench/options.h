// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "sockets.h"

namespace bench {

enum class Mode { kBlocking, kPoll, kEpoll };
enum class Kind { kEcho, kSink, kSource };

struct ServeOptions {
  Kind kind = Kind::kEcho;
  Mode mode = Mode::kBlocking;
  Address address;
  std::size_t bytes = 0;
  unsigned seconds = 600;
  unsigned processes = 1;  // that share the port, each with a listener of its own
};

struct ClientOptions {
  Mode mode = Mode::kBlocking;
  Address address;
  std::size_t bytes = 64;
  double seconds = 0;
  std::uint64_t max_operations = 1'000'000'000;  // whichever of the two comes first
  // pingpong
  unsigned warmup_ms = 200;
  double rate = 0;  // messages per second; 0: as fast as they are answered
  // stream
  unsigned streams = 1;
  bool receive = false;
  // many
  unsigned connections = 0;
  unsigned busy = 0;
  unsigned requests_first = 40;
  bool hold_only = false;
};

}  // namespace bench
