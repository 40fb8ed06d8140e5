// SPDX-License-Identifier: MIT
// `mpklink run [options] -- program args...`: checks that the program can be preloaded, sets the environment, and
// becomes it.
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "preload/settings.h"
#include "tools/command_support.h"
#include "tools/commands.h"
#include "tools/preload_env.h"
#include "tools/program_check.h"

namespace mpklink {
namespace {

/// One setting of the library: an option here, a variable there.
struct Setting {
  const char* option;
  const char* variable;
  const char* help;
};

constexpr Setting kSettings[] = {
    {"--guard", "MPKLINK_GUARD", "protection of the shared memory: auto, pkey, mprotect, off or require"},
    {"--backing", "MPKLINK_BACKING", "what shared memory is made of: memfd, or secret (memfd_secret: closed to the kernel's own ways, too)"},
    {"--fault-report", "MPKLINK_FAULT_REPORT", "report the first touch of guarded memory on stderr: 0 or 1"},
    {"--warmup", "MPKLINK_WARMUP", "operations on a connection before it may move to shared memory"},
    {"--spin-us", "MPKLINK_SPIN_US", "longest busy wait: auto, or a number of microseconds"},
    {"--ring-kib", "MPKLINK_RING_KIB", "largest ring, per direction of a connection, in KiB"},
    {"--peers", "MPKLINK_PEERS", "whom to share memory with: verified, same-uid, any, or user numbers (0,33)"},
    {"--ports", "MPKLINK_PORTS", "only these ports (80,8000-8999), or all but these (!22)"},
    {"--profile", "MPKLINK_PROFILE", "preset of the other settings: safe, balanced or latency"},
    {"--log", "MPKLINK_LOG", "what to report on stderr: off, error, warn, info or debug"},
    {"--stats", "MPKLINK_STATS", "file to which each process appends its counters when it ends"},
};

struct RunRequest {
  std::string values[std::size(kSettings)];  // empty: not given
  std::string library;
  bool dry_run = false;
  std::vector<std::string> command;
};

// ---- what values may be ----

std::string absolute(const std::string& path) {
  if (path.empty() || path[0] == '/') return path;
  char cwd[PATH_MAX];
  return getcwd(cwd, sizeof cwd) != nullptr ? fmt::format("{}/{}", cwd, path) : path;
}

/// Asks the library's own parser about one value: what it expected instead, or an empty string. A typo in the
/// environment must not take a service down, so the library goes on with its default; here a person is waiting for an
/// answer.
std::string expected_instead(const char* variable, const std::string& value) {
  static const char* asked_variable;
  static const char* asked_value;
  static std::string expected;
  asked_variable = variable;
  asked_value = value.c_str();
  expected.clear();
  parse_settings(
      [](const char* name) -> const char* { return strcmp(name, asked_variable) == 0 ? asked_value : nullptr; },
      [](const char*, const char*, const char* what) { expected = what; });
  return expected;
}

bool is_stats(const Setting& setting) {
  return strcmp(setting.option, "--stats") == 0;
}

/// The variable's value for an option's. The program may change its directory before it ends, hence the full path.
std::string variable_value(const Setting& setting, const std::string& given) {
  return is_stats(setting) ? absolute(given) : given;
}

std::string stats_problem(const std::string& path) {
  struct stat st;
  if (stat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode)) return "it is a directory";
  const std::string dir = path.substr(0, path.rfind('/') + 1);
  return access(dir.c_str(), X_OK) == 0 ? std::string() : fmt::format("{} is not there or not accessible", dir);
}

/// What is wrong with an option's value; empty if nothing is.
std::string value_problem(const Setting& setting, const std::string& given) {
  if (given.empty()) return "it needs a value";
  const std::string value = variable_value(setting, given);
  const std::string expected = expected_instead(setting.variable, value);
  if (!expected.empty()) return fmt::format("expected {}, not '{}'", expected, given);
  const std::string problem = is_stats(setting) ? stats_problem(value) : std::string();
  return problem.empty() ? problem : fmt::format("'{}' cannot be written: {}", given, problem);
}

// ---- the command line ----

void add_options(CLI::App* run, RunRequest* request) {
  for (size_t i = 0; i < std::size(kSettings); ++i) {
    const Setting& setting = kSettings[i];
    auto check = [&setting](std::string& value) { return value_problem(setting, value); };
    run->add_option(setting.option, request->values[i], setting.help)
        ->check(CLI::Validator(check, ""))
        ->type_name("VALUE");
  }
  auto check_library = [](std::string& value) { return library_problem(absolute(value)); };
  run->add_option("--library", request->library, "libmpklink.so to preload, when it should not be searched for")
      ->check(CLI::Validator(check_library, ""))
      ->type_name("PATH");
  run->add_flag("--dry-run", request->dry_run, "print what would be set and run, and stop");
}

// ---- running ----

struct Assignment {
  std::string name;
  std::string value;
};

/// An option wins over the environment; without it what the user has set there stays.
std::vector<Assignment> assignments(const RunRequest& request) {
  const std::string library = request.library.empty() ? find_library() : absolute(request.library);
  const char* current = getenv("LD_PRELOAD");
  std::vector<Assignment> result = {
      {"LD_PRELOAD", append_preload(current != nullptr ? current : "", library)}};
  for (size_t i = 0; i < std::size(kSettings); ++i) {
    const std::string& given = request.values[i];
    if (!given.empty()) result.push_back({kSettings[i].variable, variable_value(kSettings[i], given)});
  }
  return result;
}

std::string join(const std::vector<std::string>& words, const char* separator) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : separator) + word;
  return text;
}

