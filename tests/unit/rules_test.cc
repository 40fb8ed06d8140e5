// SPDX-License-Identifier: MIT
#include "preload/rules.h"

#include <arpa/inet.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <string>

using namespace mpklink;

namespace {

constexpr RuleVerdict kGo = RuleVerdict::kAccelerate, kStay = RuleVerdict::kIgnore, kOpen = RuleVerdict::kDependsOnUid;

struct Case {
  const char* address = "127.0.0.1";
  std::uint16_t port = 80;
  bool incoming = false;
  int uid = -1;  // -1: not known
};

RuleQuestion question_of(const Case& c) {
  RuleQuestion question = {{}, c.port, c.incoming, c.uid >= 0, c.uid >= 0 ? static_cast<std::uint32_t>(c.uid) : 0};
  question.address[10] = question.address[11] = 0xff;
  if (inet_pton(AF_INET, c.address, question.address + 12) != 1) REQUIRE(inet_pton(AF_INET6, c.address, question.address) == 1);
  return question;
}

bool g_good;

RuleVerdict verdict(const std::string& text, const Case& c, const char* program = "/usr/sbin/nginx") {
  static Rules rules;
  std::memset(&rules, 0xa5, sizeof rules);
  g_good = parse_rules(text.c_str(), program, &rules);
  REQUIRE(rules.count <= Rules::kMax);
  return judge(rules, question_of(c));
}

RuleVerdict good(const std::string& text, const Case& c = {}, const char* program = "/usr/sbin/nginx") {
  const RuleVerdict v = verdict(text, c, program);
  INFO(text);
  REQUIRE(g_good);
  return v;
}

RuleVerdict bad(const std::string& text, const Case& c = {}, const char* program = "/usr/sbin/nginx") {
  const RuleVerdict v = verdict(text, c, program);
  INFO(text);
  REQUIRE_FALSE(g_good);
  return v;
}

Case port(std::uint16_t n) { return {"127.0.0.1", n, false, -1}; }
Case at(const char* address) { return {address, 80, false, -1}; }
Case uid(int n) { return {"127.0.0.1", 80, false, n}; }

}  // namespace

TEST_CASE("rules: none accelerate", "[rules]") {
  REQUIRE(good("") == kGo);
  REQUIRE(good(";") == kGo);
  REQUIRE(good("ignore,port=22") == kGo);
}

TEST_CASE("rules: the first that matches decides", "[rules]") {
  REQUIRE(good("accelerate,port=80;ignore") == kGo);
  REQUIRE(good("ignore;accelerate,port=80") == kStay);
  REQUIRE(good("ignore,port=1;accelerate,port=80;ignore,port=80;") == kGo);
}

TEST_CASE("rules: conditions of one kind are alternatives, kinds must all be met", "[rules]") {
  const std::string rule = "ignore,port=22,port=6000-6010,dir=out";
  REQUIRE(good(rule, port(22)) == kStay);
  REQUIRE(good(rule, port(6000)) == kStay);
  REQUIRE(good(rule, port(6010)) == kStay);
  REQUIRE(good(rule, port(6011)) == kGo);
  REQUIRE(good(rule, port(5999)) == kGo);
  REQUIRE(good(rule, {"127.0.0.1", 22, true, -1}) == kGo);
  REQUIRE(good("ignore,dir=in", {"127.0.0.1", 22, true, -1}) == kStay);
  REQUIRE(good("ignore,dir=in,dir=out") == kStay);
}

