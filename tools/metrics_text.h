// SPDX-License-Identifier: MIT
// The Prometheus text format (version 0.0.4) of what processes show. Pure.
#pragma once

#include <string>
#include <vector>

#include "tools/status_reader.h"

namespace mpklink {

std::string metrics_text(const std::vector<ProcessStatus>& processes);

/// A label's value between its quotes.
std::string escape_label(const std::string& value);

}  // namespace mpklink
