// SPDX-License-Identifier: MIT
// The clients: each fills in a Measurement, and throws a Failure at the first error.
#pragma once

#include "measurement.h"
#include "options.h"

namespace bench {

inline constexpr unsigned kHoldSeconds = 600;

/// Messages that are answered, one after the other.
void run_pingpong(const ClientOptions& options, Measurement* measurement);
/// Writes as fast as they are taken; an operation is one write. Or, with `receive`, reads.
void run_stream(const ClientOptions& options, Measurement* measurement);
/// Connect, one message and its answer, close: that is one operation.
void run_churn(const ClientOptions& options, Measurement* measurement);
/// Many connections in one epoll set, some of which are busy.
void run_many(const ClientOptions& options, Measurement* measurement);
/// As many connections, quiet until stdin is closed, or for kHoldSeconds.
void run_hold(const ClientOptions& options);

}  // namespace bench
