// SPDX-License-Identifier: MIT
// `mpklink doctor PROGRAM`: would the library get into it?
#include <fmt/format.h>

#include <cstdlib>

#include "tools/doctor_checks.h"
#include "tools/doctor_proc.h"
#include "tools/preload_env.h"
#include "tools/program_check.h"
#include "tools/refusal.h"
#include "tools/text.h"

namespace mpklink {

Findings check_program_file(const std::string& name) {
  Finding found{"program", "preload", Level::kOk, "", "", {}};
  try {
    const CheckedProgram program = check_program(name);
    found.sentence = fmt::format("The library gets into {}.", program.path);
    found.facts = {{"path", program.path}, {"refused", std::string()}};
    if (!program.warnings.empty()) {
      found.level = Level::kWarn;
      found.sentence = "It can be started with the library, but:";
      for (const std::string& warning : program.warnings) found.sentence += fmt::format(" {}.", warning);
      found.remedy = "Nothing is lost by starting it so: what cannot be accelerated stays on TCP.";
    } else {
      found.remedy = fmt::format("mpklink run -- {}", shell_quote(name));
    }
  } catch (const Refusal& refusal) {
    if (refusal.exit_code == kExitNotFound) throw Refusal(kExitUnavailable, refusal.what());
    // "what is wrong; what to do": the sentences of `run`.
    const std::string text = refusal.what();
    const std::size_t cut = text.rfind("; ");
    found.level = Level::kFail;
    found.sentence = text.substr(0, cut) + ".";
    found.remedy = cut == std::string::npos ? "Start another build of it." : text.substr(cut + 2);
    found.facts = {{"path", name}, {"refused", text}};
  }
  Findings findings = {found};
  if (found.level == Level::kFail) return findings;
  std::string library;
  for (Finding& f : check_environment(&library)) findings.push_back(std::move(f));  // what it would run under
  return findings;
}

}  // namespace mpklink
