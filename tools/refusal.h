// SPDX-License-Identifier: MIT
// How a command ends that does not do what it was asked for.
#pragma once

#include <stdexcept>
#include <string>

namespace mpklink {

// Exit codes, the same for every command; `run` ends with the program's own, or 126 and 127 as a shell.
constexpr int kExitDegraded = 1;     // it worked, and the answer is not "all well" (doctor), or "no" (rules test)
constexpr int kExitUsage = 2;        // unknown option, impossible value
constexpr int kExitUnavailable = 3;  // no permission, no such process, disk full, not that kernel

/// Why: an exit code and one sentence, without a final stop, whose end says what to type or change next ("...; see mpklink ss --help").
class Refusal : public std::runtime_error {
 public:
  Refusal(int code, const std::string& sentence) : std::runtime_error(sentence), exit_code(code) {}
  const int exit_code;
};

/// Wrong use of a command, found after its options were parsed. "Try 'mpklink COMMAND --help'." is said below it.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace mpklink
