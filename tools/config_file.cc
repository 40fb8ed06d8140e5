// SPDX-License-Identifier: MIT
#include "tools/config_file.h"

#include <sys/stat.h>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#define TOML_ENABLE_FORMATTERS 0
#include <toml++/toml.h>

#include "tools/refusal.h"
#include "tools/settings_table.h"

namespace mpklink {
namespace {

constexpr std::int64_t kPortMax = 65535;
constexpr std::int64_t kUidMax = 0xfffffffe;

class Reader {
 public:
  explicit Reader(Config* config) : config_(config) {}

  void read(const toml::table& root) {
    for (const auto& [key, node] : root) {
      if (key == "settings") {
        read_settings(table_of(node, "settings"), "", &config_->settings);
      } else if (key == "profile") {
        for (const auto& [name, profile] : table_of(node, "profile")) read_profile(std::string(name.str()), profile);
      } else if (key == "rule") {
        read_rules(node);
      } else {
        fail(node, "unknown key '" + std::string(key.str()) + "', expected [settings], [profile.NAME] or [[rule]]");
      }
    }
  }

 private:
  [[noreturn]] void fail(const toml::node& node, const std::string& what) const { fail(node.source().begin.line, what); }
  [[noreturn]] void fail(unsigned line, const std::string& what) const {
    throw ConfigError(config_->path + ":" + std::to_string(line) + ": " + what);
  }

  const toml::table& table_of(const toml::node& node, const std::string& name) const {
    if (const toml::table* table = node.as_table()) return *table;
    fail(node, "'" + name + "' is a " + type_of(node) + ", expected a table");
  }

  static std::string type_of(const toml::node& node) {
    if (node.is_string()) return "string";
    if (node.is_integer() || node.is_floating_point()) return "number";
    if (node.is_boolean()) return "boolean";
    if (node.is_array()) return "list";
    return node.is_table() ? "table" : "date";
  }

  /// Keys with dots are tables in tables.
  void read_settings(const toml::table& table, const std::string& prefix, ConfiguredSettings* settings) {
    for (const auto& [name, node] : table) {
      const std::string key = prefix + std::string(name.str());
      const Setting* setting = find_setting(key);
      if (setting != nullptr) {
        settings->insert({key, {setting_value(*setting, node), static_cast<int>(node.source().begin.line)}});
      } else if (const toml::table* inner = prefix.empty() ? node.as_table() : nullptr) {
        read_settings(*inner, key + ".", settings);
      } else {
        fail(node, "unknown setting '" + key + "', expected one of " + all_keys());
      }
    }
  }

  static std::string all_keys() {
    std::string text;
    for (const Setting& s : kSettings) {
      if (strcmp(s.key, "rules") != 0) text += (text.empty() ? "" : ", ") + std::string(s.key);
    }
    return text;
  }

  std::string setting_value(const Setting& setting, const toml::node& node) {
    const std::string key = setting.key;
    if (key == "rules") fail(node, "rules are written as [[rule]] tables");
    std::string value;
    if (const auto* text = node.as_string()) {
      value = text->get();
    } else if (const auto* number = node.as_integer()) {
      value = std::to_string(number->get());
    } else if (const auto* flag = node.as_boolean(); flag != nullptr && strcmp(setting.values, "0|1") == 0) {
      value = flag->get() ? "1" : "0";
    } else {
      fail(node, "'" + key + "' is a " + type_of(node) + ", expected a string or a whole number");
    }
    if (key == "stats" && value.rfind('/', 0) != 0) fail(node, "'stats' is '" + value + "', expected a full path");
    if (key == "profile") return profiles_.push_back({value, node.source().begin.line}), value;  // looked up when all are known
    const std::string problem = key == "stats" ? "" : value_problem(setting, value);
    if (!problem.empty()) fail(node, "'" + key + "': " + problem);
    return value;
  }

  void read_profile(const std::string& name, const toml::node& node) {
    if (is_built_in_profile(name)) {
      fail(node, "'" + name + "' is a built-in profile, expected another name (say profile = \"" + name + "\" in it to start from that)");
    }
    ConfiguredSettings& settings = config_->profiles[name];
    const std::size_t before = profiles_.size();
    read_settings(table_of(node, "profile." + name), "", &settings);
    profiles_.resize(before);
    const auto base = settings.find("profile");
    if (base != settings.end() && !is_built_in_profile(base->second.value)) {
      fail(static_cast<unsigned>(base->second.line), "'profile' of a profile is '" + base->second.value + "', expected safe, balanced or latency");
    }
  }

  void read_rules(const toml::node& node) {
    const toml::array* rules = node.as_array();
    if (rules == nullptr) fail(node, "'rule' is a " + type_of(node) + ", expected [[rule]] with two brackets");
    for (const toml::node& rule : *rules) read_rule(table_of(rule, "rule"));
  }

