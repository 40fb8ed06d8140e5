// SPDX-License-Identifier: MIT
// `mpklink bench`: becomes scripts/bench.sh, of the source tree that this was built in, or of an installation that has it.
#include <CLI/CLI.hpp>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tools/command_support.h"
#include "tools/commands.h"
#include "tools/preload_env.h"

namespace mpklink {
namespace {

struct Request {
  bool quick = false, list = false, no_install = false;
  std::string out;
  std::vector<std::string> suites;
};

std::string find_script() {
  const std::string here = own_directory();
  for (const char* beside : {"/../../scripts/bench.sh", "/../scripts/bench.sh", "/../share/mpklink/scripts/bench.sh"}) {
    const std::string path = here + beside;
    if (!here.empty() && access(path.c_str(), X_OK) == 0) return path;
  }
  throw Refusal(kExitUnavailable,
                "the suite of measurements, scripts/bench.sh, is not there: it comes with the source tree; run build/tools/mpklink bench in one");
}

void become_bench(const Request& request) {
  std::vector<std::string> words = {find_script()};
  if (request.quick) words.emplace_back("--quick");
  if (request.list) words.emplace_back("--list");
  if (request.no_install) words.emplace_back("--no-install");
  if (!request.out.empty()) words.insert(words.end(), {"--out", request.out});
  words.insert(words.end(), request.suites.begin(), request.suites.end());
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  execv(argv[0], argv.data());
  throw Refusal(kExitUnavailable, words[0] + " cannot be executed: " + strerror(errno) + "; try bash " + words[0]);
}

}  // namespace

void add_bench(CLI::App* app) {
  const auto request = std::make_shared<Request>();
  CLI::App* bench = app->add_subcommand("bench", "measure against TCP on this machine: nginx, redis, ping-pong, streams, RPC");
  bench->add_flag("--quick", request->quick, "short runs, fewer cells");
  bench->add_flag("--list", request->list, "list what would be measured, and stop");
  bench->add_flag("--no-install", request->no_install, "do not install missing packages");
  bench->add_option("--out", request->out, "where results.json, results.md and plots go")->type_name("DIR");
  bench->add_option("suite", request->suites, "only these suites")->type_name("SUITE");
  add_examples(bench, {{"mpklink bench --list", ""}, {"mpklink bench --quick --out /tmp/bench", ""}, {"mpklink bench nginx redis", ""}},
               "It installs what it needs, builds, and takes minutes to hours; results.md is for people, results.json for programs.");
  bench->callback([request] { become_bench(*request); });
}

}  // namespace mpklink
