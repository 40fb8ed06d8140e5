// SPDX-License-Identifier: MIT
#include "tools/stream_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "preload/reasons.h"

namespace mpklink {
namespace {

enum Guard : std::uint32_t { kUndecided = 0, kOff = 1, kPkey = 2, kMprotect = 3, kMissing = 4 };

template <class T>
bool has(const std::vector<T>& list, const T& value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

/// Both ends of a connection, found by what they call each other. Addresses are only unique in a network namespace.
using EndKey = std::tuple<std::uint64_t, Endpoint, Endpoint>;

std::map<EndKey, const StreamInfo*> streams_by_end(const std::vector<ProcessStatus>& processes) {
  std::map<EndKey, const StreamInfo*> ends;
  for (const ProcessStatus& process : processes) {
    if (!process.content) continue;
    for (const StreamInfo& stream : process.content->streams) ends[{process.process.network, stream.local, stream.peer}] = &stream;
  }
  return ends;
}

/// Of counters that were not read at the same moment: less than nothing is nothing.
std::uint64_t difference(std::uint64_t more, std::uint64_t less) {
  return more > less ? more - less : 0;
}

}  // namespace

const char* state_text(RowMode mode) {
  switch (mode) {
    case RowMode::kCandidate: return "candidate";
    case RowMode::kUpgrading: return "upgrading";
    case RowMode::kShared: return "shared";
    case RowMode::kPlain: return "plain";
    case RowMode::kFree: break;
  }
  return "free";
}

const char* mode_text(RowMode mode, const PageContent& content) {
  if (mode != RowMode::kShared) return "tcp";
  return content.guard == kPkey || content.guard == kMprotect ? "guarded" : "shared";
}

std::string guard_text(const PageContent& content) {
  const std::string why = content.guard_why.empty() ? "" : " (" + printable(content.guard_why) + ")";
  switch (content.guard) {
    case kUndecided: return "undecided";
    case kOff: return "off" + why;
    case kPkey: return "pkey";
    case kMprotect: return "mprotect";
    case kMissing: return "missing" + why;
    default: return "unknown";
  }
}

std::string short_number(std::uint64_t number) {
  if (number < 10000) return fmt::format("{}", number);
  double value = static_cast<double>(number);
  const char* unit = "KMGTPE";
  for (value /= 1024; value >= 999.5; value /= 1024) ++unit;
  return fmt::format(value < 99.95 ? "{:.1f}{}" : "{:.0f}{}", value, *unit);
}

PathBytes path_bytes(const PageContent& content) {
  const ProcessCounters& ended = content.counters;
  PathBytes sum{ended.ring_tx, ended.ring_rx, ended.tcp_tx, ended.tcp_rx};
  for (const StreamInfo& stream : content.streams) {
    sum.ring_tx += difference(stream.tx_bytes, stream.tcp_tx_bytes);
    sum.ring_rx += difference(stream.rx_bytes, stream.tcp_rx_bytes);
    sum.tcp_tx += stream.tcp_tx_bytes;
    sum.tcp_rx += stream.tcp_rx_bytes;
  }
  return sum;
}

bool StreamFilter::matches(const ProcessStatus& process, const StreamInfo& stream) const {
  if (!ports.empty() && !has(ports, int{stream.local.port}) && !has(ports, int{stream.peer.port})) return false;
  if (!modes.empty() && !has(modes, std::string(mode_text(stream.mode, *process.content)))) return false;
  return reasons.empty() || (stream.reason != 0 && has(reasons, reason_slug(stream.reason)));
}

std::vector<StreamView> view_streams(const std::vector<ProcessStatus>& processes, const StreamFilter& filter) {
  const std::map<EndKey, const StreamInfo*> ends = streams_by_end(processes);
  std::vector<StreamView> views;
  for (const ProcessStatus& process : processes) {
    if (!process.content) continue;
    for (const StreamInfo& stream : process.content->streams) {
      if (!filter.matches(process, stream)) continue;
      StreamView view{&process, &stream, {}, {}};
      const auto other = ends.find({process.process.network, stream.peer, stream.local});
      if (other != ends.end()) {
        view.send_queue = difference(stream.tx_bytes, other->second->rx_bytes);
        view.receive_queue = difference(other->second->tx_bytes, stream.rx_bytes);
      }
      views.push_back(view);
    }
  }
  return views;
}

std::string totals_text(const std::vector<StreamView>& streams, std::size_t processes) {
  std::string modes;
  for (const char* mode : {"guarded", "shared", "tcp"}) {
    const auto count = std::count_if(streams.begin(), streams.end(), [&](const StreamView& view) {
      return std::string_view(mode_text(view.stream->mode, *view.process->content)) == mode;
    });
    if (count > 0) modes += fmt::format("{}{} {}", modes.empty() ? " (" : ", ", count, mode);
  }
  if (!modes.empty()) modes += ")";
  return fmt::format("{} {}{} of {} {}", streams.size(), streams.size() == 1 ? "stream" : "streams", modes, processes,
                     processes == 1 ? "process" : "processes");
}

std::string other_version_text(const ProcessStatus& process) {
  return fmt::format("{} has another version of the library (status {}, this tool reads {}): use the mpklink that came with it, or restart the process",
                     process_text(process.process), process.version, kStatusVersion);
}

// ---- JSON ----

namespace {

std::string plain_json(const ProcessCounters& counters) {
  JsonObject reasons;
  for (std::uint32_t i = 0; i < kStatusReasons; ++i) {
    if (counters.plain[i] != 0) reasons.add(reason_slug(i + 1), counters.plain[i]);
  }
  return reasons.text();
}

void add_queue(JsonObject* object, const char* key, const std::optional<std::uint64_t>& bytes) {
  if (bytes) {
    object->add(key, *bytes);
  } else {
    object->add_null(key);
  }
}

}  // namespace

JsonObject process_json(const ProcessStatus& process) {
  JsonObject object;
  object.add("pid", process.process.pid).add("program", process.process.program).add("uid", process.process.uid);
  object.add("status_version", process.version);
  if (!process.content) return object;
  const PageContent& content = *process.content;
  const ProcessCounters& counters = content.counters;
  const PathBytes bytes = path_bytes(content);
  object.add("library_version", printable(content.library_version)).add("layout_version", content.layout_version);
  object.add("guard", guard_text(content)).add_raw("disabled", content.disabled ? "true" : "false");
  object.add("streams", content.streams.size()).add("streams_missing", content.rows_missing);
  object.add("upgraded", counters.upgraded).add("revoked", counters.revoked);
  object.add("ring_tx_bytes", bytes.ring_tx).add("ring_rx_bytes", bytes.ring_rx).add("ring_returned_bytes", counters.ring_returned);
  object.add("tcp_tx_bytes", bytes.tcp_tx).add("tcp_rx_bytes", bytes.tcp_rx);
  object.add("bells", counters.bells).add("sleeps", counters.sleeps).add("spin_hits", counters.spin_hits);
  object.add("gates", counters.gates).add("gate_found_open", counters.gate_found_open);
  object.add("tap_records", counters.tap_records).add("tap_dropped", counters.tap_dropped);
  object.add_raw("plain", plain_json(counters));
  return object;
}

JsonObject stream_json(const StreamView& view) {
  const StreamInfo& stream = *view.stream;
  JsonObject object;
  object.add("pid", view.process->process.pid).add("program", view.process->process.program).add("fd", stream.fd);
  object.add("state", state_text(stream.mode)).add("mode", mode_text(stream.mode, *view.process->content));
  object.add("local_address", address_text(stream.local.address)).add("local_port", stream.local.port);
  object.add("peer_address", address_text(stream.peer.address)).add("peer_port", stream.peer.port);
  object.add_raw("connector", stream.connector ? "true" : "false");
  if (stream.reason != 0) {
    object.add("reason", reason_slug(stream.reason));
  } else {
    object.add_null("reason");
  }
  object.add("tx_bytes", stream.tx_bytes).add("rx_bytes", stream.rx_bytes).add("tx_calls", stream.tx_calls).add("rx_calls", stream.rx_calls);
  add_queue(&object, "send_queue_bytes", view.send_queue);
  add_queue(&object, "receive_queue_bytes", view.receive_queue);
  object.add("upgrades", stream.upgrades).add("revokes", stream.revokes);
  return object;
}

}  // namespace mpklink