void print_dry_run(const std::vector<Assignment>& environment, const std::vector<std::string>& command) {
  std::string text;
  for (const Assignment& a : environment) text += fmt::format("{}={}\n", a.name, shell_quote(a.value));
  std::vector<std::string> words;
  std::transform(command.begin(), command.end(), std::back_inserter(words), shell_quote);
  emit(text + join(words, " ") + "\n");
}

/// Not when the program's own stderr is to stay as it is.
bool warnings_wanted(const std::vector<Assignment>& environment) {
  for (const Assignment& a : environment) {
    if (a.name == "MPKLINK_LOG") return a.value != "off";
  }
  const char* level = getenv("MPKLINK_LOG");
  return level == nullptr || strcmp(level, "off") != 0;
}

/// Becomes the program: its process id, its descriptors, its signals. Returns only if the kernel refuses.
[[noreturn]] void become(const std::string& path, const std::vector<std::string>& command) {
  std::vector<char*> argv;
  argv.reserve(command.size() + 1);
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  execvp(path.c_str(),
         argv.data());  // the path has a slash, so this searches nothing; it falls back to /bin/sh where execv does not
  int code = errno == ENOENT ? kExitNotFound : kExitCannotWrap;
  throw Refusal(code, fmt::format("{} cannot be executed: {}", path, strerror(errno)));
}

void run_program(const RunRequest& request) {
  if (request.command.empty()) throw UsageError("no program to run; say mpklink run [options] -- program args...");
  CheckedProgram program = check_program(request.command.front());
  std::vector<Assignment> environment = assignments(request);
  if (warnings_wanted(environment)) {
    for (const std::string& warning : program.warnings) complain("warning: " + warning);
  }
  if (request.dry_run) return print_dry_run(environment, request.command);
  for (const Assignment& a : environment) setenv(a.name.c_str(), a.value.c_str(), 1);
  become(program.path, request.command);
}

}  // namespace

void add_run(CLI::App* app) {
  const auto request = std::make_shared<RunRequest>();
  CLI::App* run = app->add_subcommand("run", "run a program with libmpklink preloaded: mpklink run [options] -- program args...");
  run->prefix_command();
  add_options(run, request.get());
  add_examples(run,
               {{"mpklink run -- nginx", ""},
                {"mpklink run --profile latency --stats /tmp/s.json -- wrk -c64 http://127.0.0.1/", ""},
                {"mpklink run --dry-run redis-server", "what would be set"}},
               "Each option sets the variable of the same name (--spin-us: MPKLINK_SPIN_US); without it, the variable stays as it is.");
  run->callback([run, request] {
    request->command = program_words(run);
    run_program(*request);
  });
}

}  // namespace mpklink
