// SPDX-License-Identifier: MIT
#include "tools/stream_options.h"

#include <fmt/format.h>

#include "preload/reasons.h"
#include "tools/command_support.h"

namespace mpklink {
namespace {

void one_at_a_time(CLI::Option* option) {
  option->allow_extra_args(false)->delimiter(',');
}

std::string reason_problem(const std::string& slug) {
  std::vector<std::string> slugs;
  for (const ReasonText& text : kReasonTexts) slugs.emplace_back(text.slug);
  if (std::find(slugs.begin(), slugs.end(), slug) != slugs.end()) return {};
  const std::string meant = nearest(slug, slugs);
  return fmt::format("there is no reason '{}'; {}", printable(slug), meant.empty() ? "mpklink reasons lists them" : "did you mean " + meant + "?");
}

}  // namespace

void add_pid_option(CLI::App* command, std::vector<int>* pids, const std::string& help) {
  one_at_a_time(command->add_option("--pid", *pids, help)->check(CLI::Range(1, 1 << 22))->type_name("N"));
}

void add_port_option(CLI::App* command, std::vector<int>* ports, const std::string& help) {
  one_at_a_time(command->add_option("--port", *ports, help)->check(CLI::Range(1, 65535))->type_name("N"));
}

void add_stream_filter(CLI::App* command, std::vector<int>* pids, StreamFilter* filter) {
  add_pid_option(command, pids, "only this process");
  add_port_option(command, &filter->ports, "only streams with this port at one end");
  const CLI::Validator is_mode = CLI::IsMember({"guarded", "shared", "tcp"});
  one_at_a_time(command->add_option("--mode", filter->modes, "only streams in this mode: guarded, shared (no guard) or tcp")->check(is_mode)->type_name("MODE"));
  const CLI::Validator is_reason([](std::string& slug) { return reason_problem(slug); }, "");
  one_at_a_time(command->add_option("--reason", filter->reasons, "only streams on TCP for this reason; mpklink reasons lists them")->check(is_reason)->type_name("REASON"));
}

}  // namespace mpklink
