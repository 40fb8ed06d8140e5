// SPDX-License-Identifier: MIT
#include "tools/top_view.h"

#include <fmt/format.h>

#include <algorithm>

#include "tools/command_support.h"

namespace mpklink {
namespace {

// A process and a stream over time: a pid or a row that was given to another one is told by when it began.
using ProcessKey = std::tuple<pid_t, std::uint64_t>;
using StreamKey = std::tuple<pid_t, std::uint32_t, std::uint64_t>;

ProcessKey key_of(const ProcessStatus& process) {
  return {process.process.pid, process.content->started_ns};
}

StreamKey key_of(const ProcessStatus& process, const StreamInfo& stream) {
  return {process.process.pid, stream.row, stream.since_ns};
}

double per_second(std::uint64_t now, std::uint64_t before, double interval_s) {
  return now > before ? static_cast<double>(now - before) / interval_s : 0;
}

std::uint64_t calls_of(const PageContent& content) {
  std::uint64_t calls = 0;
  for (const StreamInfo& stream : content.streams) calls += stream.tx_calls + stream.rx_calls;
  return calls;
}

ProcessRate process_rate(const ProcessStatus& now, const ProcessStatus* before, double interval_s) {
  ProcessRate rate;
  rate.process = &now;
  if (before == nullptr || interval_s == 0) return rate;
  const ProcessCounters& c = now.content->counters;
  const ProcessCounters& b = before->content->counters;
  const PathBytes bytes = path_bytes(*now.content), bytes_before = path_bytes(*before->content);
  rate.ring_bytes = per_second(bytes.ring_tx + bytes.ring_rx, bytes_before.ring_tx + bytes_before.ring_rx, interval_s);
  rate.tcp_bytes = per_second(bytes.tcp_tx + bytes.tcp_rx, bytes_before.tcp_tx + bytes_before.tcp_rx, interval_s);
  rate.calls = per_second(calls_of(*now.content), calls_of(*before->content), interval_s);
  rate.bells = per_second(c.bells, b.bells, interval_s);
  rate.sleeps = per_second(c.sleeps, b.sleeps, interval_s);
  rate.spin_hits = per_second(c.spin_hits, b.spin_hits, interval_s);
  return rate;
}

StreamRate stream_rate(const StreamView& view, const StreamInfo* before, double interval_s) {
  StreamRate rate{view};
  if (before == nullptr || interval_s == 0) return rate;
  const StreamInfo& now = *view.stream;
  rate.tx_bytes = per_second(now.tx_bytes, before->tx_bytes, interval_s);
  rate.rx_bytes = per_second(now.rx_bytes, before->rx_bytes, interval_s);
  rate.calls = per_second(now.tx_calls + now.rx_calls, before->tx_calls + before->rx_calls, interval_s);
  return rate;
}

std::string rate_text(double rate, double interval_s) {
  return interval_s == 0 ? "-" : short_number(static_cast<std::uint64_t>(rate + 0.5));
}

// ---- tables ----

std::string process_table(const Rates& rates, std::size_t most, std::size_t width) {
  const std::vector<Column> columns = {{"PROCESS"}, {"GUARD"}, {"STREAMS", true}, {"RING B/s", true}, {"TCP B/s", true}, {"CALLS/s", true},
                                       {"BELLS/s", true}, {"SLEEPS/s", true}, {"SPIN HITS/s", true}};
  std::vector<std::vector<std::string>> rows;
  for (const ProcessRate& rate : rates.processes) {
    if (rows.size() == most) break;
    const auto text = [&](double number) { return rate_text(number, rates.interval_s); };
    rows.push_back({process_text(rate.process->process), guard_text(*rate.process->content), fmt::format("{}", rate.process->content->streams.size()),
                    text(rate.ring_bytes), text(rate.tcp_bytes), text(rate.calls), text(rate.bells), text(rate.sleeps), text(rate.spin_hits)});
  }
  return format_table(columns, rows, width);
}

std::string stream_table(const Rates& rates, std::size_t most, std::size_t width) {
  const std::vector<Column> columns = {{"PROCESS"}, {"LOCAL"}, {"PEER"}, {"MODE"}, {"TX B/s", true}, {"RX B/s", true}, {"CALLS/s", true},
                                       {"SENT", true}, {"RECEIVED", true}, {"IN RING", true}, {"REASON"}};
  std::vector<std::vector<std::string>> rows;
  for (const StreamRate& rate : rates.streams) {
    if (rows.size() == most) break;
    const StreamInfo& stream = *rate.view.stream;
    const auto text = [&](double number) { return rate_text(number, rates.interval_s); };
    rows.push_back({process_text(rate.view.process->process), endpoint_text(stream.local), endpoint_text(stream.peer),
                    mode_text(stream.mode, *rate.view.process->content), text(rate.tx_bytes), text(rate.rx_bytes), text(rate.calls),
                    short_number(stream.tx_bytes), short_number(stream.rx_bytes), rate.view.send_queue ? short_number(*rate.view.send_queue) : "-",
                    stream.reason == 0 ? "-" : reason_slug(stream.reason)});
  }
  return format_table(columns, rows, width);
}

template <class Key, class Value>
const Value* find(const std::map<Key, const Value*>& map, const Key& key) {
  const auto found = map.find(key);
  return found == map.end() ? nullptr : found->second;
}

}  // namespace

Rates rates_between(const Look& before, const Look& now, const StreamFilter& filter) {
  std::map<ProcessKey, const ProcessStatus*> processes;
  std::map<StreamKey, const StreamInfo*> streams;
  for (const ProcessStatus& process : before.processes) {
    if (!process.content) continue;
    processes[key_of(process)] = &process;
    for (const StreamInfo& stream : process.content->streams) streams[key_of(process, stream)] = &stream;
  }
  Rates rates;
  if (before.time != Look().time) rates.interval_s = std::chrono::duration<double>(now.time - before.time).count();
  for (const ProcessStatus& process : now.processes) {
    if (process.content) rates.processes.push_back(process_rate(process, find(processes, key_of(process)), rates.interval_s));
  }
  for (const StreamView& view : view_streams(now.processes, filter)) {
    rates.streams.push_back(stream_rate(view, find(streams, key_of(*view.process, *view.stream)), rates.interval_s));
  }
  // Those that do nothing stay in their order, or the screen would not keep still.
  std::stable_sort(rates.processes.begin(), rates.processes.end(), [](const ProcessRate& a, const ProcessRate& b) {
    return a.ring_bytes + a.tcp_bytes > b.ring_bytes + b.tcp_bytes;
  });
  std::stable_sort(rates.streams.begin(), rates.streams.end(), [](const StreamRate& a, const StreamRate& b) {
    return a.tx_bytes + a.rx_bytes > b.tx_bytes + b.rx_bytes;
  });
  return rates;
}

std::string top_text(const Rates& rates, const std::string& time_of_day, std::size_t rows, std::size_t width) {
  std::vector<StreamView> views;
  for (const StreamRate& rate : rates.streams) views.push_back(rate.view);
  std::size_t processes = rates.processes.size(), streams = rates.streams.size();
  if (rows > 0) {
    constexpr std::size_t kOtherLines = 5;  // first line, two titles, two empty ones
    processes = std::min(processes, std::max<std::size_t>(1, rows / 3));
    streams = rows > processes + kOtherLines ? rows - processes - kOtherLines : 0;
  }
  std::string first = fmt::format("mpklink top - {}  {}", time_of_day, totals_text(views, rates.processes.size()));
  if (width > 0) first = first.substr(0, width);
  return first + "\n\n" + process_table(rates, processes, width) + "\n" + stream_table(rates, streams, width);
}

std::string top_json(const Rates& rates, double time_s) {
  const auto joined = [](const std::vector<std::string>& items) {
    std::string text;
    for (const std::string& item : items) text += (text.empty() ? "" : ", ") + item;
    return "[" + text + "]";
  };
  std::vector<std::string> processes, streams;
  for (const ProcessRate& rate : rates.processes) {
    JsonObject object = process_json(*rate.process);
    object.add("ring_bytes_per_s", rate.ring_bytes).add("tcp_bytes_per_s", rate.tcp_bytes).add("calls_per_s", rate.calls);
    object.add("bells_per_s", rate.bells).add("sleeps_per_s", rate.sleeps).add("spin_hits_per_s", rate.spin_hits);
    processes.push_back(object.text());
  }
  for (const StreamRate& rate : rates.streams) {
    JsonObject object = stream_json(rate.view);
    object.add("tx_bytes_per_s", rate.tx_bytes).add("rx_bytes_per_s", rate.rx_bytes).add("calls_per_s", rate.calls);
    streams.push_back(object.text());
  }
  JsonObject object;
  object.add("time_s", time_s).add("interval_s", rates.interval_s);
  return object.add_raw("processes", joined(processes)).add_raw("streams", joined(streams)).text() + "\n";
}

}  // namespace mpklink
