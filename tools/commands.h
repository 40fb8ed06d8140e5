// SPDX-License-Identifier: MIT
// The commands of `mpklink`: each is a file of its own that adds its subcommand to the app. Its callback does the work; what cannot be done
// is thrown as a Refusal (exit code, sentence with what to type next), a result that is not "all well" as CLI::RuntimeError(kExitDegraded).
#pragma once
#include "tools/refusal.h"

namespace CLI {
class App;  // <CLI/CLI.hpp> takes the compiler long: for files that add options
}

namespace mpklink {

void add_run(CLI::App* app);
void add_env(CLI::App* app);
void add_doctor(CLI::App* app);
void add_ss(CLI::App* app);
void add_top(CLI::App* app);
void add_dump(CLI::App* app);
void add_off(CLI::App* app);
void add_on(CLI::App* app);
void add_metrics(CLI::App* app);
void add_bench(CLI::App* app);
void add_rules(CLI::App* app);
void add_reasons(CLI::App* app);     // the list of reasons, as text, JSON and man page
void add_completion(CLI::App* app);  // bash, zsh, fish: generated from the app itself
void add_man(CLI::App* app);         // man pages: generated from the app itself

}  // namespace mpklink
