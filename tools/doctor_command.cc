// SPDX-License-Identifier: MIT
// `mpklink doctor [PID | HOST:PORT | program]`: what is it about, and the answer.
#include <CLI/CLI.hpp>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <string>

#include "tools/command_support.h"
#include "tools/commands.h"
#include "tools/doctor_checks.h"

namespace mpklink {
namespace {

struct Request {
  std::string about;
  std::string end;  // this process is an end of a test connection
  bool json = false;
};

bool is_number(const std::string& text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
}

/// "host:port" or "[address]:port". False: it is something else.
bool split_endpoint(const std::string& text, std::string* host, std::string* port) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos || text.find('/') != std::string::npos) return false;
  *host = text.substr(0, colon);
  *port = text.substr(colon + 1);
  if (host->size() > 1 && host->front() == '[' && host->back() == ']') {
    *host = host->substr(1, host->size() - 2);
  } else if (host->find(':') != std::string::npos) {
    throw UsageError(fmt::format("an IPv6 address goes in brackets: [{}]:{}", *host, *port));
  }
  if (host->empty()) throw UsageError(fmt::format("{} names no host; say localhost{}", text, text));
  if (!is_number(*port) || port->size() > 5 || atoi(port->c_str()) == 0 || atoi(port->c_str()) > 65535) {
    throw UsageError(fmt::format("'{}' is no port; it is a number from 1 to 65535", *port));
  }
  return true;
}

pid_t parse_pid(const std::string& text) {
  constexpr long kMost = 4194304;  // PID_MAX_LIMIT, include/linux/threads.h
  const long pid = text.size() > 9 ? 0 : atol(text.c_str());
  if (pid < 1 || pid > kMost)
    throw UsageError(fmt::format("{} is no process id; it is a number from 1 to {}", text, kMost));
  return static_cast<pid_t>(pid);
}

Findings check_here() {
  std::vector<std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.emplace_back(*entry);
  Findings all = check_machine(settings_of(environment));
  std::string library;
  for (Finding& f : check_environment(&library)) all.push_back(std::move(f));
  if (library.empty()) return all;
  for (Finding& f : check_connection(library)) all.push_back(std::move(f));
  return all;
}

/// Whoever started us may have left signals and descriptors in a state in which children cannot be waited for or talked
/// to.
void settle() {
  signal(SIGCHLD, SIG_DFL);
  for (const int fd : {STDIN_FILENO, STDERR_FILENO}) {
    if (fcntl(fd, F_GETFD) < 0) (void)!open("/dev/null", O_RDWR);
  }
}

void examine(const Request& request) {
  std::string host, port;
  Target target;
  Findings findings;
  if (request.about.empty()) {
    target = {"machine", ""};
    findings = check_here();
  } else if (is_number(request.about)) {
    target = {"process", request.about};
    findings = check_process(parse_pid(request.about));
  } else if (split_endpoint(request.about, &host, &port)) {
    target = {"listener", request.about};
    findings = check_endpoint(host, port);
  } else {
    target = {"program", request.about};
    findings = check_program_file(request.about);
  }
  emit(request.json ? to_json(target, findings) : to_text(target, findings));
  if (worst(findings) >= Level::kWarn) throw CLI::RuntimeError(kExitDegraded);
}

}  // namespace

void add_doctor(CLI::App* app) {
  const auto request = std::make_shared<Request>();
  CLI::App* doctor =
      app->add_subcommand("doctor", "say whether connections are accelerated here, and if not, why and what to do");
  const CLI::Option* about =
      doctor
          ->add_option(
              "about", request->about,
              "a process id, HOST:PORT of a service on this machine, or a program; without it, this machine and shell")
          ->type_name("[PID | HOST:PORT | PROGRAM]");
  doctor->add_option("--end", request->end)->group("");  // hidden: how doctor starts itself
  add_json_flag(doctor, &request->json);
  add_examples(doctor,
               {{"mpklink doctor", "this machine, this shell, and a real connection"},
                {"mpklink doctor nginx", "can it be started with the library?"},
                {"mpklink doctor $(pgrep -o redis-server)", "a running process and its connections"},
                {"mpklink doctor localhost:6379", "whoever listens there"},
                {"mpklink doctor --json | jq -r .verdict", ""}},
               "Exit codes: 0 all well, 1 something is worse than it could be, 2 wrong use, 3 it cannot be looked at. "
               "The reasons "
               "are listed by 'mpklink reasons'.");
  doctor->callback([request, about] {
    if (!request->end.empty()) throw CLI::RuntimeError(run_end(request->end));
    if (about->count() > 0 && request->about.empty())
      throw UsageError("the argument is empty; name a process id, HOST:PORT or a program");
    settle();
    examine(*request);
  });
}

}  // namespace mpklink
