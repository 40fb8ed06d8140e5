// SPDX-License-Identifier: MIT
#include "preload/log.h"

#include <unistd.h>

#include <cstdlib>

#include "preload/assert.h"
#include "preload/process.h"

// For formats that are wrong, and ours are compiled (see log.h).
FMT_BEGIN_NAMESPACE
namespace detail {
void throw_format_error(const char*) { std::abort(); }
}  // namespace detail
FMT_END_NAMESPACE

namespace mpklink {

bool log_enabled(LogLevel level) { return process().settings.log >= level && level != LogLevel::kOff; }

LogLine::LogLine(LogLevel level) {
  static constexpr const char* kNames[] = {"off", "error", "warn", "info", "debug"};
  add(FMT_COMPILE("mpklink[{}] {}: "), ::getpid(), kNames[static_cast<unsigned>(level)]);
}

void LogLine::write() {
  const ErrnoSaver keep;
  text_[size_] = '\n';
  if (quiet().write(2, text_, size_ + 1) < 0) return;  // nobody to tell
}

void assertion_failed(const char* expression, long long left, long long right, const char* file, int line) {
  log_always(LogLevel::kError, FMT_COMPILE("internal error at {}:{}: {} ({} against {}); please report it"), file, line,
             expression, left, right);
  std::abort();
}

}  // namespace mpklink
