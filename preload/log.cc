// SPDX-License-Identifier: MIT
#include "preload/log.h"

#include <errno.h>
#include <unistd.h>

#include <cstdlib>

#include "preload/assert.h"
#include "preload/process.h"

namespace mpklink {
namespace {

constexpr std::size_t kLineMax = 512;

}  // namespace

bool log_enabled(LogLevel level) { return process().settings.log >= level && level != LogLevel::kOff; }

void log_line(LogLevel level, fmt::string_view format, fmt::format_args args) {
  static constexpr const char* kNames[] = {"off", "error", "warn", "info", "debug"};
  const int saved_errno = errno;
  char line[kLineMax];
  auto head = fmt::format_to_n(line, kLineMax - 1, "mpklink[{}] {}: ", ::getpid(), kNames[static_cast<unsigned>(level)]);
  const std::size_t used = head.size < kLineMax - 1 ? head.size : kLineMax - 1;
  auto body = fmt::vformat_to_n(line + used, kLineMax - 1 - used, format, args);
  std::size_t end = used + body.size;
  if (end > kLineMax - 1) end = kLineMax - 1;
  line[end] = '\n';
  if (real().write(2, line, end + 1) < 0) errno = saved_errno;  // nobody to tell
  errno = saved_errno;
}

void assertion_failed(const char* expression, long long left, long long right, const char* file, int line) {
  log_line(LogLevel::kError, "internal error at {}:{}: {} ({} against {}); please report it",
           fmt::make_format_args(file, line, expression, left, right));
  std::abort();
}

}  // namespace mpklink
