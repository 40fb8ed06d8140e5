// SPDX-License-Identifier: MIT
#include "tools/doctor_finding.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "tools/text.h"

namespace mpklink {
namespace {

constexpr int kJsonVersion = 1;  // of the shape below: names may be added, none taken away or changed in meaning
constexpr std::size_t kTextWidth = 96;

std::string value_text(const Fact& fact) {
  if (const auto* number = std::get_if<std::int64_t>(&fact)) return fmt::format("{}", *number);
  if (const auto* truth = std::get_if<bool>(&fact)) return *truth ? "true" : "false";
  return json_string(std::get<std::string>(fact));
}

std::string facts_json(const Facts& facts) {
  std::string out;
  for (const auto& [name, value] : facts)
    out += fmt::format("{}{}: {}", out.empty() ? "" : ", ", json_string(name), value_text(value));
  return "{" + out + "}";
}

/// Words in lines of kTextWidth, the second and later ones indented. Remedies are left whole: what they say to type is
/// copied.
std::string wrapped(const std::string& text, std::size_t indent) {
  std::istringstream words(text);
  std::string out;
  std::size_t column = indent;
  for (std::string word; words >> word;) {
    if (!out.empty() && column + 1 + word.size() > kTextWidth) {
      out += "\n" + std::string(indent, ' ') + word;
      column = indent + word.size();
    } else {
      out += (out.empty() ? "" : " ") + word;
      column += word.size() + 1;
    }
  }
  return out;
}

std::string verdict_line(Level level) {
  switch (level) {
    case Level::kOk:
    case Level::kNote:
      return "All well.";
    case Level::kWarn:
      return "It works, with less than there could be: see \"warn\" above.";
    case Level::kFail:
      return "Connections stay on TCP: see \"fail\" above.";
  }
  return {};
}

}  // namespace

const char* level_name(Level level) {
  static const char* const kNames[] = {"ok", "note", "warn", "fail"};
  return kNames[static_cast<int>(level)];
}

Level worst(const Findings& findings) {
  Level level = Level::kOk;
  for (const Finding& f : findings) level = std::max(level, f.level);
  return level;
}

std::string to_text(const Target& target, const Findings& findings) {
  constexpr std::size_t kIndent = 26;
  std::string out = target.name.empty() ? "" : printable(target.name) + "\n";
  std::string section;
  for (const Finding& f : findings) {
    if (f.section != section) out += f.section + "\n";
    section = f.section;
    out += fmt::format("  {:<4}  {:<16}  {}\n", level_name(f.level), f.name, wrapped(printable(f.sentence), kIndent));
    if (!f.remedy.empty()) out += fmt::format("{:>24}  {}\n", "->", printable(f.remedy));
  }
  return out + verdict_line(worst(findings)) + "\n";
}

std::string to_json(const Target& target, const Findings& findings) {
  const char* verdict = worst(findings) <= Level::kNote ? "well" : "degraded";
  std::string list;
  for (const Finding& f : findings) {
    list += fmt::format(
        "{}\n  {{\"section\": {}, \"name\": {}, \"level\": \"{}\", \"sentence\": {}, \"remedy\": {}, \"facts\": {}}}",
        list.empty() ? "" : ",", json_string(f.section), json_string(f.name), level_name(f.level),
        json_string(f.sentence), json_string(f.remedy), facts_json(f.facts));
  }
  return fmt::format(
      "{{\"doctor\": {}, \"target\": {{\"kind\": {}, \"name\": {}}}, \"verdict\": \"{}\", \"findings\": [{}\n]}}\n",
      kJsonVersion, json_string(target.kind), json_string(target.name), verdict, list);
}

}  // namespace mpklink
