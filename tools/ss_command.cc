// SPDX-License-Identifier: MIT
// `mpklink ss`: all streams of the running processes, once.
#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "tools/command_support.h"
#include "tools/commands.h"
#include "tools/stream_options.h"
#include "tools/stream_view.h"

namespace mpklink {
namespace {

struct SsRequest {
  std::vector<int> pids;
  StreamFilter filter;
  bool fds = false, explain = false, processes = false, json = false;
};

std::string queue_text(const std::optional<std::uint64_t>& bytes) {
  return bytes ? fmt::format("{}", *bytes) : "-";
}

std::string owner_text(const StreamView& view, bool with_fd) {
  const std::string process = process_text(view.process->process);
  return with_fd ? fmt::format("{},fd={}", process, view.stream->fd) : process;
}

/// Below its row: what the reason means and what helps.
std::string explanation(const StreamInfo& stream) {
  if (stream.reason == 0) return {};
  return fmt::format("    {}: {}\n    Remedy: {}\n", reason_slug(stream.reason), reason_sentence(stream.reason), reason_remedy(stream.reason));
}

std::vector<std::string> stream_row(const StreamView& view, const SsRequest& request) {
  const StreamInfo& stream = *view.stream;
  return {state_text(stream.mode), mode_text(stream.mode, *view.process->content), queue_text(view.receive_queue), queue_text(view.send_queue),
          endpoint_text(stream.local), endpoint_text(stream.peer), short_number(stream.tx_bytes), short_number(stream.rx_bytes),
          stream.reason == 0 ? "-" : reason_slug(stream.reason), owner_text(view, request.fds)};
}

std::string stream_table(const std::vector<StreamView>& streams, const SsRequest& request) {
  const std::vector<Column> columns = {{"State"}, {"Mode"}, {"Recv-Q", true}, {"Send-Q", true}, {"Local Address:Port"}, {"Peer Address:Port"},
                                       {"Sent", true}, {"Received", true}, {"Reason"}, {"Process"}};
  std::vector<std::vector<std::string>> rows;
  for (const StreamView& view : streams) rows.push_back(stream_row(view, request));
  const std::string table = format_table(columns, rows, terminal_width());
  if (!request.explain) return table;
  std::string text;
  std::size_t at = table.find('\n') + 1;
  text += table.substr(0, at);
  for (const StreamView& view : streams) {
    const std::size_t end = table.find('\n', at) + 1;
    text += table.substr(at, end - at) + explanation(*view.stream);
    at = end;
  }
  return text;
}

std::string process_table(const std::vector<ProcessStatus>& processes) {
  const std::vector<Column> columns = {{"Process"}, {"Library"}, {"Guard"}, {"Streams", true}, {"Upgraded", true}, {"Revoked", true}, {"Ring-Tx", true},
                                       {"Ring-Rx", true}, {"TCP-Tx", true}, {"TCP-Rx", true}, {"Bells", true}, {"Sleeps", true}, {"Spin-Hits", true}};
  std::vector<std::vector<std::string>> rows;
  for (const ProcessStatus& process : processes) {
    if (!process.content) continue;
    const PageContent& content = *process.content;
    const ProcessCounters& c = content.counters;
    const PathBytes bytes = path_bytes(content);
    rows.push_back({process_text(process.process), printable(content.library_version), content.disabled ? "disabled" : guard_text(content),
                    short_number(content.streams.size() + content.rows_missing), short_number(c.upgraded), short_number(c.revoked),
                    short_number(bytes.ring_tx), short_number(bytes.ring_rx), short_number(bytes.tcp_tx), short_number(bytes.tcp_rx), short_number(c.bells),
                    short_number(c.sleeps), short_number(c.spin_hits)});
  }
  return format_table(columns, rows, terminal_width());
}

std::string as_json(const std::vector<ProcessStatus>& processes, const std::vector<StreamView>& streams) {
  std::vector<std::string> process_items, stream_items;
  for (const ProcessStatus& process : processes) process_items.push_back(process_json(process).text());
  for (const StreamView& view : streams) stream_items.push_back(stream_json(view).text());
  return JsonObject().add_raw("processes", json_array(process_items)).add_raw("streams", json_array(stream_items)).text() + "\n";
}

void run_ss(const SsRequest& request) {
  const std::vector<ProcessStatus> processes = StatusReader().read(request.pids);
  const std::vector<StreamView> streams = view_streams(processes, request.filter);
  if (request.json) return emit(as_json(processes, streams));
  std::string text = request.processes ? process_table(processes) : stream_table(streams, request);
  if (request.processes) text += totals_text(streams, processes.size()) + "\n";
  emit(text);
  for (const ProcessStatus& process : processes) {
    if (!process.content) complain(other_version_text(process));
  }
  if (processes.empty()) complain("no running process of yours has the library; start one with: mpklink run -- PROGRAM");
}

}  // namespace

void add_ss(CLI::App* app) {
  auto request = std::make_shared<SsRequest>();
  CLI::App* command = app->add_subcommand("ss", "streams of the running processes: addresses, mode, reason, bytes");
  add_stream_filter(command, &request->pids, &request->filter);
  command->add_flag("-p", request->fds, "also the descriptor that names the stream in its process");
  command->add_flag("-e,--extended", request->explain, "below each stream on TCP: what its reason means, and the remedy");
  command->add_flag("--processes", request->processes, "a line for each process, with its counters, instead of its streams");
  add_json_flag(command, &request->json);
  add_examples(command,
               {{"mpklink ss", "all streams of your processes; of everybody's as root"},
                {"mpklink ss --mode tcp -e", "what stays on TCP, why, and what helps"},
                {"mpklink ss --port 6379", "one service"},
                {"mpklink ss --processes", "bytes, bells, sleeps and spin hits of each process"},
                {"mpklink ss --json | jq '.streams[].reason'", ""}},
               "Recv-Q and Send-Q are bytes on the way: sent by one end and not yet read by the other. They are known when both ends are shown, and "
               "\"-\" otherwise. Mode: guarded and shared streams go through shared memory, with and without a guard.");
  command->callback([request] { run_ss(*request); });
}

}  // namespace mpklink
