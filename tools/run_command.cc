// SPDX-License-Identifier: MIT
// `mpklink run [options] -- program args...`: checks that the program can be preloaded, sets the environment, and becomes it.
// `mpklink env` prints the same environment.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "tools/command_support.h"
#include "tools/commands.h"
#include "tools/environment.h"
#include "tools/preload_env.h"
#include "tools/program_check.h"
#include "tools/run_program.h"
#include "tools/run_report.h"
#include "tools/settings_table.h"

namespace mpklink {
namespace {

// ---- the options of both ----

/// The program may change its directory before it ends, hence the full path.
std::string value_of_option(const Setting& setting, const std::string& given) {
  return strcmp(setting.key, "stats") == 0 ? absolute_path(given) : given;
}

void add_setting(CLI::App* command, const Setting& setting, Choices* choices) {
  const auto take = [&setting, choices](const std::string& given) { choices->options[setting.key] = value_of_option(setting, given); };
  const auto check = [&setting](std::string& given) {
    // Names of profiles are the configuration file's, too: looked up later.
    const bool later = strcmp(setting.key, "profile") == 0 && !given.empty();
    return later ? std::string() : value_problem(setting, value_of_option(setting, given));
  };
  command->add_option_function<std::string>(option_of(setting), take, setting.help)
      ->check(CLI::Validator(check, ""))
      ->type_name(setting.values);
}

void add_settings(CLI::App* command, Choices* choices) {
  for (const Setting& setting : kSettings) add_setting(command, setting, choices);
  const auto check_library = [](std::string& value) { return library_problem(absolute_path(value)); };
  command->add_option("--library", choices->library, "libmpklink.so to preload, when it should not be searched for")
      ->check(CLI::Validator(check_library, ""))
      ->type_name("FILE");
  command->add_option("--config", choices->config, "configuration file, mpklink.toml(5); /dev/null: none")->type_name("FILE");
}

constexpr char kPrecedence[] =
    "Each option sets the variable of the same name (--spin-us: MPKLINK_SPIN_US). An option wins over a variable that is set already, that\n"
    "over the configuration file (--config, $MPKLINK_CONFIG, ~/.config/mpklink/config.toml, /etc/mpklink/config.toml).";

// ---- run ----

struct RunRequest {
  Choices choices;
  bool dry_run = false, report = false, json = false;
  std::vector<std::string> command;
};

/// What the environment has stays as it is.
std::vector<Assignment> assignments(const RunRequest& request) {
  const char* current = getenv("LD_PRELOAD");
  std::vector<Assignment> result = {preload_assignment(request.choices, current != nullptr ? current : "")};
  for (const Assignment& a : effective_settings(request.choices, load_config(request.choices.config))) {
    if (a.source != kFromEnvironment) result.push_back(a);
  }
  return result;
}

std::string json_of(const std::vector<Assignment>& environment) {
  std::string text;
  for (const Assignment& a : environment) text += (text.empty() ? "" : ",") + json_string(a.name) + ":" + json_string(a.value);
  return "{" + text + "}";
}

void print_dry_run(const RunRequest& request, const std::vector<Assignment>& environment) {
  std::string text, words;
  for (const std::string& word : request.command) {
    words += (words.empty() ? "" : request.json ? "," : " ") + (request.json ? json_string(word) : shell_quote(word));
  }
  if (request.json) return emit("{\"environment\":" + json_of(environment) + ",\"command\":[" + words + "]}\n");
  for (const Assignment& a : environment) text += a.name + "=" + shell_quote(a.value) + "\n";
  emit(text + words + "\n");
}

std::string* value_in(std::vector<Assignment>* environment, const std::string& name) {
  for (Assignment& a : *environment) {
    if (a.name == name) return &a.value;
  }
  return nullptr;
}

/// Not when the program's own stderr is to stay as it is.
bool warnings_wanted(std::vector<Assignment> environment) {
  const std::string* set = value_in(&environment, "MPKLINK_LOG");
  const char* level = set != nullptr ? set->c_str() : getenv("MPKLINK_LOG");
  return level == nullptr || strcmp(level, "off") != 0;
}

void set_environment(const std::vector<Assignment>& environment) {
  for (const Assignment& a : environment) setenv(a.name.c_str(), a.value.c_str(), 1);
}

[[noreturn]] void run_with_report(const RunRequest& request, const std::string& path, std::vector<Assignment> environment) {
  const std::string* set = value_in(&environment, "MPKLINK_STATS");
  const char* before = getenv("MPKLINK_STATS");
  int code = 0;
  {
    const StatsFile stats(set != nullptr ? *set : before != nullptr ? before : "");
    environment.push_back({"MPKLINK_STATS", stats.path(), "option"});
    set_environment(environment);
    code = run_as_parent(path, request.command);
    fputs(report_of(stats.lines(), request.json).c_str(), stderr);
  }
  throw CLI::RuntimeError(code);
}

void run_program(const RunRequest& request) {
  if (request.command.empty()) throw UsageError("no program to run; say mpklink run [options] -- program args...");
  if (request.json && !request.dry_run && !request.report) throw UsageError("--json needs --dry-run or --report: run itself prints nothing");
  const CheckedProgram program = check_program(request.command.front());
  const std::vector<Assignment> environment = assignments(request);
  if (warnings_wanted(environment)) {
    for (const std::string& warning : program.warnings) complain("warning: " + warning);
  }
  if (request.dry_run) return print_dry_run(request, environment);
  if (request.report) run_with_report(request, program.path, environment);
  set_environment(environment);
  become(program.path, request.command);
}

// ---- env ----

struct EnvRequest {
  Choices choices;
  std::string format = "sh";
  bool json = false;
};

/// systemd.syntax(7): quotes, and % is a specifier's.
std::string systemd_line(const Assignment& a) {
  std::string text;
  for (const char c : a.name + "=" + a.value) {
    if (c == '"' || c == '\\') text += '\\';
    text += c;
    if (c == '%') text += c;
  }
  return "Environment=\"" + text + "\"\n";
}

void print_env(const EnvRequest& request) {
  const std::string format = request.json ? "json" : request.format;
  // A unit or a container does not have what this shell has preloaded.
  const char* current = format == "sh" ? getenv("LD_PRELOAD") : nullptr;
  std::vector<Assignment> environment = effective_settings(request.choices, load_config(request.choices.config));
  environment.insert(environment.begin(), preload_assignment(request.choices, current != nullptr ? current : ""));
  if (format == "json") return emit(json_of(environment) + "\n");
  std::string text;
  for (const Assignment& a : environment) {
    if (format != "sh" && a.value.find('\n') != std::string::npos) {
      throw Refusal(kExitUsage, a.name + " has a line break, which a file of this format cannot say; use --format json");
    }
    if (format == "sh") text += "export " + a.name + "=" + shell_quote(a.value) + "\n";
    if (format == "systemd") text += systemd_line(a);
    if (format == "docker") text += a.name + "=" + a.value + "\n";
  }
  emit(text);
}

}  // namespace

void add_run(CLI::App* app) {
  const auto request = std::make_shared<RunRequest>();
  CLI::App* run = app->add_subcommand("run", "run a program with libmpklink preloaded");
  run->prefix_command();
  add_settings(run, &request->choices);
  run->add_flag("--report", request->report,
                "when it has ended, say on stderr what was accelerated and why the rest was not (mpklink stays as its parent)");
  run->add_flag("--dry-run", request->dry_run, "print what would be set and run, and stop");
  add_json_flag(run, &request->json);
  add_examples(run,
               {{"mpklink run -- nginx", ""},
                {"mpklink run --report -- wrk -c64 http://127.0.0.1/", "and what came of it"},
                {"mpklink run --profile latency --stats s.json -- redis-server", ""},
                {"mpklink run --rules 'ignore,port=5432' -- ./service", "all but the database"},
                {"mpklink run --dry-run redis-server", "what would be set"}},
               kPrecedence);
  run->callback([run, request] {
    request->command = program_words(run);
    run_program(*request);
  });
}

void add_env(CLI::App* app) {
  const auto request = std::make_shared<EnvRequest>();
  CLI::App* env = app->add_subcommand("env", "print what run sets, for a shell, a unit file or a container");
  add_settings(env, &request->choices);
  env->add_option("--format", request->format, "sh: export lines, systemd: Environment= lines, docker: for --env-file, json")
      ->check(CLI::IsMember({"sh", "systemd", "docker", "json"}, CLI::ignore_case))
      ->type_name("sh|systemd|docker|json");
  add_json_flag(env, &request->json);
  add_examples(env,
               {{"eval \"$(mpklink env)\"", "for all that this shell starts"},
                {"(echo [Service]; mpklink env --format systemd) > mpklink.conf", "a drop-in for a unit"},
                {"mpklink env --format docker > mpklink.env", "docker run --env-file mpklink.env"}},
               kPrecedence);
  env->callback([request] { print_env(*request); });
}

}  // namespace mpklink
