// SPDX-License-Identifier: MIT
// What doctor has to say: one thing that was looked at, how it is, and what to type when it is not well.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace mpklink {

enum class Level {
  kOk,
  kNote,  // worth knowing; changes nothing for the verdict
  kWarn,  // it works, with less than there could be
  kFail,  // connections stay on TCP because of it
};

using Fact = std::variant<std::string, std::int64_t, bool>;
using Facts = std::vector<std::pair<std::string, Fact>>;

struct Finding {
  std::string section;  // "machine", "environment", "connection", "program", "process", "listener", "streams"
  std::string name;     // within the section; what scripts look for
  Level level;
  std::string sentence;  // one or two, with full stops
  std::string remedy;    // what to type or do next; never empty for kWarn and kFail
  Facts facts;           // for scripts: every finding of a name has the same ones
};
using Findings = std::vector<Finding>;

/// What was looked at: `kind` is "machine", "process", "listener" or "program".
struct Target {
  std::string kind;
  std::string name;
};

/// "ok", "note", "warn", "fail".
const char* level_name(Level level);

/// The worst of all, kOk for none.
Level worst(const Findings& findings);

std::string to_text(const Target& target, const Findings& findings);
std::string to_json(const Target& target, const Findings& findings);

}  // namespace mpklink
