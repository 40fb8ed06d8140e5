// SPDX-License-Identifier: MIT
#include "tools/roff.h"

#include <cctype>
#include <sstream>

namespace mpklink {
namespace {

constexpr char kDate[] = "2026-11-26";  // of the last change of these pages' text: a build is to give the same bytes each time

std::string upper(std::string text) {
  for (char& c : text) c = static_cast<char>(toupper(static_cast<unsigned char>(c)));
  return text;
}

}  // namespace

Roff::Roff(const std::string& name, int section_number, const std::string& version, const std::string& summary) {
  line(".\\\" SPDX-License-Identifier: MIT");
  line(".\\\" Made by mpklink man; do not edit.");
  line(".TH " + upper(name) + " " + std::to_string(section_number) + " " + kDate + " \"libmpklink " + version + "\" \"libmpklink\"");
  line(".nh");
  line(".ad l");
  section("NAME");
  line(escape(name) + " \\- " + escape(summary));
}

std::string Roff::escape(const std::string& words, bool code) {
  std::string text;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const char c = words[i];
    const bool option = c == '-' && (code || words.compare(i, 2, "--") == 0 || (i > 0 && words[i - 1] == '-'));
    if (c == '\\') {
      text += "\\e";
    } else if (option) {
      text += "\\-";
    } else if (c == '\'' && code) {
      text += "\\(aq";
    } else if (c == '~' || c == '^') {
      text += c == '~' ? "\\(ti" : "\\(ha";
    } else {
      text += c;
    }
  }
  const bool control = !text.empty() && (text[0] == '.' || text[0] == '\'');
  return control ? "\\&" + text : text;
}

void Roff::section(const std::string& title) {
  line(".SH " + title);
  first_ = true;
}

void Roff::subsection(const std::string& title) {
  line(".SS " + title);
  first_ = true;
}

void Roff::paragraph(const std::string& words) {
  if (!first_) line(".PP");
  first_ = false;
  std::istringstream stream(words);
  for (std::string one; std::getline(stream, one);) line(escape(one));
}

void Roff::text(const std::string& words) {
  for (std::size_t at = 0; at < words.size();) {
    const std::size_t end = std::min(words.find("\n\n", at), words.size());
    if (end > at) paragraph(words.substr(at, end - at));
    at = end + 2;
  }
}

void Roff::item(const std::string& bold, const std::string& italic, const std::string& words) {
  first_ = false;
  line(".TP");
  line("\\fB" + escape(bold, true) + "\\fR" + (italic.empty() ? "" : " \\fI" + escape(italic, true) + "\\fR"));
  line(words.empty() ? "\\&" : escape(words));
}

void Roff::literal(const std::string& lines) {
  if (!first_) line(".PP");
  first_ = false;
  line(".nf");
  line(".RS 4");
  std::istringstream stream(lines);
  for (std::string one; std::getline(stream, one);) line(one.empty() ? "\\&" : escape(one, true));
  line(".RE");
  line(".fi");
}

}  // namespace mpklink
