// SPDX-License-Identifier: MIT
#include "preload/lifetime.h"
#include "preload/settings.h"

#include <catch2/catch.hpp>
#include <map>
#include <string>
#include <vector>

#include "preload/spin.h"

using namespace mpklink;

namespace {

std::map<std::string, std::string> g_environment;
std::vector<std::string> g_complaints;

const char* get(const char* name) {
  const auto found = g_environment.find(name);
  return found == g_environment.end() ? nullptr : found->second.c_str();
}
void complain(const char* name, const char* value, const char*) {
  g_complaints.push_back(std::string(name) + "=" + value);
}

Settings parse(std::map<std::string, std::string> environment) {
  g_environment = std::move(environment);
  g_complaints.clear();
  return parse_settings(get, complain);
}

}  // namespace

TEST_CASE("settings: defaults", "[settings]") {
  const Settings s = parse({});
  REQUIRE(g_complaints.empty());
  REQUIRE(s.guard == GuardSetting::kAuto);
  REQUIRE(s.warmup == 2);
  REQUIRE(s.spin_us == -1);
  REQUIRE((s.ring_bytes & (s.ring_bytes - 1)) == 0);
  REQUIRE(s.peers == PeerPolicy::kVerified);
  REQUIRE(s.log == LogLevel::kError);
  REQUIRE_FALSE(s.disabled);
}

TEST_CASE("settings: each is read", "[settings]") {
  const Settings s = parse({{"MPKLINK_GUARD", "require"}, {"MPKLINK_WARMUP", "0"}, {"MPKLINK_SPIN_US", "7"},
                            {"MPKLINK_BACKING", "secret"}, {"MPKLINK_FAULT_REPORT", "0"},
                            {"MPKLINK_RING_KIB", "100"}, {"MPKLINK_PEERS", "0,33"}, {"MPKLINK_LOG", "debug"},
                            {"MPKLINK_DISABLE", "1"}, {"MPKLINK_STATS", "/tmp/x"}, {"MPKLINK_PORTS", "80,8000-8100"}});
  REQUIRE(g_complaints.empty());
  REQUIRE(s.guard == GuardSetting::kRequire);
  REQUIRE(s.backing == Backing::kSecret);
  REQUIRE_FALSE(s.fault_report);
  REQUIRE(s.warmup == 0);
  REQUIRE(s.spin_us == 7);
  REQUIRE(s.ring_bytes == 128 * 1024);
  REQUIRE(s.peers == PeerPolicy::kList);
  REQUIRE(s.peer_uid_count == 2);
  REQUIRE(s.peer_uids[1] == 33);
  REQUIRE(s.log == LogLevel::kDebug);
  REQUIRE(s.disabled);
  REQUIRE(std::string(s.stats_path) == "/tmp/x");
  REQUIRE(s.port_allowed(80));
  REQUIRE(s.port_allowed(8050));
  REQUIRE_FALSE(s.port_allowed(81));
}

TEST_CASE("settings: ports denied with !", "[settings]") {
  const Settings s = parse({{"MPKLINK_PORTS", "!22,!6000-6010"}});
  REQUIRE(g_complaints.empty());
  REQUIRE_FALSE(s.port_allowed(22));
  REQUIRE_FALSE(s.port_allowed(6005));
  REQUIRE(s.port_allowed(80));
}

TEST_CASE("settings: rings down to eight bytes", "[settings]") {
  REQUIRE(parse({{"MPKLINK_RING_KIB", "8B"}}).ring_bytes == 8);
  REQUIRE(parse({{"MPKLINK_RING_KIB", "4"}}).ring_bytes == 4096);
}

TEST_CASE("settings: a typo is reported once and the default used", "[settings]") {
  const auto bad = GENERATE(table<std::string, std::string>(
      {{"MPKLINK_GUARD", "yes"}, {"MPKLINK_WARMUP", "-1"}, {"MPKLINK_WARMUP", "two"}, {"MPKLINK_SPIN_US", "5us"},
       {"MPKLINK_RING_KIB", "0"}, {"MPKLINK_RING_KIB", "1M"}, {"MPKLINK_RING_KIB", "99999999"}, {"MPKLINK_LOG", "loud"},
       {"MPKLINK_PORTS", "80-70"}, {"MPKLINK_PORTS", "99999"}, {"MPKLINK_PORTS", "80,"}, {"MPKLINK_PROFILE", "fast"},
       {"MPKLINK_DISABLE", "maybe"}}));
  const Settings s = parse({{std::get<0>(bad), std::get<1>(bad)}});
  REQUIRE(g_complaints == std::vector<std::string>{std::get<0>(bad) + "=" + std::get<1>(bad)});
  REQUIRE(s.ring_bytes == Settings().ring_bytes);
  REQUIRE(s.warmup == Settings().warmup);
  REQUIRE(s.port_allowed(80));
}

