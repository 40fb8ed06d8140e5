// SPDX-License-Identifier: MIT
// The checks of doctor: each looks at one thing and says how it is.
#pragma once
#include <sys/types.h>

#include <string>

#include "preload/settings.h"
#include "tools/doctor_finding.h"

namespace mpklink {

// ---- this machine, as this process sees it ----

Findings check_machine(const Settings& settings);

struct Explanation {
  std::string sentence;
  std::string remedy;  // empty: there is nothing to be done, or nothing wrong
  std::string reason;  // the slug (preload/reasons.def) that comes of it, if one does
};
/// What "guard_why" of the library means on this machine (shm/pkey.h). Empty for a word that is not known.
Explanation explain_no_guard(const std::string& why);

// ---- this shell: the library, the settings, what else is preloaded ----

/// `library`: find_library()'s answer; empty when there is none.
Findings check_environment(std::string* library);
/// The settings of an environment as its library reads them, and what is wrong with them; `whose` opens the sentences.
Findings check_settings(const std::vector<std::string>& environment, const std::string& section);
Settings settings_of(const std::vector<std::string>& environment);

// ---- a real connection between two programs of ours ----

Findings check_connection(const std::string& library);
/// The ends of it, when this program is started as one: "server", "client:PORT" or "visitor:ADDRESS:PORT". The exit
/// code.
int run_end(const std::string& role);

// ---- something else ----

Findings check_program_file(const std::string& name);
Findings check_process(pid_t pid);
Findings check_endpoint(const std::string& host, const std::string& port);

}  // namespace mpklink
