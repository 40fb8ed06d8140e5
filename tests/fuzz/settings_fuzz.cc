// SPDX-License-Identifier: MIT
// The settings parser against a second one, written to the table in README.md and nothing else. Input: a line per setting, its name
// without MPKLINK_, "=", its value.
#include <cctype>
#include <map>
#include <string>
#include <vector>

#include "preload/settings.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/words.h"

namespace mpklink {
namespace {

using fuzz::number;
using fuzz::split;

using Environment = std::map<std::string, std::string>;

Environment g_environment;
std::map<std::string, int> g_complaints;

const char* get(const char* name) {
  const auto found = g_environment.find(name);
  return found == g_environment.end() ? nullptr : found->second.c_str();
}
void complain(const char* name, const char* value, const char* expected) {
  FUZZ_TRUE(g_environment[name] == value);  // what the user wrote, whole
  FUZZ_TRUE(*expected != '\0');
  ++g_complaints[name];
}

Settings parse(const Environment& environment) {
  g_environment = environment;
  g_complaints.clear();
  return parse_settings(get, complain);
}

std::string value_of(const Environment& environment, const char* name) {
  const auto found = environment.find(std::string("MPKLINK_") + name);
  return found == environment.end() ? "" : found->second;
}

// Whether it was complained of is as it should be.
void told(const char* name, const std::string& value, bool good) {
  const auto found = g_complaints.find(std::string("MPKLINK_") + name);
  FUZZ_CHECK(found == g_complaints.end() ? 0 : found->second, ==, value.empty() || good ? 0 : 1);
}

// The word's place in the list; `otherwise` when unset or unknown.
unsigned choice(const Environment& e, const char* name, const std::vector<std::string>& words, unsigned otherwise) {
  const std::string value = value_of(e, name);
  for (unsigned i = 0; i < words.size(); ++i) {
    if (words[i] == value) return told(name, value, true), i;
  }
  told(name, value, false);
  return otherwise;
}

void check_ring(const Environment& e, const Settings& s) {
  std::string value = value_of(e, "RING_KIB");
  const std::string digits = !value.empty() && value.back() == 'B' ? value.substr(0, value.size() - 1) : value;
  const bool bytes = digits != value;
  std::uint64_t n = 0;
  const bool good = number(digits, bytes ? 65536 * 1024 : 65536, &n) && n != 0;
  told("RING_KIB", value, good);
  if (!good) {
    FUZZ_CHECK(s.ring_bytes, ==, Settings().ring_bytes);
    return;
  }
  const std::uint64_t wanted = bytes ? n : n * 1024;
  FUZZ_TRUE((s.ring_bytes & (s.ring_bytes - 1)) == 0 && s.ring_bytes >= 8);
  FUZZ_CHECK(s.ring_bytes, >=, wanted);
  FUZZ_TRUE(s.ring_bytes / 2 < wanted || s.ring_bytes == 8);
  FUZZ_CHECK(s.ring_bytes, <=, std::uint64_t{64} << 20);
}

void check_peers(const Environment& e, const Settings& s, bool safe) {
  const std::string value = value_of(e, "PEERS");
  if (value.empty()) {
    FUZZ_TRUE(s.peers == (safe ? PeerPolicy::kSameUid : PeerPolicy::kVerified));
    return;
  }
  const std::map<std::string, PeerPolicy> words = {
      {"verified", PeerPolicy::kVerified}, {"same-uid", PeerPolicy::kSameUid}, {"any", PeerPolicy::kAny}};
  const auto word = words.find(value);
  std::vector<std::uint64_t> uids;
  bool good = word != words.end();
  if (!good) {
    const auto parts = split(value, ',');
    good = parts.size() <= Settings::kListMax;
    for (const std::string& part : parts) {
      std::uint64_t uid = 0;
      good = number(part, 0xfffffffe, &uid) && good;  // (uid_t)-1 is nobody's (setreuid(2))
      uids.push_back(uid);
    }
  }
  told("PEERS", value, good);
  if (!good) {
    FUZZ_TRUE(s.peers == PeerPolicy::kSameUid);  // a typo lets nobody more in
  } else if (word != words.end()) {
    FUZZ_TRUE(s.peers == word->second);
  } else {
    FUZZ_TRUE(s.peers == PeerPolicy::kList);
    FUZZ_CHECK(s.peer_uid_count, ==, uids.size());
    for (std::size_t i = 0; i < uids.size(); ++i) FUZZ_CHECK(s.peer_uids[i], ==, uids[i]);
  }
}

struct Range {
  std::uint64_t first, last;
  bool allow;
};

bool read_ports(const std::string& value, std::vector<Range>* ranges) {
  for (std::string part : split(value, ',')) {
    const bool allow = part.empty() || part[0] != '!';
    if (!allow) part.erase(0, 1);
    const auto ends = split(part, '-');
    Range range = {0, 0, allow};
    if (ends.size() > 2 || !number(ends[0], 65535, &range.first) || !number(ends.back(), 65535, &range.last)) return false;
    if (range.first > range.last) return false;
    ranges->push_back(range);
  }
  return ranges->size() <= Settings::kListMax;
}

bool allowed(const std::vector<Range>& ranges, std::uint64_t port) {
  bool only = false;
  for (const Range& r : ranges) {
    if (port >= r.first && port <= r.last) return r.allow;
    only = only || r.allow;
  }
  return !only;
}

void check_ports(const Environment& e, const Settings& s) {
  const std::string value = value_of(e, "PORTS");
  std::vector<Range> ranges;
  const bool good = !value.empty() && read_ports(value, &ranges);
  told("PORTS", value, good);
  if (!good) ranges.clear();
  std::vector<std::uint64_t> ports = {0, 1, 80, 65535};
  for (const Range& r : ranges) ports.insert(ports.end(), {r.first, r.last, r.first - 1, r.last + 1});
  for (const std::uint64_t port : ports) {
    if (port <= 65535) FUZZ_CHECK(s.port_allowed(static_cast<std::uint16_t>(port)), ==, allowed(ranges, port));
  }
}

void check_numbers(const Environment& e, const Settings& s, unsigned profile) {
  const std::string warmup = value_of(e, "WARMUP");
  std::uint64_t n = 0;
  const bool good = number(warmup, 1000000, &n);
  told("WARMUP", warmup, good);
  FUZZ_CHECK(s.warmup, ==, good ? n : profile == 0 ? 8u : profile == 2 ? 0u : Settings().warmup);
  FUZZ_CHECK(s.warmup_learns, ==, !good && profile != 2);
  const std::string spin = value_of(e, "SPIN_US");
  const bool number_given = number(spin, 1000000, &n);
  told("SPIN_US", spin, number_given || spin == "auto");
  const std::int64_t of_profile = profile == 0 ? 0 : profile == 2 ? kSpinMaxUs : -1;
  FUZZ_CHECK(s.spin_us, ==, number_given ? static_cast<std::int64_t>(n) : spin == "auto" ? -1 : of_profile);
}

void check(const Environment& e, const Settings& s) {
  const unsigned profile = choice(e, "PROFILE", {"safe", "balanced", "latency"}, 1);
  FUZZ_CHECK(static_cast<unsigned>(s.guard), ==, choice(e, "GUARD", {"auto", "pkey", "mprotect", "off", "require"}, 0));
  FUZZ_CHECK(static_cast<unsigned>(s.log), ==, choice(e, "LOG", {"off", "error", "warn", "info", "debug"}, 1));
  FUZZ_CHECK(static_cast<unsigned>(s.backing), ==, choice(e, "BACKING", {"memfd", "secret"}, 0));
  FUZZ_CHECK(static_cast<unsigned>(s.fault_report), ==, choice(e, "FAULT_REPORT", {"0", "1"}, 1));
  check_ring(e, s);
  check_numbers(e, s, profile);
  check_peers(e, s, profile == 0);
  check_ports(e, s);
  const std::string disable = value_of(e, "DISABLE");
  told("DISABLE", disable, disable == "0" || disable == "1");
  FUZZ_CHECK(s.disabled, ==, !disable.empty() && disable != "0");
  const std::string stats = value_of(e, "STATS");
  told("STATS", stats, stats.size() < sizeof s.stats_path);
  FUZZ_TRUE(stats.size() < sizeof s.stats_path ? stats == s.stats_path : s.stats_path[0] == '\0');
}

// The settings as an environment that says all of them.
Environment print(const Settings& s) {
  static const char* const kGuards[] = {"auto", "pkey", "mprotect", "off", "require"};
  static const char* const kLevels[] = {"off", "error", "warn", "info", "debug"};
  static const char* const kPeers[] = {"verified", "same-uid", "", "any"};
  Environment e;
  e["MPKLINK_GUARD"] = kGuards[static_cast<unsigned>(s.guard)];
  e["MPKLINK_LOG"] = kLevels[static_cast<unsigned>(s.log)];
  e["MPKLINK_BACKING"] = s.backing == Backing::kSecret ? "secret" : "memfd";
  e["MPKLINK_FAULT_REPORT"] = s.fault_report ? "1" : "0";
  if (!s.warmup_learns) e["MPKLINK_WARMUP"] = std::to_string(s.warmup);
  e["MPKLINK_SPIN_US"] = s.spin_us < 0 ? "auto" : std::to_string(s.spin_us);
  e["MPKLINK_RING_KIB"] = std::to_string(s.ring_bytes) + "B";
  std::string list = kPeers[static_cast<unsigned>(s.peers)];
  for (std::size_t i = 0; s.peers == PeerPolicy::kList && i < s.peer_uid_count; ++i) {
    list += (i == 0 ? "" : ",") + std::to_string(s.peer_uids[i]);
  }
  e["MPKLINK_PEERS"] = list;
  list.clear();
  for (std::size_t i = 0; i < s.port_count; ++i) {
    const PortRange& r = s.ports[i];
    list += std::string(i == 0 ? "" : ",") + (r.allow ? "" : "!") + std::to_string(r.first) + "-" + std::to_string(r.last);
  }
  e["MPKLINK_PORTS"] = list;
  e["MPKLINK_DISABLE"] = s.disabled ? "1" : "0";
  e["MPKLINK_STATS"] = s.stats_path;
  return e;
}

void same(const Settings& a, const Settings& b) {
  FUZZ_TRUE(print(a) == print(b));
}

}  // namespace
}  // namespace mpklink

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace mpklink;
  Environment environment;
  for (const std::string& line : split(std::string(reinterpret_cast<const char*>(data), size), '\n')) {
    const std::string whole(line.c_str());  // an environment has no zeros in it
    const std::size_t at = whole.find('=');
    if (at != std::string::npos) environment["MPKLINK_" + whole.substr(0, at)] = whole.substr(at + 1);
  }
  const Settings settings = parse(environment);
  check(environment, settings);
  const Settings again = parse(print(settings));
  FUZZ_TRUE(g_complaints.empty());
  same(settings, again);
  return 0;
}