  void read_rule(const toml::table& table) {
    ConfigRule rule;
    rule.where = config_->path + ":" + std::to_string(table.source().begin.line);
    bool has_action = false;
    for (const auto& [name, node] : table) {
      const std::string key(name.str());
      if (key == "action") {
        const std::string action = string_of(node, key, "accelerate or ignore");
        has_action = true;
        rule.accelerate = action == "accelerate";
        if (!rule.accelerate && action != "ignore") fail(node, "'action' is '" + action + "', expected accelerate or ignore");
      } else {
        read_condition(key, node, &rule);
      }
    }
    if (!has_action) fail(table, "a rule without 'action', expected action = \"accelerate\" or \"ignore\"");
    config_->rules.push_back(rule);
  }

  std::string string_of(const toml::node& node, const std::string& key, const char* expected) const {
    if (const auto* text = node.as_string()) return text->get();
    fail(node, "'" + key + "' is a " + type_of(node) + ", expected " + expected);
  }

  /// One value, or a list of them.
  void read_condition(const std::string& key, const toml::node& node, ConfigRule* rule) {
    static const struct {
      const char *key, *flat, *expected;
    } kKinds[] = {{"exe", "exe", "a pattern of the program's name or path, as \"nginx\" or \"/opt/*/java\""},
                  {"port", "port", "a port or a range, as 80 or \"8000-8999\""},
                  {"address", "addr", "an address or a network, as \"127.0.0.0/8\" or \"::1\""},
                  {"uid", "uid", "the number of a user"},
                  {"direction", "dir", "\"in\" or \"out\""}};
    for (const auto& kind : kKinds) {
      if (key != kind.key) continue;
      if (const toml::array* list = node.as_array()) {
        if (list->empty()) fail(node, "'" + key + "' is an empty list, expected " + kind.expected);
        for (const toml::node& one : *list) rule->conditions.emplace_back(kind.flat, condition_value(key, kind.flat, one, kind.expected));
      } else {
        rule->conditions.emplace_back(kind.flat, condition_value(key, kind.flat, node, kind.expected));
      }
      return;
    }
    fail(node, "unknown key '" + key + "' in a rule, expected action, exe, port, address, uid or direction");
  }

  std::string condition_value(const std::string& key, const std::string& flat, const toml::node& node, const char* expected) const {
    const bool number = (key == "port" || key == "uid") && node.is_integer();
    std::string value;
    if (number) {
      const std::int64_t n = node.as_integer()->get();
      if (n < 0 || n > (key == "port" ? kPortMax : kUidMax)) fail(node, "'" + key + "' is " + std::to_string(n) + ", expected " + expected);
      value = std::to_string(n);
    } else {
      value = string_of(node, key, expected);
    }
    // The two characters that the flat form has a meaning for.
    const bool plain = value.find_first_of(std::string(",;\0\n", 4)) == std::string::npos;
    if (!plain || !value_problem(*find_setting("rules"), "ignore," + flat + "=" + value).empty()) {
      fail(node, "'" + key + "' is '" + value + "', expected " + expected + (plain ? "" : " without , and ;"));
    }
    return value;
  }

 public:
  struct NamedProfile {
    std::string name;
    unsigned line;
  };
  void check_profiles() const {
    for (const NamedProfile& p : profiles_) {
      if (!is_built_in_profile(p.name) && config_->profiles.count(p.name) == 0) {
        fail(p.line, "there is no profile '" + p.name + "', expected safe, balanced, latency or a [profile." + p.name + "] in this file");
      }
    }
  }

 private:
  Config* config_;
  std::vector<NamedProfile> profiles_;
};

/// Null: not there. One of those that are looked for is not there either when it cannot be seen: HOME may be another user's.
std::optional<std::string> read_file(const std::string& path, bool must_be_there) {
  struct stat st;
  int error = stat(path.c_str(), &st) != 0 ? errno : S_ISDIR(st.st_mode) ? EISDIR : 0;
  if (!must_be_there && (error == ENOENT || error == ENOTDIR || error == EACCES)) return std::nullopt;
  if (error == 0) {
    errno = EIO;
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    if (file) text << file.rdbuf();
    if (file && !file.bad()) return text.str();
    error = errno;
  }
  throw Refusal(kExitUnavailable, "the configuration file " + path + " cannot be read: " + strerror(error) + "; name another with --config");
}

std::string environment(const char* name) {
  const char* value = getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

Config parse_config(const std::string& text, const std::string& path) {
  Config config;
  config.path = path;
  try {
    const toml::table root = toml::parse(text, path);
    Reader reader(&config);
    reader.read(root);
    reader.check_profiles();
  } catch (const toml::parse_error& e) {
    throw ConfigError(path + ":" + std::to_string(e.source().begin.line) + ": " + std::string(e.description()));
  }
  return config;
}

std::optional<Config> load_config(const std::string& named) {
  const std::string asked = named.empty() ? environment("MPKLINK_CONFIG") : named;
  if (!asked.empty()) return parse_config(*read_file(asked, true), asked);
  std::string base = environment("XDG_CONFIG_HOME");
  const std::string home = environment("HOME");
  if (base.empty() && !home.empty()) base = home + "/.config";
  for (const std::string& directory : {base.empty() ? base : base + "/mpklink", std::string("/etc/mpklink")}) {
    if (directory.empty()) continue;
    const std::string path = directory + "/config.toml";
    if (const auto text = read_file(path, false)) return parse_config(*text, path);
  }
  return std::nullopt;
}

}  // namespace mpklink
