// SPDX-License-Identifier: MIT
// `mpklink off` and `mpklink on`: the switch of running processes.
#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "tools/command_support.h"
#include "tools/commands.h"
#include "tools/requests.h"
#include "tools/stream_options.h"

namespace mpklink {
namespace {

struct SwitchRequest {
  std::vector<int> pids, ports;
  bool all = false, json = false;
  double timeout_s = 2;
};

struct Outcome {
  std::size_t processes = 0, on_tcp = 0, shared = 0;
  std::vector<std::string> sleepers;  // processes of those that are still shared
};

void check(const SwitchRequest& request, const char* verb) {
  const bool some = !request.pids.empty() || !request.ports.empty();
  if (!some && !request.all) throw UsageError(fmt::format("nothing was named; say mpklink {} --port N, --pid N or --all", verb));
  if (some && request.all) throw UsageError("--all goes with neither --port nor --pid");
}

/// Pages of another version cannot be written to.
std::vector<OpenPage> pages_to_ask(const SwitchRequest& request) {
  std::vector<OpenPage> pages = StatusReader().open(StatusPage::Access::kRequest, request.pids);
  const auto other = std::stable_partition(pages.begin(), pages.end(), [](const OpenPage& page) { return page.page->same_version(); });
  for (auto page = other; page != pages.end(); ++page) {
    complain(other_version_text({page->process, page->page->version(), {}}));
  }
  pages.erase(other, pages.end());
  if (pages.empty()) {
    throw Refusal(kExitUnavailable, "no running process of yours has the library, so there is nothing to switch; MPKLINK_PORTS is for those that start later");
  }
  return pages;
}

bool concerns(const SwitchRequest& request, const StreamInfo& stream) {
  const auto named = [&](int port) { return std::find(request.ports.begin(), request.ports.end(), port) != request.ports.end(); };
  return request.ports.empty() || named(stream.local.port) || named(stream.peer.port);
}

Outcome look(const SwitchRequest& request, const std::vector<OpenPage>& pages) {
  Outcome outcome;
  outcome.processes = pages.size();
  for (const OpenPage& page : pages) {
    if (access(fmt::format("/proc/{}", page.process.pid).c_str(), F_OK) != 0) continue;  // its end took its streams with it
    std::size_t shared = 0;
    for (const StreamInfo& stream : page.page->streams()) {
      if (!concerns(request, stream)) continue;
      (stream.mode == RowMode::kShared || stream.mode == RowMode::kUpgrading ? shared : outcome.on_tcp) += 1;
    }
    if (shared > 0) outcome.sleepers.push_back(process_text(page.process));
    outcome.shared += shared;
  }
  return outcome;
}

Outcome wait_until_off(const SwitchRequest& request, const std::vector<OpenPage>& pages) {
  constexpr int kPause_us = 20000;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(request.timeout_s);
  for (;;) {
    Outcome outcome = look(request, pages);
    if (outcome.shared == 0 || std::chrono::steady_clock::now() >= deadline) return outcome;
    usleep(kPause_us);
  }
}

std::string counted(std::size_t count, const char* one, const char* many) {
  return fmt::format("{} {}", count, count == 1 ? one : many);
}

std::string off_text(const Outcome& outcome) {
  std::string text = fmt::format("off in {}: {} on TCP", counted(outcome.processes, "process", "processes"), counted(outcome.on_tcp, "stream is", "streams are"));
  if (outcome.shared == 0) return text + "\n";
  std::string sleepers;
  for (const std::string& process : outcome.sleepers) sleepers += (sleepers.empty() ? "" : ", ") + process;
  return text + fmt::format("; {} still in shared memory, as {} asleep: they leave at their next operation\n",
                            counted(outcome.shared, "is", "are"), sleepers + (outcome.sleepers.size() == 1 ? " is" : " are"));
}

void run_off(const SwitchRequest& request) {
  check(request, "off");
  std::vector<OpenPage> pages = pages_to_ask(request);
  for (OpenPage& page : pages) ask_off(&page, request.ports);
  const Outcome outcome = wait_until_off(request, pages);
  if (request.json) {
    emit(JsonObject().add("processes", outcome.processes).add("streams_on_tcp", outcome.on_tcp).add("streams_shared", outcome.shared).text() + "\n");
  } else {
    emit(off_text(outcome));
  }
  if (outcome.shared != 0) throw CLI::RuntimeError(kExitDegraded);
}

void run_on(const SwitchRequest& request) {
  check(request, "on");
  std::vector<OpenPage> pages = pages_to_ask(request);
  for (OpenPage& page : pages) ask_on(&page, request.ports);
  if (request.json) return emit(JsonObject().add("processes", pages.size()).text() + "\n");
  emit(fmt::format("on in {}: new connections are upgraded again\n", counted(pages.size(), "process", "processes")));
}

CLI::App* add_switch(CLI::App* app, const char* name, const char* description, const std::shared_ptr<SwitchRequest>& request) {
  CLI::App* command = app->add_subcommand(name, description);
  add_port_option(command, &request->ports, "streams with this port at one end, in all processes or those of --pid");
  add_pid_option(command, &request->pids, "streams of this process");
  command->add_flag("--all", request->all, "all streams of all processes");
  add_json_flag(command, &request->json);
  return command;
}

}  // namespace

void add_off(CLI::App* app) {
  auto request = std::make_shared<SwitchRequest>();
  CLI::App* command = add_switch(app, "off", "send streams of running processes back to TCP, and keep new ones there", request);
  command->add_option("--timeout", request->timeout_s, "seconds to wait until the streams are on TCP (2)")->check(CLI::Range(0.0, 3600.0))->type_name("SECONDS");
  add_examples(command,
               {{"mpklink off --port 8080", "see the traffic of a service in tcpdump"},
                {"mpklink off --pid 1234", "one process"},
                {"mpklink off --all", "everything of yours; of everybody as root"}},
               "Nothing is lost: the streams go on over TCP. It is for processes that run now; those that start later are told by MPKLINK_PORTS or by "
               "rules. A process that sleeps goes back at its next operation; if there are such the exit code is 1. mpklink on takes it back.");
  command->callback([request] { run_off(*request); });
}

void add_on(CLI::App* app) {
  auto request = std::make_shared<SwitchRequest>();
  CLI::App* command = add_switch(app, "on", "take mpklink off back", request);
  add_examples(command, {{"mpklink on --port 8080", ""}, {"mpklink on --all", ""}},
               "New connections are upgraded as before. Those that went back to TCP, or were made meanwhile, stay there.");
  command->callback([request] { run_on(*request); });
}

}  // namespace mpklink
