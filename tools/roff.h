// SPDX-License-Identifier: MIT
// What of man(7) our pages use.
#pragma once

#include <string>

namespace mpklink {

class Roff {
 public:
  Roff(const std::string& name, int section, const std::string& version, const std::string& summary);
  void section(const std::string& title);
  void subsection(const std::string& title);
  void text(const std::string& words);                               // paragraphs, separated by empty lines
  void item(const std::string& bold, const std::string& italic, const std::string& words);  // "bold italic", and below it, indented, words
  void literal(const std::string& lines);                            // as they are
  void line(const std::string& roff) { text_ += roff + "\n"; }       // already roff
  const std::string& str() const { return text_; }

  /// Text, or (`code`) text whose hyphens are to be copied into a shell.
  static std::string escape(const std::string& words, bool code = false);

 private:
  void paragraph(const std::string& words);
  std::string text_;
  bool first_ = true;  // no paragraph macro right behind a heading
};

}  // namespace mpklink
