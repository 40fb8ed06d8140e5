// SPDX-License-Identifier: MIT
#pragma once

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace bench {

/// Ends the program: a sentence on stderr, exit code 1.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Failure(fmt::format(format, std::forward<Args>(args)...));
}

[[noreturn]] inline void fail_errno(const char* what) { fail("{}: {}", what, strerrordesc_np(errno)); }

}  // namespace bench
