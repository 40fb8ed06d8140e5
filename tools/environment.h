// SPDX-License-Identifier: MIT
// What `run` sets and `env` prints: settings from options, the environment, the configuration file, in this order.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "tools/config_file.h"

namespace mpklink {

struct Choices {
  std::map<std::string, std::string> options;  // by key (settings_table.h); a profile may be one of the file's
  std::string library;                         // --library, or empty
  std::string config;                          // --config, or empty
};

struct Assignment {
  std::string name;
  std::string value;
  std::string source;  // "option", "environment", "FILE:LINE"
};

constexpr char kFromEnvironment[] = "environment";

/// All MPKLINK_ variables that have a value. Throws UsageError, ConfigError, Refusal.
std::vector<Assignment> effective_settings(const Choices& choices, const std::optional<Config>& config);

/// LD_PRELOAD with the library behind `current`.
Assignment preload_assignment(const Choices& choices, const std::string& current);

/// With the working directory in front.
std::string absolute_path(const std::string& path);

}  // namespace mpklink
