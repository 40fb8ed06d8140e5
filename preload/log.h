// SPDX-License-Identifier: MIT
// One line, one write(2) to stderr, no allocation: formatted with fmt into a stack buffer. Cold paths only.
#pragma once
#define FMT_HEADER_ONLY 1
#include <fmt/format.h>

#include "preload/settings.h"

namespace mpklink {

bool log_enabled(LogLevel level);
void log_line(LogLevel level, fmt::string_view format, fmt::format_args args);

template <class... Args>
void log(LogLevel level, fmt::format_string<Args...> format, const Args&... args) {
  if (log_enabled(level)) log_line(level, format, fmt::make_format_args(args...));
}

}  // namespace mpklink