TEST_CASE("rules: networks", "[rules]") {
  REQUIRE(good("ignore,addr=127.0.0.0/8", at("127.255.0.1")) == kStay);
  REQUIRE(good("ignore,addr=127.0.0.0/8", at("126.255.255.255")) == kGo);
  REQUIRE(good("ignore,addr=126.0.0.0/7", at("127.0.0.1")) == kStay);
  REQUIRE(good("ignore,addr=127.0.0.1", at("127.0.0.2")) == kGo);
  REQUIRE(good("ignore,addr=0.0.0.0/0", at("10.1.2.3")) == kStay);
  REQUIRE(good("ignore,addr=0.0.0.0/0", at("::1")) == kGo);
  REQUIRE(good("ignore,addr=::/0", at("10.1.2.3")) == kStay);
  REQUIRE(good("ignore,addr=::1", at("::1")) == kStay);
  REQUIRE(good("ignore,addr=fd00::/9", at("fd7f::1")) == kStay);
  REQUIRE(good("ignore,addr=fd00::/9", at("fd80::1")) == kGo);
}

TEST_CASE("rules: programs by name or path", "[rules]") {
  REQUIRE(good("ignore,exe=nginx") == kStay);
  REQUIRE(good("ignore,exe=ngin") == kGo);
  REQUIRE(good("ignore,exe=ng*") == kStay);
  REQUIRE(good("ignore,exe=?ginx") == kStay);
  REQUIRE(good("ignore,exe=*x*n*") == kGo);
  REQUIRE(good("ignore,exe=/usr/*/nginx") == kStay);
  REQUIRE(good("ignore,exe=/usr/*") == kStay);
  REQUIRE(good("ignore,exe=/nginx") == kGo);
  REQUIRE(good("ignore,exe=redis,exe=nginx") == kStay);
  REQUIRE(good("accelerate,exe=redis;ignore", {}, "/bin/redis") == kGo);
  REQUIRE(good("accelerate,exe=redis;ignore") == kStay);
}

TEST_CASE("rules: an executable that is not known may be any, as far as that keeps it on TCP", "[rules]") {
  REQUIRE(good("ignore,exe=redis", {}, "") == kStay);
  REQUIRE(good("accelerate,exe=redis;ignore", {}, "") == kStay);
  REQUIRE(good("accelerate,exe=*;ignore", {}, "") == kStay);
}

TEST_CASE("rules: rules for other programs take no room", "[rules]") {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += "ignore,exe=redis,port=" + std::to_string(i) + ";";
  REQUIRE(good(text + "ignore,port=80") == kStay);
  REQUIRE(good(text) == kGo);
}

TEST_CASE("rules: the peer's user is known later", "[rules]") {
  REQUIRE(good("ignore,uid=33") == kOpen);
  REQUIRE(good("ignore,uid=33", uid(33)) == kStay);
  REQUIRE(good("ignore,uid=33", uid(34)) == kGo);
  REQUIRE(good("ignore,uid=1000-1999", uid(1500)) == kStay);
  REQUIRE(good("ignore,uid=33,port=22") == kGo);          // whatever the user
  REQUIRE(good("ignore,port=80;accelerate,uid=33") == kStay);
  REQUIRE(good("accelerate,uid=33;ignore") == kOpen);
  REQUIRE(good("accelerate,uid=33;ignore", uid(33)) == kGo);
  REQUIRE(good("accelerate,uid=33;ignore", uid(0)) == kStay);
}

TEST_CASE("rules: what is not understood stays on TCP, and only that", "[rules]") {
  // A kind with a mistake is left out: the rule covers more.
  REQUIRE(bad("ignore,port=2x", port(80)) == kStay);
  REQUIRE(bad("ignore,port=22,port=6000-60x", port(80)) == kStay);
  REQUIRE(bad("ignore,prot=22", port(80)) == kStay);
  REQUIRE(bad("ignore,port", port(80)) == kStay);
  REQUIRE(bad("ignore,port=22,prot=80", port(80)) == kStay);  // may have been meant for any kind
  REQUIRE(bad("ignore,exe=redis,ex=nginx", port(80)) == kStay);
  REQUIRE(bad("ignore,exe=", port(80)) == kStay);
  REQUIRE(bad("ignore,addr=127.0.0.1/33", at("10.0.0.1")) == kStay);
  REQUIRE(bad("ignore,uid=root", uid(5)) == kStay);
  REQUIRE(bad("ignore,dir=both") == kStay);
  // What is understood still narrows it.
  REQUIRE(bad("ignore,port=22,dir=both", port(80)) == kGo);
  REQUIRE(bad("ignore,port=22,dir=both", port(22)) == kStay);
  REQUIRE(bad("ignore,exe=redis,port=x") == kGo);
  // A rule with a mistake ignores, whatever it says.
  REQUIRE(bad("accelerate,port=80,dir=up") == kStay);
  REQUIRE(bad("ignroe,port=80") == kStay);
  REQUIRE(bad("ignroe,port=22") == kGo);
  REQUIRE(bad("Ignore") == kStay);
  REQUIRE(bad("ignore, port=22", port(80)) == kStay);
  // Rules before it hold.
  REQUIRE(bad("accelerate,port=80;x") == kGo);
}

