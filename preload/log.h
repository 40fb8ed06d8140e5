// SPDX-License-Identifier: MIT
// One line, one write(2) to stderr, no allocation: formatted with fmt into a stack buffer. Cold paths only. Formats are
// compiled (FMT_COMPILE), so that only what they use of fmt comes along: its number formatting is larger than this library.
#pragma once
// What fmt would throw or assert on are formats and sizes, which are ours and compiled. Its exception classes would bring half of
// libstdc++ into the library, with a constructor that allocates at load. So not FMT_HEADER_ONLY either, with which gcc emits their
// vtables; the one function then missing is in log.cc.
#include <cstdlib>
#define FMT_THROW(exception) ::std::abort()
#define FMT_ASSERT(condition, message) ((void)0)
#include <fmt/compile.h>

#include "preload/settings.h"

namespace mpklink {

class LogLine {
 public:
  explicit LogLine(LogLevel level);
  template <class Format, class... Args>
  void add(const Format& format, const Args&... args) {
    const auto end = fmt::format_to_n(text_ + size_, kMax - size_, format, args...);
    size_ = end.size < kMax - size_ ? size_ + end.size : kMax;
  }
  void write();

 private:
  static constexpr std::size_t kMax = 511;
  char text_[kMax + 1];
  std::size_t size_ = 0;
};

bool log_enabled(LogLevel level);

template <class Format, class... Args>
void log_always(LogLevel level, const Format& format, const Args&... args) {
  LogLine line(level);
  line.add(format, args...);
  line.write();
}

template <class Format, class... Args>
void log(LogLevel level, const Format& format, const Args&... args) {
  if (log_enabled(level)) log_always(level, format, args...);
}

}  // namespace mpklink
