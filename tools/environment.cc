// SPDX-License-Identifier: MIT
#include "tools/environment.h"

#include <unistd.h>

#include <climits>
#include <cstdlib>

#include "tools/preload_env.h"
#include "tools/refusal.h"
#include "tools/settings_table.h"

namespace mpklink {
namespace {

std::string environment(const Setting& setting) {
  const char* value = getenv(variable_of(setting).c_str());
  return value == nullptr ? "" : value;
}

struct ChosenProfile {
  const ConfiguredSettings* settings = nullptr;  // of one that the file has
  std::string base = "balanced";                 // what the library is to be told instead of its name
};

std::string names_of_profiles(const std::optional<Config>& config) {
  std::string names = "safe, balanced, latency";
  if (!config) return names;
  for (const auto& [name, settings] : config->profiles) names += ", " + name;
  return names + " (" + config->path + ")";
}

ChosenProfile choose_profile(const Choices& choices, const std::optional<Config>& config) {
  const Setting& setting = *find_setting("profile");
  ChosenProfile chosen;
  const auto option = choices.options.find("profile");
  std::string name = option != choices.options.end() ? option->second : environment(setting);
  if (name.empty() && config && config->settings.count("profile") != 0) name = config->settings.at("profile").value;
  if (config && config->profiles.count(name) != 0) {
    chosen.settings = &config->profiles.at(name);
    const auto base = chosen.settings->find("profile");
    if (base != chosen.settings->end()) chosen.base = base->second.value;
  } else if (option != choices.options.end() && !is_built_in_profile(name)) {
    throw UsageError("--profile: expected " + names_of_profiles(config) + ", not '" + name + "'");
  }
  return chosen;
}

/// A mistake in the file is told with its line; here all rules together may be too many.
std::string rules_of_file(const Config& config) {
  const std::string flat = flat_form(config.rules);
  if (!flat.empty() && !value_problem(*find_setting("rules"), flat).empty()) {
    throw ConfigError(config.path + ": its " + std::to_string(config.rules.size()) +
                      " rules are too many for the library, expected about 60 conditions for one program at most; use ranges and networks");
  }
  return flat;
}

Assignment assignment_of(const Setting& setting, const Choices& choices, const std::optional<Config>& config, const ChosenProfile& profile) {
  Assignment a = {variable_of(setting), "", ""};
  const std::string key = setting.key;
  const auto in_file = [&](const ConfiguredSettings& settings) {
    const auto found = settings.find(key);
    if (found == settings.end()) return false;
    a.value = found->second.value;
    a.source = config->path + ":" + std::to_string(found->second.line);
    return true;
  };
  const auto option = choices.options.find(key);
  if (option != choices.options.end()) {
    a.value = option->second;
    a.source = "option";
  } else if (!environment(setting).empty()) {
    a.value = environment(setting);
    a.source = kFromEnvironment;
  } else if (config && key == "rules" && !config->rules.empty()) {
    a.value = rules_of_file(*config);
    a.source = config->path;
  } else if (config && (profile.settings == nullptr || !in_file(*profile.settings))) {
    in_file(config->settings);
  }
  if (key == "profile" && profile.settings != nullptr) {
    // The library does not know that name.
    if (a.source == kFromEnvironment) a.source = config->path;
    a.value = profile.base;
  }
  return a;
}

}  // namespace

std::vector<Assignment> effective_settings(const Choices& choices, const std::optional<Config>& config) {
  const ChosenProfile profile = choose_profile(choices, config);
  std::vector<Assignment> result;
  for (const Setting& setting : kSettings) {
    Assignment a = assignment_of(setting, choices, config, profile);
    if (!a.value.empty()) result.push_back(a);
  }
  return result;
}

Assignment preload_assignment(const Choices& choices, const std::string& current) {
  const std::string library = choices.library.empty() ? find_library() : absolute_path(choices.library);
  return {"LD_PRELOAD", append_preload(current, library), "mpklink"};
}

std::string absolute_path(const std::string& path) {
  if (path.empty() || path[0] == '/') return path;
  char cwd[PATH_MAX];
  return getcwd(cwd, sizeof cwd) != nullptr ? std::string(cwd) + "/" + path : path;
}

}  // namespace mpklink
