// SPDX-License-Identifier: MIT
#include "tools/command_support.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <numeric>

namespace mpklink {
namespace {

/// A pipe whose reader is gone is to be an error with a sentence, here only: programs that a command starts get SIGPIPE as it was.
class WithoutSigpipe {
 public:
  WithoutSigpipe() {
    struct sigaction ignore {};
    ignore.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &ignore, &before_);
  }
  ~WithoutSigpipe() { sigaction(SIGPIPE, &before_, nullptr); }
  WithoutSigpipe(const WithoutSigpipe&) = delete;
  WithoutSigpipe& operator=(const WithoutSigpipe&) = delete;

 private:
  struct sigaction before_ {};
};

[[noreturn]] void refuse_output(int error) {
  const char* next = error == ENOSPC ? "; make room, or write elsewhere" : error == EPIPE ? "; its reader ended first" : "; redirect it elsewhere";
  throw Refusal(kExitUnavailable, fmt::format("the output cannot be written: {}{}", strerror(error), next));
}

/// Columns that a text takes: its UTF-8 characters.
std::size_t columns_of(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

std::string cut(const std::string& line, std::size_t width) {
  std::size_t at = 0, columns = 0;
  for (; at < line.size(); ++at) {
    if ((line[at] & 0xc0) == 0x80) continue;
    if (columns++ == width) break;
  }
  return line.substr(0, at);
}

std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

void complain(const std::string& sentence) {
  fputs(("mpklink: " + sentence + "\n").c_str(), stderr);
}

void emit(std::string_view text) {
  const WithoutSigpipe quiet;
  if (fwrite(text.data(), 1, text.size(), stdout) != text.size() || fflush(stdout) != 0) refuse_output(errno);
}

void check_stdout() {
  const WithoutSigpipe quiet;
  if (fflush(stdout) != 0) refuse_output(errno);
  if (ferror(stdout) != 0) refuse_output(EIO);
}

bool stdout_is_terminal() {
  return isatty(STDOUT_FILENO) != 0;
}

std::size_t terminal_width() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0) return 0;
  return size.ws_col != 0 ? size.ws_col : 80;
}

std::string format_table(const std::vector<Column>& columns, const std::vector<std::vector<std::string>>& rows, std::size_t width) {
  std::vector<std::size_t> widths;
  for (std::size_t i = 0; i < columns.size(); ++i) {
    std::size_t widest = columns_of(columns[i].title);
    for (const auto& row : rows) widest = std::max(widest, i < row.size() ? columns_of(row[i]) : 0);
    widths.push_back(widest);
  }
  std::string text;
  const auto add_line = [&](const auto& cell) {
    std::string line;
    for (std::size_t i = 0; i < columns.size(); ++i) {
      const std::string word = cell(i);
      const std::string padding(widths[i] - columns_of(word), ' ');
      line += (i == 0 ? "" : "  ") + (columns[i].right ? padding + word : word + padding);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += (width > 0 ? cut(line, width) : line) + "\n";
  };
  add_line([&](std::size_t i) { return columns[i].title; });
  for (const auto& row : rows) add_line([&](std::size_t i) { return i < row.size() ? row[i] : std::string(); });
  return text;
}

void add_json_flag(CLI::App* command, bool* json) {
  command->add_flag("--json", *json, "print JSON instead of text");
}

void add_examples(CLI::App* command, const std::vector<Example>& examples, const std::string& notes) {
  std::size_t widest = 0;
  for (const Example& e : examples) widest = std::max(widest, columns_of(e.command));
  std::string text = notes.empty() ? "" : notes + "\n\n";
  text += "Examples:";
  for (const Example& e : examples) {
    const std::string padding(widest - columns_of(e.command), ' ');
    text += *e.what == '\0' ? fmt::format("\n  {}", e.command) : fmt::format("\n  {}{}  # {}", e.command, padding, e.what);
  }
  command->footer(text);
}

AfterMark& after_mark() {
  static AfterMark mark;
  return mark;
}

std::vector<std::string> program_words(CLI::App* command) {
  std::vector<std::string> words = command->remaining();  // what CLI11 left over before the first `--`
  if (words.empty()) return after_mark().words;
  if (words.front().size() > 1 && words.front()[0] == '-') throw UsageError("unknown option " + words.front());
  // That `--` was the program's own.
  if (after_mark().present) words.emplace_back("--");
  words.insert(words.end(), after_mark().words.begin(), after_mark().words.end());
  return words;
}

std::string nearest(const std::string& typo, const std::vector<std::string>& words) {
  std::string best;
  std::size_t least = std::max<std::size_t>(2, typo.size() / 3) + 1;
  for (const std::string& word : words) {
    const bool begins = typo.size() >= 2 && word.rfind(typo, 0) == 0;
    const std::size_t distance = begins ? 1 : edit_distance(typo, word);
    if (distance < least && distance < std::max(typo.size(), word.size())) {
      least = distance;
      best = word;
    }
  }
  return best;
}

}  // namespace mpklink
