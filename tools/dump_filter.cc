// SPDX-License-Identifier: MIT
#include "tools/dump_filter.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "tools/command_support.h"

namespace mpklink {
namespace {

int number(const std::string& word, int most, const char* what) {
  char* end = nullptr;
  const long value = strtol(word.c_str(), &end, 10);
  if (word.empty() || *end != '\0' || value < 1 || value > most) throw UsageError(fmt::format("'{}' is no {}", printable(word), what));
  return static_cast<int>(value);
}

DumpFilter::Addresses addresses(const std::string& word) {
  if (word == "localhost") return {addresses("127.0.0.1")[0], addresses("::1")[0]};
  std::array<std::uint8_t, 16> address{};
  const std::string bare = word.size() > 2 && word.front() == '[' && word.back() == ']' ? word.substr(1, word.size() - 2) : word;
  if (inet_pton(AF_INET, bare.c_str(), address.data() + 12) == 1) {
    address[10] = address[11] = 0xff;
  } else if (inet_pton(AF_INET6, bare.c_str(), address.data()) != 1) {
    throw UsageError(fmt::format("'{}' is no address; write 127.0.0.1, ::1 or localhost", printable(word)));
  }
  return {address};
}

bool is_one_of(const std::uint8_t (&address)[16], const DumpFilter::Addresses& wanted) {
  return std::any_of(wanted.begin(), wanted.end(), [&](const auto& w) { return memcmp(address, w.data(), w.size()) == 0; });
}

void add_condition(DumpFilter* filter, const std::string& word, const std::string& value) {
  if (word == "port") {
    filter->ports.push_back(number(value, 65535, "port"));
  } else if (word == "host") {
    filter->hosts.push_back(addresses(value));
  } else if (word == "pid") {
    if (filter->pid != 0) throw UsageError("there can be one pid only; leave it out to see all processes");
    filter->pid = number(value, 1 << 22, "process id");
  } else {
    throw UsageError(fmt::format("'{}' is no condition; a filter is made of `port N`, `host ADDRESS` and `pid N`, joined by `and`", printable(word)));
  }
}

}  // namespace

bool DumpFilter::matches(const TapRecord& record) const {
  for (int port : ports) {
    if (record.local_port != port && record.peer_port != port) return false;
  }
  return std::all_of(hosts.begin(), hosts.end(), [&](const Addresses& host) { return is_one_of(record.local, host) || is_one_of(record.peer, host); });
}

DumpFilter parse_dump_filter(const std::vector<std::string>& words) {
  // A filter may come as one argument in quotes, too.
  std::vector<std::string> split;
  for (const std::string& word : words) {
    std::istringstream stream(word);
    for (std::string part; stream >> part;) split.push_back(part);
  }
  DumpFilter filter;
  for (std::size_t i = 0; i < split.size(); ++i) {
    if (i > 0 && split[i] == "and" && i + 1 < split.size()) ++i;
    if (i + 1 >= split.size()) throw UsageError(fmt::format("something is missing after '{}' in the filter", printable(split[i])));
    add_condition(&filter, split[i], split[i + 1]);
    ++i;
  }
  return filter;
}

}  // namespace mpklink
