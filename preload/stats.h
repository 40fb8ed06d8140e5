// SPDX-License-Identifier: MIT
#pragma once

namespace mpklink {

// Appends one JSON object on one line to MPKLINK_STATS, once per process. Called when the process ends.
void write_stats();

// Before an exec, whose new program will not know; when it fails after all, the counters begin anew.
void write_stats_before_exec();
void exec_failed();

}  // namespace mpklink
