// SPDX-License-Identifier: MIT
// Will LD_PRELOAD reach this program? Asked before it runs, so that the answer is a sentence and not a silent TCP
// connection.
#pragma once

#include <string>
#include <vector>

#include "tools/refusal.h"

namespace mpklink {

// As env(1) and nohup(1) have it.
constexpr int kExitCannotWrap = 126;
constexpr int kExitNotFound = 127;

struct CheckedProgram {
  std::string path;                   // what to give to execv(): always has a slash
  std::vector<std::string> warnings;  // it runs, but perhaps not as hoped
};

/// Finds `name` as execvp(3) would, follows #! lines, and throws Refusal unless the dynamic loader that runs in the end
/// is glibc's and would honour LD_PRELOAD for this caller.
CheckedProgram check_program(const std::string& name);

}  // namespace mpklink
