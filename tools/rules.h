// SPDX-License-Identifier: MIT
// Rules as a person writes them, the flat form that the library reads (preload/rules.h), and which one wins. What matches is asked
// of the library's own code.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace mpklink {

struct ConfigRule {
  bool accelerate = false;
  std::vector<std::pair<std::string, std::string>> conditions;  // "port" -> "6000-6010", in the flat form's words; several of a kind: any
  std::string where;  // "FILE:LINE", or "MPKLINK_RULES"
};

/// "ignore,port=22"
std::string flat_form(const ConfigRule& rule);
/// What MPKLINK_RULES is to be.
std::string flat_form(const std::vector<ConfigRule>& rules);
/// The reverse. Mistakes come out as they went in: check with value_problem().
std::vector<ConfigRule> rules_of_flat_form(const std::string& text);

/// A connection, as one of its ends sees it.
struct Connection {
  std::string exe;       // a path, or a name
  std::string address;   // the server's, IPv4 or IPv6
  std::uint16_t port = 0;
  bool incoming = false;
  std::uint32_t uid = 0;
};

/// Empty: the rule matches. Else the first kind of condition that does not: "port is 80, not 22 or 6000-6010".
std::string mismatch(const ConfigRule& rule, const Connection& connection);

/// "127.0.0.1:80", "[::1]:80".
std::optional<Connection> parse_endpoint(const std::string& text);

}  // namespace mpklink
