// SPDX-License-Identifier: MIT
// For our own bugs only: on in release, prints both values, aborts. What the peer or the environment does is never asserted.
#pragma once

namespace mpklink {

[[noreturn]] void assertion_failed(const char* expression, long long left, long long right, const char* file, int line);

}  // namespace mpklink

#if MPKLINK_ASSERTS
#define MPKLINK_ASSERT(left, op, right)                                                                        \
  do {                                                                                                         \
    const auto left_ = (left);                                                                                 \
    const auto right_ = (right);                                                                               \
    if (__builtin_expect(!(left_ op right_), 0)) {                                                             \
      ::mpklink::assertion_failed(#left " " #op " " #right, static_cast<long long>(left_),                     \
                                  static_cast<long long>(right_), __FILE__, __LINE__);                         \
    }                                                                                                          \
  } while (0)
#else
#define MPKLINK_ASSERT(left, op, right) ((void)0)
#endif
