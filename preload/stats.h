// SPDX-License-Identifier: MIT
#pragma once

namespace mpklink {

// Appends one JSON object on one line to MPKLINK_STATS, once per process. Called when the process ends.
void write_stats();

}  // namespace mpklink
