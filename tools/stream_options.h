// SPDX-License-Identifier: MIT
// Options that several commands have in common: which processes and streams are meant.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "tools/stream_view.h"

namespace mpklink {

/// --pid N and --port N, both may be repeated and take lists (80,443).
void add_pid_option(CLI::App* command, std::vector<int>* pids, const std::string& help);
void add_port_option(CLI::App* command, std::vector<int>* ports, const std::string& help);
/// Both, and --mode and --reason.
void add_stream_filter(CLI::App* command, std::vector<int>* pids, StreamFilter* filter);

}  // namespace mpklink
