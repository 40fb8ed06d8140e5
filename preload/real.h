// SPDX-License-Identifier: MIT
// The originals of the hooked calls, as a value: the core gets it handed, so a test can make the N-th call fail.
#pragma once
#include "preload/libc_names.h"
#include "shm/system_calls.h"

namespace mpklink {

struct RealCalls {
#define HOOK(name, group) decltype(&::name) name;  // NOLINT(bugprone-macro-parentheses): a declaration
#include "preload/interpose.def"
  SystemCalls sys;
};

// The process's table, resolved by the first caller (hooks run before constructors), without locks or allocation of ours.
const RealCalls& real();
// For tests: what `real()` returns from now on, writable.
RealCalls& real_for_test();

[[noreturn]] void real_exit(int status);

}  // namespace mpklink
