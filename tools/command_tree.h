// SPDX-License-Identifier: MIT
// The commands as plain data, read from the app itself: what manual pages and completions are made from.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace mpklink {

struct OptionInfo {
  std::vector<std::string> names;  // "--json"; of an argument: its name
  std::string placeholder;         // "" for a flag
  std::string help;
  bool positional = false;
};

struct CommandInfo {
  std::string name;
  std::string path;  // "mpklink rules check"
  std::string summary;
  std::string footer;  // notes, then "Examples:" and lines with two spaces in front
  std::vector<OptionInfo> options;
  std::vector<CommandInfo> commands;
  bool runs_program = false;
};

CommandInfo describe(const CLI::App& app);

}  // namespace mpklink
