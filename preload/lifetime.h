// SPDX-License-Identifier: MIT
// How long connections to a port live: an upgrade costs what some twenty round trips on TCP do, and pays when some forty follow.
//
// What was learnt of the last connections decides for the next, as branch predictors do: where several in a row had ended before an
// upgrade could pay, one is tried only on those that have shown that they are others. MPKLINK_WARMUP, when given, holds as it is.
#pragma once
#include <cstdint>

namespace mpklink {

constexpr std::uint32_t kShortOperations = 64;  // fewer, sends and receives together, and the upgrade did not pay
constexpr std::uint32_t kShortInARow = 3;
// Where connections are short. The other end, which may have learnt otherwise, tries for about as long, and again later (kAfterAbsence).
constexpr std::uint32_t kLateOperations = 96;

// The server's port of a connection, on either end. Hints: two ports may share an entry, and forget what the other has learnt.
bool connections_are_short(std::uint16_t port);
void learn_lifetime(std::uint16_t port, std::uint32_t operations);

}  // namespace mpklink
