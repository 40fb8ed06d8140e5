// SPDX-License-Identifier: MIT
#include "tools/metrics_text.h"

#include <fmt/format.h>

#include <cstdint>
#include <map>
#include <utility>

#include "tools/command_support.h"
#include "tools/stream_view.h"

namespace mpklink {
namespace {

using Labels = std::vector<std::pair<const char*, std::string>>;

/// A metric of all processes: its two lines of explanation, then its samples.
class Metric {
 public:
  Metric(const char* name, const char* type, const char* help) : name_(name) {
    text_ = fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
  }
  void sample(const Labels& labels, std::uint64_t value) {
    std::string inside;
    for (const auto& label : labels) inside += fmt::format("{}{}=\"{}\"", inside.empty() ? "" : ",", label.first, escape_label(label.second));
    text_ += inside.empty() ? fmt::format("{} {}\n", name_, value) : fmt::format("{}{{{}}} {}\n", name_, inside, value);
  }
  const std::string& text() const { return text_; }

 private:
  const char* name_;
  std::string text_;
};

Labels labels_of(const ProcessStatus& process) {
  return {{"pid", fmt::format("{}", process.process.pid)}, {"program", process.process.program}};
}

Labels with(Labels labels, std::initializer_list<std::pair<const char*, std::string>> more) {
  labels.insert(labels.end(), more);
  return labels;
}

std::string processes_metric(const std::vector<ProcessStatus>& processes) {
  Metric metric("mpklink_process_info", "gauge", "Processes that have the library, with what they say of it.");
  for (const ProcessStatus& process : processes) {
    const bool readable = process.content.has_value();
    metric.sample(with(labels_of(process), {{"uid", fmt::format("{}", process.process.uid)},
                                            {"version", readable ? printable(process.content->library_version) : "other"},
                                            {"guard", readable ? guard_text(*process.content) : "unknown"}}), 1);
  }
  return metric.text();
}

std::string streams_metric(const std::vector<ProcessStatus>& processes) {
  Metric metric("mpklink_streams", "gauge", "Open streams by mode, and by reason where they are on TCP for good.");
  for (const ProcessStatus& process : processes) {
    if (!process.content) continue;
    std::map<std::pair<std::string, std::string>, std::uint64_t> counts;
    for (const StreamInfo& stream : process.content->streams) {
      ++counts[{mode_text(stream.mode, *process.content), stream.reason == 0 ? "" : reason_slug(stream.reason)}];
    }
    for (const auto& entry : counts) {
      metric.sample(with(labels_of(process), {{"mode", entry.first.first}, {"reason", entry.first.second}}), entry.second);
    }
  }
  return metric.text();
}

std::string bytes_metric(const std::vector<ProcessStatus>& processes) {
  Metric metric("mpklink_bytes_total", "counter", "Bytes that programs sent (tx) and received (rx), through shared memory (ring) or over TCP.");
  for (const ProcessStatus& process : processes) {
    if (!process.content) continue;
    const PathBytes bytes = path_bytes(*process.content);
    metric.sample(with(labels_of(process), {{"path", "ring"}, {"direction", "tx"}}), bytes.ring_tx);
    metric.sample(with(labels_of(process), {{"path", "ring"}, {"direction", "rx"}}), bytes.ring_rx);
    metric.sample(with(labels_of(process), {{"path", "tcp"}, {"direction", "tx"}}), bytes.tcp_tx);
    metric.sample(with(labels_of(process), {{"path", "tcp"}, {"direction", "rx"}}), bytes.tcp_rx);
  }
  return metric.text();
}

std::string fallbacks_metric(const std::vector<ProcessStatus>& processes) {
  Metric metric("mpklink_fallbacks_total", "counter", "Streams that stayed on TCP or went back to it for good, by reason.");
  for (const ProcessStatus& process : processes) {
    if (!process.content) continue;
    for (std::uint32_t i = 0; i < kStatusReasons; ++i) {
      const std::uint64_t count = process.content->counters.plain[i];
      if (count != 0) metric.sample(with(labels_of(process), {{"reason", reason_slug(i + 1)}}), count);
    }
  }
  return metric.text();
}

struct PlainCounter {
  const char* name;
  const char* help;
  std::uint64_t ProcessCounters::*counter;
};

constexpr PlainCounter kPlainCounters[] = {
    {"mpklink_upgrades_total", "Streams that moved into shared memory.", &ProcessCounters::upgraded},
    {"mpklink_revokes_total", "Streams that moved back to TCP.", &ProcessCounters::revoked},
    {"mpklink_ring_returned_bytes_total", "Bytes that were in a ring when their stream moved back, and went over TCP.", &ProcessCounters::ring_returned},
    {"mpklink_bells_total", "Wake-ups of the other end: each a system call.", &ProcessCounters::bells},
    {"mpklink_sleeps_total", "Waits in the kernel.", &ProcessCounters::sleeps},
    {"mpklink_spin_hits_total", "Waits that a short busy wait made unnecessary.", &ProcessCounters::spin_hits},
    {"mpklink_gates_total", "Times that guarded memory was opened.", &ProcessCounters::gates},
    {"mpklink_gate_found_open_total", "Times that guarded memory was found open on entry: never, if all is well.", &ProcessCounters::gate_found_open},
    {"mpklink_tap_records_total", "Records sent to mpklink dump.", &ProcessCounters::tap_records},
    {"mpklink_tap_dropped_total", "Records that mpklink dump did not take in time.", &ProcessCounters::tap_dropped},
};

std::string plain_counter(const std::vector<ProcessStatus>& processes, const PlainCounter& counter) {
  Metric metric(counter.name, "counter", counter.help);
  for (const ProcessStatus& process : processes) {
    if (process.content) metric.sample(labels_of(process), process.content->counters.*counter.counter);
  }
  return metric.text();
}

}  // namespace

std::string escape_label(const std::string& value) {
  std::string escaped;
  for (char c : value) {
    if (c == '\n') {
      escaped += "\\n";
    } else {
      if (c == '\\' || c == '"') escaped += '\\';
      escaped += c;
    }
  }
  return escaped;
}

std::string metrics_text(const std::vector<ProcessStatus>& processes) {
  std::string text = processes_metric(processes) + streams_metric(processes) + bytes_metric(processes) + fallbacks_metric(processes);
  for (const PlainCounter& counter : kPlainCounters) text += plain_counter(processes, counter);
  return text;
}

}  // namespace mpklink
