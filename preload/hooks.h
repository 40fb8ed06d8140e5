// SPDX-License-Identifier: MIT
// The hooks by their own names. One that needs another calls it by this name: `::read` may be the read of a library that is preloaded
// before us and that itself comes back through syscall().
#pragma once
#include "preload/libc_names.h"

long mpklink_raw_fork(long number, long a, long b, long c, long d, long e);

#define HOOK(name, group, class) extern "C" decltype(::name) mpklink_##name __attribute__((visibility("hidden")));
#include "preload/interpose.def"
