// SPDX-License-Identifier: MIT
// `mpklink run --report`: what the lines of MPKLINK_STATS say, for a person.
#pragma once

#include <string>

namespace mpklink {

/// `lines`: one JSON object each, of processes that have ended. Several lines of text, or one line of JSON.
std::string report_of(const std::string& lines, bool json);

}  // namespace mpklink
