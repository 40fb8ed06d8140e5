// SPDX-License-Identifier: MIT
// Completions of shells, from the commands as data. What an option's placeholder says is offered: a|b|c, FILE; nothing for others.
#pragma once

#include <string>

#include "tools/command_tree.h"

namespace mpklink {

std::string bash_completion(const CommandInfo& tool);
std::string zsh_completion(const CommandInfo& tool);
std::string fish_completion(const CommandInfo& tool);

}  // namespace mpklink
