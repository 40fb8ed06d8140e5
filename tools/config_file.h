// SPDX-License-Identifier: MIT
// mpklink.toml(5): settings, named profiles and rules. Read by the tool only; the library gets variables.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tools/refusal.h"
#include "tools/rules.h"

namespace mpklink {

/// "FILE:LINE: what is wrong, and what is expected".
class ConfigError : public Refusal {
 public:
  explicit ConfigError(const std::string& sentence) : Refusal(kExitUsage, sentence + "; see 'mpklink man mpklink.toml'") {}
};

struct Configured {
  std::string value;
  int line = 0;
};
using ConfiguredSettings = std::map<std::string, Configured>;  // by key

struct Config {
  std::string path;
  ConfiguredSettings settings;
  std::map<std::string, ConfiguredSettings> profiles;
  std::vector<ConfigRule> rules;
};

/// Throws ConfigError.
Config parse_config(const std::string& text, const std::string& path);

/// The file to read: `named` (--config), $MPKLINK_CONFIG, $XDG_CONFIG_HOME/mpklink/config.toml or ~/.config/mpklink/config.toml,
/// /etc/mpklink/config.toml. The first two must be there; without any: nothing. Throws ConfigError, or a Refusal (3) when it cannot be read.
std::optional<Config> load_config(const std::string& named);

}  // namespace mpklink