TEST_CASE("settings: a typo in the list of users lets nobody more in", "[settings]") {
  const Settings s = parse({{"MPKLINK_PEERS", "0,www-data"}});
  REQUIRE(g_complaints.size() == 1);
  REQUIRE(s.peers == PeerPolicy::kSameUid);
  REQUIRE(parse({{"MPKLINK_PEERS", "4294967296"}}).peers == PeerPolicy::kSameUid);  // not root
}

TEST_CASE("settings: what is said wins over the profile", "[settings]") {
  REQUIRE(parse({{"MPKLINK_PROFILE", "safe"}}).peers == PeerPolicy::kSameUid);
  REQUIRE(parse({{"MPKLINK_PROFILE", "safe"}, {"MPKLINK_PEERS", "verified"}}).peers == PeerPolicy::kVerified);
  REQUIRE(parse({{"MPKLINK_PROFILE", "latency"}}).warmup == 0);
  REQUIRE(parse({{"MPKLINK_PROFILE", "latency"}, {"MPKLINK_WARMUP", "9"}}).warmup == 9);
}

TEST_CASE("lifetime: three short connections in a row make the next ones late, a long one makes them early again", "[lifetime]") {
  REQUIRE_FALSE(connections_are_short(4711));
  learn_lifetime(4711, 10);
  learn_lifetime(4711, 0);
  REQUIRE_FALSE(connections_are_short(4711));
  learn_lifetime(4711, kShortOperations - 1);
  REQUIRE(connections_are_short(4711));
  learn_lifetime(4711, kShortOperations);
  REQUIRE_FALSE(connections_are_short(4711));
}

TEST_CASE("lifetime: ports do not speak for one another", "[lifetime]") {
  for (int i = 0; i < 1000; ++i) learn_lifetime(80, 2);
  REQUIRE(connections_are_short(80));
  REQUIRE_FALSE(connections_are_short(80 + 256));  // the same entry
  learn_lifetime(80 + 256, 2);
  REQUIRE_FALSE(connections_are_short(80));
  REQUIRE_FALSE(connections_are_short(80 + 256));
}

TEST_CASE("settings: a warm-up that is given is not learnt", "[settings]") {
  REQUIRE(parse({}).warmup_learns);
  REQUIRE_FALSE(parse({{"MPKLINK_WARMUP", "2"}}).warmup_learns);
  REQUIRE_FALSE(parse({{"MPKLINK_PROFILE", "latency"}}).warmup_learns);
}

TEST_CASE("spin: a number of microseconds is taken as it is", "[spin]") {
  SpinHistory history = {};
  REQUIRE(spin_budget_ns(0, &history) == 0);
  REQUIRE(spin_budget_ns(20, &history) == 20000);
}

TEST_CASE("spin: a little longer than short waits are", "[spin]") {
  SpinHistory history = {};
  REQUIRE(spin_budget_ns(-1, &history) == kFirstSpinNs);
  for (int i = 0; i < 50; ++i) learn_wait(&history, 1000, true);
  REQUIRE(spin_budget_ns(-1, &history) == 6000);
  learn_wait(&history, 5000000000u, false);  // five idle seconds do not decide
  REQUIRE(spin_budget_ns(-1, &history) == kSpinMaxNs);
  learn_wait(&history, 1000, false);
  REQUIRE(spin_budget_ns(-1, &history) == 6000);
}

// Of `waits` as long as `wait_ns`, how many are spun for.
int tries_of(SpinHistory* history, int waits, std::uint32_t wait_ns) {
  int tries = 0;
  for (int i = 0; i < waits; ++i) {
    const std::uint32_t budget = spin_budget_ns(-1, history);
    if (budget != 0) ++tries;
    learn_wait(history, wait_ns, budget >= wait_ns);
  }
  return tries;
}

TEST_CASE("spin: a slow peer is spun for once in kSkipMax + 1 waits, and found again when it is fast", "[spin]") {
  SpinHistory history = {};
  tries_of(&history, 1000, 300000);
  REQUIRE(tries_of(&history, 10 * static_cast<int>(kSkipMax + 1), 300000) == 10);
  learn_wait(&history, kWorthNs, false);  // asleep, but short
  REQUIRE(spin_budget_ns(-1, &history) != 0);
}

TEST_CASE("spin: a peer whose answers take longer than a wake-up is not spun for, though a try would meet it", "[spin]") {
  SpinHistory history = {};
  tries_of(&history, 1000, kWorthNs * 2);
  REQUIRE(tries_of(&history, 1000, kWorthNs * 2) <= 1000 * 2 / static_cast<int>(kSkipMax));
}

TEST_CASE("spin: two that put each other to sleep find back", "[spin]") {
  SpinHistory history = {};
  tries_of(&history, 1000, 300000);
  while (spin_budget_ns(-1, &history) == 0) learn_wait(&history, kWorthNs + 5000, false);
  learn_wait(&history, kWorthNs + 5000, true);  // the peer had to wake
  REQUIRE(spin_budget_ns(-1, &history) != 0);   // and is awake now
  learn_wait(&history, 1000, true);
  REQUIRE(tries_of(&history, 100, 1000) == 100);
}
