// SPDX-License-Identifier: MIT
#include "tools/rules.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "preload/rules.h"

namespace mpklink {
namespace {

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == at) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

bool read_address(const std::string& text, std::uint8_t (&address)[16]) {
  memset(address, 0, sizeof address);
  memset(address + 10, 0xff, 2);
  return inet_pton(AF_INET, text.c_str(), address + 12) == 1 || inet_pton(AF_INET6, text.c_str(), address) == 1;
}

RuleQuestion question_of(const Connection& connection) {
  RuleQuestion question{{}, connection.port, connection.incoming, true, connection.uid};
  read_address(connection.address, question.address);
  return question;
}

/// Whether "ignore,CONDITIONS" ignores.
bool matches(const std::string& conditions, const Connection& connection) {
  Rules rules;
  parse_rules(("ignore" + conditions).c_str(), connection.exe.c_str(), &rules);
  return judge(rules, question_of(connection)) == RuleVerdict::kIgnore;
}

std::string actual(const std::string& kind, const Connection& connection) {
  if (kind == "exe") return connection.exe;
  if (kind == "port") return std::to_string(connection.port);
  if (kind == "addr") return connection.address;
  if (kind == "uid") return std::to_string(connection.uid);
  return connection.incoming ? "in" : "out";
}

}  // namespace

std::string flat_form(const ConfigRule& rule) {
  std::string text = rule.accelerate ? "accelerate" : "ignore";
  for (const auto& [kind, value] : rule.conditions) text += "," + kind + "=" + value;
  return text;
}

std::string flat_form(const std::vector<ConfigRule>& rules) {
  std::string text;
  for (const ConfigRule& rule : rules) text += (text.empty() ? "" : ";") + flat_form(rule);
  return text;
}

std::vector<ConfigRule> rules_of_flat_form(const std::string& text) {
  std::vector<ConfigRule> rules;
  for (const std::string& part : split(text, ';')) {
    if (part.empty()) continue;
    ConfigRule rule;
    rule.where = "MPKLINK_RULES";
    const std::vector<std::string> words = split(part, ',');
    rule.accelerate = words[0] == "accelerate";
    for (std::size_t i = 1; i < words.size(); ++i) {
      const std::size_t at = words[i].find('=');
      rule.conditions.emplace_back(words[i].substr(0, at), at == std::string::npos ? "" : words[i].substr(at + 1));
    }
    rules.push_back(rule);
  }
  return rules;
}

std::string mismatch(const ConfigRule& rule, const Connection& connection) {
  for (const char* kind : {"exe", "port", "addr", "dir", "uid"}) {
    std::string conditions, values;
    for (const auto& [name, value] : rule.conditions) {
      if (name != kind) continue;
      conditions += "," + name + "=" + value;
      values += (values.empty() ? "" : " or ") + value;
    }
    if (!conditions.empty() && !matches(conditions, connection)) {
      return std::string(kind) + " is " + actual(kind, connection) + ", not " + values;
    }
  }
  return {};
}

std::optional<Connection> parse_endpoint(const std::string& text) {
  Connection connection;
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos) return std::nullopt;
  connection.address = text.substr(0, colon);
  const std::string port = text.substr(colon + 1);
  if (connection.address.size() > 2 && connection.address.front() == '[' && connection.address.back() == ']') {
    connection.address = connection.address.substr(1, connection.address.size() - 2);
    if (connection.address.find(':') == std::string::npos) return std::nullopt;
  } else if (connection.address.find(':') != std::string::npos) {
    return std::nullopt;  // ::1:80 is two things
  }
  std::uint8_t bytes[16];
  const bool digits = !port.empty() && port.size() <= 5 && std::all_of(port.begin(), port.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (!read_address(connection.address, bytes) || !digits || std::stoul(port) > 65535) return std::nullopt;
  connection.port = static_cast<std::uint16_t>(std::stoul(port));
  return connection;
}

}  // namespace mpklink
