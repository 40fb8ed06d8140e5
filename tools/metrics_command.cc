// SPDX-License-Identifier: MIT
// `mpklink metrics`: counters of the running processes for Prometheus; once, as a file of node_exporter's, or over HTTP. Services have no
// port of ours: this command looks at them from outside.
#include <CLI/CLI.hpp>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "tools/command_support.h"
#include "tools/commands.h"
#include "tools/metrics_server.h"
#include "tools/metrics_text.h"
#include "tools/stop_signals.h"
#include "tools/stream_view.h"

namespace mpklink {
namespace {

constexpr char kDefaultListen[] = "127.0.0.1:9465";

struct MetricsRequest {
  std::string listen, textfile;
  bool listens = false, json = false;
};

[[noreturn]] void refuse_file(const std::string& path, int error) {
  const char* next = error == ENOSPC || error == EDQUOT ? "make room, or name another file" : "name a file in a folder that is yours to write to";
  throw Refusal(kExitUnavailable, fmt::format("{} cannot be written: {}; {}", printable(path), strerror(error), next));
}

/// Written beside it and put in its place: a reader finds the old one or the new one, whole.
void write_textfile(const std::string& path, const std::string& text) {
  std::string beside = path + ".XXXXXX";
  const int fd = mkostemp(beside.data(), O_CLOEXEC);
  if (fd < 0) refuse_file(path, errno);
  errno = 0;
  const bool written = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  int error = written ? 0 : errno != 0 ? errno : ENOSPC;
  if (fchmod(fd, 0644) != 0 && error == 0) error = errno;  // node_exporter is another user
  if (close(fd) != 0 && error == 0) error = errno;
  if (error == 0 && rename(beside.c_str(), path.c_str()) != 0) error = errno;
  if (error == 0) return;
  unlink(beside.c_str());
  refuse_file(path, error);
}

std::string as_json(const std::vector<ProcessStatus>& processes) {
  std::vector<std::string> items;
  for (const ProcessStatus& process : processes) items.push_back(process_json(process).text());
  return json_array(items) + "\n";
}

void serve(const std::string& listen) {
  StatusReader reader;
  const StopSignals signals;
  MetricsServer server(parse_listen_address(listen), [&reader] { return metrics_text(reader.read()); });
  complain(fmt::format("metrics at http://{}/metrics", server.address()));
  server.serve(signals);
}

void run_metrics(const MetricsRequest& request) {
  if (request.listens && (request.json || !request.textfile.empty())) throw UsageError("--listen goes with neither --textfile nor --json");
  if (request.json && !request.textfile.empty()) throw UsageError("--textfile does not go with --json");
  if (request.listens) return serve(request.listen.empty() ? kDefaultListen : request.listen);
  const std::vector<ProcessStatus> processes = StatusReader().read();
  if (request.json) return emit(as_json(processes));
  if (request.textfile.empty()) return emit(metrics_text(processes));
  write_textfile(request.textfile, metrics_text(processes));
}

}  // namespace

void add_metrics(CLI::App* app) {
  auto request = std::make_shared<MetricsRequest>();
  CLI::App* command = app->add_subcommand("metrics", "counters of the running processes for Prometheus");
  CLI::Option* listen = command->add_option("--listen", request->listen, "serve them over HTTP until ended (127.0.0.1:9465)");
  listen->expected(0, 1)->type_name("[ADDR:]PORT");
  command->add_option("--textfile", request->textfile, "write this file for node_exporter's textfile collector, at once and whole")->type_name("FILE");
  add_json_flag(command, &request->json);
  add_examples(command,
               {{"mpklink metrics", "what is to be scraped, once"},
                {"mpklink metrics --listen", "for Prometheus, at http://127.0.0.1:9465/metrics"},
                {"mpklink metrics --textfile /var/lib/prometheus/node-exporter/mpklink.prom", "from a timer"}},
               "The services are looked at from outside and open no port. Counters of a process end with it.");
  command->callback([request, listen] {
    request->listens = listen->count() > 0;
    run_metrics(*request);
  });
}

}  // namespace mpklink
