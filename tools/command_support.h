// SPDX-License-Identifier: MIT
// What all commands of `mpklink` share: how they refuse, print, speak JSON, and what stands after `--`.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "tools/commands.h"
#include "tools/refusal.h"
#include "tools/text.h"

namespace mpklink {

/// "mpklink: SENTENCE" on stderr. Never fails: what nobody can read changes no exit code.
void complain(const std::string& sentence);

// ---- output ----

/// Writes to stdout, at once and whole, or throws a Refusal (3): disk full, a pipe whose reader is gone, closed. What is printed
/// otherwise is checked in the end, too (check_stdout).
void emit(std::string_view text);
void check_stdout();

/// Is stdout a terminal; its width in columns, or 0 when it is none (then nothing is to be cut).
bool stdout_is_terminal();
std::size_t terminal_width();

struct Column {
  std::string title;
  bool right = false;  // numbers
};
/// Columns separated by two spaces. `width` > 0 (terminal_width()) cuts lines there. Without rows: the titles alone.
std::string format_table(const std::vector<Column>& columns, const std::vector<std::vector<std::string>>& rows, std::size_t width);

// ---- JSON ----
// With --json a command prints one document, one line each record at most, on stdout: an object or an array of objects. Keys are
// snake_case, units last (bytes, ns), absent values null; keys are added but do not change their meaning. Errors stay sentences on stderr.

/// Adds --json, the same everywhere.
void add_json_flag(CLI::App* command, bool* json);
// json_string() is in text.h.

// ---- the command line ----

struct Example {
  const char* command;
  const char* what;
};
/// Placeholders of options (type_name) tell completions what to offer: a|b|c, FILE, DIR; others nothing.

/// The end of --help and the section EXAMPLES of the man page. `notes`: paragraphs above them.
void add_examples(CLI::App* command, const std::vector<Example>& examples, const std::string& notes = "");

/// The program and its arguments that a command with prefix_command() was given: all from the first word that is no option, or behind
/// `--`. Throws UsageError on an unknown option; may be empty.
std::vector<std::string> program_words(CLI::App* command);

/// What program_words() needs to know: main() cuts the line at the first `--`, as CLI11 has no notion of another program's words.
struct AfterMark {
  bool present = false;
  std::vector<std::string> words;
};
AfterMark& after_mark();

/// The one of `words` that was probably meant by `typo`, or "".
std::string nearest(const std::string& typo, const std::vector<std::string>& words);


}  // namespace mpklink
