// SPDX-License-Identifier: MIT
#pragma once

#include <stdexcept>
#include <string>

namespace mpklink {

/// Why a command does not do what it was asked for: an exit code (commands.h) and one sentence, without a final stop, whose end says
/// what to type or change next ("...; see mpklink ss --help").
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
