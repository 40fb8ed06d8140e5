// SPDX-License-Identifier: MIT
#include "tools/settings_table.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstring>

#include "preload/rules.h"
#include "preload/settings.h"

namespace mpklink {
namespace {

std::string expected_instead(const std::string& variable, const std::string& value) {
  static const char* asked_variable;
  static const char* asked_value;
  static std::string expected;
  asked_variable = variable.c_str();
  asked_value = value.c_str();
  expected.clear();
  parse_settings([](const char* name) -> const char* { return strcmp(name, asked_variable) == 0 ? asked_value : nullptr; },
                 [](const char*, const char*, const char* what) { expected = what; });
  return expected;
}

/// Why it cannot be appended to.
std::string path_problem(const std::string& path) {
  struct stat st;
  if (stat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode)) return "it is a directory";
  const std::string dir = path.substr(0, path.rfind('/') + 1);
  return dir.empty() || access(dir.c_str(), X_OK) == 0 ? std::string() : dir + " is not there or not accessible";
}

}  // namespace

std::string option_of(const Setting& setting) {
  std::string name = std::string("--") + setting.key;
  std::replace(name.begin(), name.end(), '.', '-');
  return name;
}

std::string variable_of(const Setting& setting) {
  std::string name = "MPKLINK_";
  for (const char* c = setting.key; *c != '\0'; ++c) name += *c == '.' ? '_' : static_cast<char>(toupper(*c));
  return name;
}

std::vector<std::string> choices_of(const std::string& values) {
  std::vector<std::string> choices;
  if (values.find('|') == std::string::npos) return choices;
  for (std::size_t at = 0; at <= values.size();) {
    const std::size_t end = std::min(values.find('|', at), values.size());
    choices.push_back(values.substr(at, end - at));
    at = end + 1;
  }
  return choices;
}

const Setting* find_setting(const std::string& key) {
  const auto found = std::find_if(std::begin(kSettings), std::end(kSettings), [&](const Setting& s) { return key == s.key; });
  return found == std::end(kSettings) ? nullptr : &*found;
}

std::string value_problem(const Setting& setting, const std::string& value) {
  const std::string key = setting.key;
  if (value.empty()) return "it needs a value";
  std::string expected;
  if (key == "rules") {
    Rules rules;
    if (!parse_rules(value.c_str(), "", &rules)) expected = kRulesExpected;
  } else {
    expected = expected_instead(variable_of(setting), value);
  }
  if (!expected.empty()) return "expected " + expected + ", not '" + value + "'";
  const std::string problem = key == "stats" ? path_problem(value) : std::string();
  return problem.empty() ? problem : "'" + value + "' cannot be written: " + problem;
}

bool is_built_in_profile(const std::string& name) {
  return std::find(std::begin(kBuiltInProfiles), std::end(kBuiltInProfiles), name) != std::end(kBuiltInProfiles);
}

}  // namespace mpklink
