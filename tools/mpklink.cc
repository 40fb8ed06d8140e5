// SPDX-License-Identifier: MIT
// `mpklink COMMAND ...`: the table of commands, and what is the same for all of them: help, wrong use, refusals, exit codes.
#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tools/command_support.h"
#include "tools/commands.h"

namespace {

using namespace mpklink;

using AddCommand = void (*)(CLI::App* app);

// In the order of `mpklink --help`. One line for each command.
constexpr AddCommand kCommands[] = {
    add_run,
    add_env,
    add_doctor,
    add_ss,
    add_top,
    add_dump,
    add_off,
    add_on,
    add_metrics,
    add_bench,
    add_rules,
    add_reasons,
    add_man,
    add_completion,
};

bool is_option(const std::string& word) {
  return word.size() > 1 && word[0] == '-';
}

std::vector<std::string> names_of_commands(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
  return names;
}

/// The words before the first `--`, where the command is one that runs a program; all words otherwise.
std::vector<std::string> split_at_mark(const CLI::App& app, const std::vector<std::string>& words) {
  const auto name = std::find_if_not(words.begin(), words.end(), is_option);
  const auto runs_programs = [&](const CLI::App* command) { return command->get_prefix_command() && *name == command->get_name(); };
  const std::vector<const CLI::App*> commands = app.get_subcommands({});
  if (name == words.end() || std::none_of(commands.begin(), commands.end(), runs_programs)) return words;
  const auto mark = std::find(words.begin(), words.end(), "--");
  if (mark != words.end()) after_mark() = {true, {mark + 1, words.end()}};
  return {words.begin(), mark};
}

/// The innermost command that was parsed: whose --help is to be read.
const CLI::App* current_command(const CLI::App* app) {
  const std::vector<CLI::App*> parsed = app->get_subcommands();
  return parsed.empty() ? app : current_command(parsed.back());
}

std::string full_name(const CLI::App* command) {
  const CLI::App* parent = command->get_parent();
  return parent == nullptr ? command->get_name() : full_name(parent) + " " + command->get_name();
}

int usage_error(const CLI::App& app, const std::string& sentence) {
  complain(fmt::format("{}\nTry '{} --help'.", sentence, full_name(current_command(&app))));
  return kExitUsage;
}

/// CLI11 says "The following argument was not expected"; here is what was meant.
std::string unexpected(const CLI::App& app, const std::string& otherwise) {
  const CLI::App* command = current_command(&app);
  const std::vector<std::string> extras = app.remaining(true);
  if (extras.empty()) return otherwise;
  const std::string& word = extras.front();
  std::vector<std::string> known = names_of_commands(*command);
  std::string kind = known.empty() ? "argument" : "command";
  if (is_option(word)) {
    kind = "option";
    known.clear();
    for (const CLI::Option* option : command->get_options({})) {
      for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
    }
  }
  const std::string meant = nearest(word.substr(0, word.find('=')), known);
  return fmt::format("unknown {} {}{}", kind, printable(word), meant.empty() ? "" : fmt::format("; did you mean {}?", meant));
}

int parse_and_run(CLI::App* app, const std::vector<std::string>& words) {
  if (words.empty()) return usage_error(*app, "no command");
  try {
    const std::vector<std::string> ours = split_at_mark(*app, words);
    app->parse(std::vector<std::string>(ours.rbegin(), ours.rend()));  // as CLI11 takes a vector
    check_stdout();
    return 0;
  } catch (const CLI::CallForVersion& e) {
    emit(fmt::format("{}\n", e.what()));
  } catch (const CLI::Success&) {
    emit(app->help());  // of the command that was parsed
  } catch (const CLI::RuntimeError& e) {
    check_stdout();
    return e.get_exit_code();
  } catch (const CLI::ExtrasError& e) {
    return usage_error(*app, unexpected(*app, e.what()));
  } catch (const CLI::ParseError& e) {
    return usage_error(*app, app->remaining(true).empty() ? e.what() : unexpected(*app, e.what()));
  } catch (const UsageError& e) {
    return usage_error(*app, e.what());
  }
  return 0;
}

}  // namespace

// NOLINTNEXTLINE(bugprone-exception-escape): what else may come, no memory, ends the tool as it should.
int main(int argc, char** argv) {
  CLI::App app("Loopback TCP of unmodified programs through guarded shared memory.", "mpklink");
  app.set_version_flag("--version", "mpklink " MPKLINK_VERSION);
  app.require_subcommand(1);
  add_examples(&app,
               {{"mpklink run -- nginx", "its loopback connections to preloaded programs leave TCP"},
                {"mpklink run --report -- wrk -c64 http://127.0.0.1/", "and what came of it"},
                {"mpklink run --help", "each command has --help with examples"}});
  for (AddCommand add : kCommands) add(&app);
  try {
    return parse_and_run(&app, {argv + 1, argv + argc});
  } catch (const Refusal& refusal) {
    complain(refusal.what());
    return refusal.exit_code;
  }
}
