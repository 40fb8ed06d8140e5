// SPDX-License-Identifier: MIT
#pragma once

#include "options.h"

namespace bench {

// What a sink answers at the end of what it has read: whether those were the bytes of StreamBytes.
constexpr unsigned char kSinkContent = 'k';
constexpr unsigned char kSinkMalcontent = 'x';

/// Until SIGTERM, SIGINT or the end of the time.
void serve(const ServeOptions& options);

}  // namespace bench
