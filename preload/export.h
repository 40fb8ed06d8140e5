// SPDX-License-Identifier: MIT
// MPKLINK_EXPORT(name): exports mpklink_<name> as <name>, with proof that its signature (noexcept included) is libc's.
#pragma once
#include <type_traits>

#include "preload/libc_names.h"

// NOLINTBEGIN(bugprone-macro-parentheses): a declaration
// libc's declarations carry attributes (warn_unused_result, access) that are no part of the type.
#define MPKLINK_EXPORT_AS(name, target)                                                               \
  _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wpragmas\"")                      \
  _Pragma("GCC diagnostic ignored \"-Wunknown-warning-option\"")                                      \
  _Pragma("GCC diagnostic ignored \"-Wmissing-attributes\"")                                          \
  _Pragma("GCC diagnostic ignored \"-Wignored-attributes\"")                                          \
  static_assert(std::is_same_v<decltype(mpklink_##target), decltype(::name)>,                         \
                #name " has another signature in libc");                                              \
  extern "C" decltype(::name) name __attribute__((alias("mpklink_" #target), visibility("default"))); \
  _Pragma("GCC diagnostic pop")
// NOLINTEND(bugprone-macro-parentheses)
#define MPKLINK_EXPORT(name) MPKLINK_EXPORT_AS(name, name)