TEST_CASE("rules: numbers have limits", "[rules]") {
  for (const char* text : {"ignore,port=65536", "ignore,port=2-1", "ignore,port=-1", "ignore,port=1-", "ignore,port=", "ignore,uid=4294967295",
                           "ignore,port=1-2-3", "ignore,port=99999999999999999999", "ignore,addr=1.2.3", "ignore,addr=::1/129", "ignore,addr=",
                           "ignore,addr=1.2.3.4/", "ignore,addr=111111111111111111111111111111111111111111111111111"}) {
    REQUIRE(bad(text, {"10.9.8.7", 9, false, 9}) == kStay);
  }
  REQUIRE(good("ignore,port=0-65535,uid=4294967294", uid(1)) == kGo);
}

TEST_CASE("rules: from the first without room on, all is ignored", "[rules]") {
  std::string text = "accelerate,port=80;";
  for (std::size_t i = 0; i < Rules::kMax; ++i) text += "accelerate,port=1;";
  REQUIRE(bad(text, port(80)) == kGo);
  REQUIRE(bad(text, port(81)) == kStay);
  std::string one = "ignore";
  for (std::size_t i = 0; i < Rules::kMax; ++i) one += ",port=1";
  REQUIRE(bad(one, port(81)) == kStay);
  std::string most = "ignore";  // the head, and all but the last place
  for (std::size_t i = 0; i < Rules::kMax - 2; ++i) most += ",port=1";
  REQUIRE(good(most, port(81)) == kGo);
}

TEST_CASE("rules: rules without conditions stay within their room, too", "[rules]") {
  for (const std::size_t n : {Rules::kMax - 2, Rules::kMax - 1, Rules::kMax, Rules::kMax + 1, 4 * Rules::kMax}) {
    std::string text;
    for (std::size_t i = 0; i < n; ++i) text += "accelerate;";
    struct {
      Rules rules;
      std::uint64_t behind[64];
    } memory = {};
    REQUIRE(parse_rules(text.c_str(), "/bin/x", &memory.rules) == (n < Rules::kMax));
    REQUIRE(memory.rules.count == (n < Rules::kMax ? n : Rules::kMax));
    for (const std::uint64_t word : memory.behind) REQUIRE(word == 0);
    if (n >= Rules::kMax) REQUIRE(memory.rules.terms[Rules::kMax - 1].first == 0);
  }
}

TEST_CASE("rules: patterns", "[rules]") {
  const auto matches = [](const char* pattern, const char* text) { return glob_matches(pattern, std::strlen(pattern), text); };
  REQUIRE(matches("", ""));
  REQUIRE(matches("*", ""));
  REQUIRE(matches("**", "abc"));
  REQUIRE(matches("a*b*c", "aXbYbZc"));
  REQUIRE_FALSE(matches("a*b*c", "aXbYbZ"));
  REQUIRE_FALSE(matches("a*", "ba"));
  REQUIRE_FALSE(matches("?", ""));
  REQUIRE_FALSE(matches("", "a"));
  REQUIRE(matches("[a]", "[a]"));  // no sets
  REQUIRE(matches("*aab", "aaaaab"));
}
