// SPDX-License-Identifier: MIT
// `mpklink dump`: the bytes of streams as a capture, as if they had gone over the network.
#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tools/capture_file.h"
#include "tools/command_support.h"
#include "tools/commands.h"
#include "tools/conversation.h"
#include "tools/dump_filter.h"
#include "tools/json_object.h"
#include "tools/pcapng.h"
#include "tools/stop_signals.h"
#include "tools/tap.h"

namespace mpklink {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kLookForProcesses{200};

struct DumpRequest {
  std::vector<std::string> filter;
  std::string file;
  std::uint64_t count = 0;
  double duration_s = 0;
  bool json = false;
};

std::uint64_t now_ns(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

class Dump {
 public:
  Dump(const DumpRequest& request, const DumpFilter& filter)
      : request_(request), file_(request.file), tap_(filter, {[this](const auto& message, auto source, const auto& name) { take(message, source, name); },
                                                             [this](auto source) { conversations_.forget_source(source); }}) {}

  void run() {
    statistics_.start_ns = now_ns(CLOCK_REALTIME);
    tap_.ask_processes();
    if (!tap_.has_processes()) complain("no process of yours has the library yet; waiting for one: mpklink run -- PROGRAM");
    file_.begin();
    file_.write(pcapng_begin("mpklink " MPKLINK_VERSION, "mpklink"), signals_);
    file_.flush(signals_);
    const Clock::time_point begin = Clock::now();
    for (next_look_ = begin + kLookForProcesses; !is_over(begin);) step(begin);
    finish();
  }

 private:
  bool is_over(Clock::time_point begin) const {
    const bool late = request_.duration_s > 0 && Clock::now() - begin >= std::chrono::duration<double>(request_.duration_s);
    return StopSignals::wanted() || file_.reader_gone() || full() || late || tap_.target_ended();
  }

  bool full() const { return request_.count > 0 && packets_ >= request_.count; }

  void step(Clock::time_point begin) {
    Clock::time_point until = next_look_;
    if (request_.duration_s > 0) {
      until = std::min(until, begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(request_.duration_s)));
    }
    std::vector<pollfd> fds = tap_.poll_set();
    fds.push_back(file_.reader_poll());
    signals_.wait(&fds, std::max<Clock::duration>(until - Clock::now(), Clock::duration::zero()));
    if ((fds.back().revents & (POLLERR | POLLHUP)) != 0) file_.set_reader_gone();
    tap_.receive();
    file_.flush(signals_);
    if (Clock::now() < next_look_) return;
    tap_.ask_processes();
    conversations_.expire(now_ns(CLOCK_MONOTONIC));
    next_look_ = Clock::now() + kLookForProcesses;
  }

  void take(const TapMessage& message, std::uint64_t source, const std::string& name) {
    for (const Packet& packet : conversations_.add(message, source, name, now_ns(CLOCK_MONOTONIC))) {
      if (full()) return;
      file_.write(pcapng_packet(packet.time_ns, packet.bytes, packet.comment), signals_);
      if (packet.has_data) ++packets_;
    }
  }

  /// What was sent before the requests were taken back is still read: it belongs to the time that was asked for.
  void finish() {
    tap_.withdraw();
    while (!full() && !file_.reader_gone() && tap_.receive() && ++last_turns_ < kMostLastTurns) {}
    statistics_.end_ns = now_ns(CLOCK_REALTIME);
    statistics_.dropped = tap_.dropped();
    statistics_.received = tap_.records() + statistics_.dropped;
    file_.write(pcapng_statistics(statistics_), signals_);
    file_.flush(signals_);
    if (request_.json) {
      emit(JsonObject().add("packets", packets_).add("connections", conversations_.connections()).add("dropped_records", statistics_.dropped).text() + "\n");
    } else if (statistics_.dropped > 0) {
      complain(fmt::format("{} records came faster than they were written, and are missing; narrow the filter: mpklink dump port N -w FILE", statistics_.dropped));
    }
  }

  static constexpr int kMostLastTurns = 1000;

  const DumpRequest& request_;
  CaptureFile file_;
  StopSignals signals_;
  Conversations conversations_;
  CaptureStatistics statistics_;
  std::uint64_t packets_ = 0;  // with data
  int last_turns_ = 0;
  Clock::time_point next_look_;
  Tap tap_;
};

void run_dump(const DumpRequest& request) {
  const DumpFilter filter = parse_dump_filter(request.filter);
  if (request.file.empty()) throw UsageError("no file to write to; say -w FILE, or: mpklink dump -w - | tshark -r -");
  if (request.json && request.file == "-") throw UsageError("--json and the capture cannot both go to standard output; say -w FILE");
  Dump(request, filter).run();
}

}  // namespace

void add_dump(CLI::App* app) {
  auto request = std::make_shared<DumpRequest>();
  CLI::App* command = app->add_subcommand("dump", "the bytes of streams as a capture (pcapng) for Wireshark and tshark");
  command->add_option("filter", request->filter, "which streams: `port N`, `host ADDRESS`, `pid N`, joined by `and`; none: all")->type_name("FILTER");
  command->add_option("-w,--write", request->file, "the file to write; - is standard output")->type_name("FILE");
  command->add_option("-c,--count", request->count, "end after so many packets with data")->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 62))->type_name("N");
  command->add_option("--duration", request->duration_s, "end after so many seconds")->check(CLI::Range(0.001, 1e9))->type_name("SECONDS");
  add_json_flag(command, &request->json);
  add_examples(command,
               {{"mpklink dump port 6379 -w redis.pcapng", "until Ctrl-C; then: wireshark redis.pcapng"},
                {"mpklink dump port 8080 -w - | tshark -r - -Y http", "live"},
                {"mpklink dump pid 1234 and host ::1 -w - | wireshark -k -i -", ""},
                {"mpklink dump --duration 10 -w all.pcapng", "everything of yours; of everybody as root"}},
               "IP and TCP headers are made up, consistently: what is in shared memory has none. Each connection is there once, as one of its ends saw "
               "it. A process that sends faster than this writes is not slowed down: records are dropped, show as lost segments, and are counted in the "
               "statistics at the end. Processes that start meanwhile are captured, too. Without a dump nothing is copied.");
  command->callback([request] { run_dump(*request); });
}

}  // namespace mpklink
