// SPDX-License-Identifier: MIT
// The settings that an environment gives the library: what it will not understand, and what keeps connections on TCP.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "tools/command_support.h"
#include "tools/doctor_checks.h"
#include "tools/settings_table.h"

namespace mpklink {
namespace {

struct Mistake {
  std::string variable, value, expected;
};

// parse_settings() takes functions, not objects: what they work on.
std::map<std::string, std::string>* g_values;
std::vector<Mistake>* g_mistakes;

std::map<std::string, std::string> values_of(const std::vector<std::string>& environment) {
  std::map<std::string, std::string> values;
  for (const std::string& entry : environment) {
    const std::size_t equals = entry.find('=');
    if (entry.rfind("MPKLINK_", 0) == 0 && equals != std::string::npos)
      values.emplace(entry.substr(0, equals), entry.substr(equals + 1));
  }
  return values;
}

Settings parse(std::map<std::string, std::string> values, std::vector<Mistake>* mistakes) {
  g_values = &values;
  g_mistakes = mistakes;
  return parse_settings(
      [](const char* name) -> const char* {
        const auto found = g_values->find(name);
        return found == g_values->end() ? nullptr : found->second.c_str();
      },
      [](const char* name, const char* value, const char* expected) {
        g_mistakes->push_back({name, value, expected});
      });
}

Finding misunderstood(const std::string& section, const Mistake& mistake) {
  const char* used = mistake.variable == "MPKLINK_PEERS" ? "same-uid" : "its default";
  return {section,
          "settings",
          Level::kWarn,
          fmt::format("{}={} is not understood, and {} is used.", mistake.variable, printable(mistake.value), used),
          fmt::format("Set {} to {}.", mistake.variable, mistake.expected),
          {{"variable", mistake.variable}, {"value", mistake.value}}};
}

/// A variable that nobody reads and that looks like one that somebody does.
void add_typos(const std::string& section, const std::map<std::string, std::string>& values, Findings* findings) {
  constexpr std::size_t kShortestTypo = 4;                 // shorter words are near to everything
  std::vector<std::string> known = {"LIBRARY", "CONFIG"};  // the tool's own
  for (const Setting& setting : kSettings) known.push_back(variable_of(setting).substr(strlen("MPKLINK_")));
  for (const auto& [name, value] : values) {
    const std::string word = name.substr(strlen("MPKLINK_"));
    if (std::find(known.begin(), known.end(), word) != known.end()) continue;
    const std::string meant = nearest(word, known);
    if (meant.empty() || word.size() < kShortestTypo) continue;
    findings->push_back({section,
                         "settings",
                         Level::kWarn,
                         fmt::format("{} is no setting, and nobody reads it.", printable(name)),
                         fmt::format("Did you mean MPKLINK_{}?", meant),
                         {{"variable", name}, {"value", value}}});
  }
}

void add_restrictions(const std::string& section, const Settings& settings,
                      const std::map<std::string, std::string>& values, Findings* findings) {
  const auto value = [&](const char* name) { return values.count(name) != 0 ? values.at(name) : std::string(); };
  const std::string rules = value("MPKLINK_RULES");
  const std::string problem = rules.empty() ? "" : value_problem(*find_setting("rules"), rules);
  if (!problem.empty()) {
    findings->push_back({section,
                         "settings",
                         Level::kWarn,
                         fmt::format("MPKLINK_RULES={} is not understood: {}.", printable(rules), problem),
                         "mpklink rules check",
                         {{"variable", std::string("MPKLINK_RULES")}, {"value", rules}}});
  }
  if (settings.disabled) {
    findings->push_back({section,
                         "settings",
                         Level::kFail,
                         "MPKLINK_DISABLE switches the library off.",
                         "unset MPKLINK_DISABLE",
                         {{"variable", std::string("MPKLINK_DISABLE")}, {"value", value("MPKLINK_DISABLE")}}});
  }
  if (settings.port_count > 0) {
    findings->push_back(
        {section,
         "settings",
         Level::kNote,
         fmt::format("MPKLINK_PORTS={}: connections of other ports stay on TCP.", printable(value("MPKLINK_PORTS"))),
         "",
         {{"variable", std::string("MPKLINK_PORTS")}, {"value", value("MPKLINK_PORTS")}}});
  }
  if (settings.peers == PeerPolicy::kAny) {
    findings->push_back({section,
                         "settings",
                         Level::kWarn,
                         "MPKLINK_PEERS=any shares memory with whoever answers, also with a squatter: it is for tests.",
                         "unset MPKLINK_PEERS",
                         {{"variable", std::string("MPKLINK_PEERS")}, {"value", std::string("any")}}});
  }
}

}  // namespace

Settings settings_of(const std::vector<std::string>& environment) {
  std::vector<Mistake> mistakes;
  return parse(values_of(environment), &mistakes);
}

Findings check_settings(const std::vector<std::string>& environment, const std::string& section) {
  const std::map<std::string, std::string> values = values_of(environment);
  std::vector<Mistake> mistakes;
  const Settings settings = parse(values, &mistakes);
  Findings findings;
  for (const Mistake& mistake : mistakes) findings.push_back(misunderstood(section, mistake));
  add_typos(section, values, &findings);
  add_restrictions(section, settings, values, &findings);
  if (findings.empty()) {
    findings.push_back({section,
                        "settings",
                        Level::kOk,
                        values.empty() ? "No setting is changed: the defaults hold." : "The settings are understood.",
                        "",
                        {{"variable", std::string()}, {"value", std::string()}}});
  }
  return findings;
}

}  // namespace mpklink
