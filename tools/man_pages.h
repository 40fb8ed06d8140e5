// SPDX-License-Identifier: MIT
// Manual pages, as roff: the commands' from the app, the others from the settings table and the list of reasons.
#pragma once

#include <string>
#include <vector>

#include "tools/command_tree.h"

namespace mpklink {

struct ManPage {
  std::string name;  // "mpklink-run"
  int section = 1;
  std::string text;
};
std::vector<ManPage> man_pages(const CommandInfo& tool, const std::string& version);

}  // namespace mpklink
