// SPDX-License-Identifier: MIT
#include "tools/command_tree.h"

#include <CLI/CLI.hpp>

namespace mpklink {
namespace {

/// What was said by type_name(), without what validators add: "a|b:{a,b}", "NUMBER:INT in [0 - 9]".
std::string placeholder_of(const std::string& type) {
  const std::size_t range = type.find(" in [");
  return type.substr(0, range != std::string::npos ? type.rfind(':', range) : type.find(":{"));
}

OptionInfo describe_option(const CLI::Option& option) {
  OptionInfo info;
  info.positional = !option.nonpositional();
  if (info.positional) {
    info.names = {option.get_name(true)};
  } else {
    for (const std::string& name : option.get_snames()) info.names.push_back("-" + name);
    for (const std::string& name : option.get_lnames()) info.names.push_back("--" + name);
  }
  if (option.get_items_expected_max() > 0) info.placeholder = placeholder_of(option.get_type_name());
  info.help = option.get_description();
  return info;
}

CommandInfo describe_below(const CLI::App& app, const std::string& above) {
  CommandInfo info;
  info.name = app.get_name();
  info.path = above.empty() ? info.name : above + " " + info.name;
  info.summary = app.get_description();
  info.footer = app.get_footer();
  info.runs_program = app.get_prefix_command();
  for (const CLI::Option* option : app.get_options({})) info.options.push_back(describe_option(*option));
  for (const CLI::App* command : app.get_subcommands({})) info.commands.push_back(describe_below(*command, info.path));
  return info;
}

}  // namespace

CommandInfo describe(const CLI::App& app) {
  return describe_below(app, "");
}

}  // namespace mpklink
