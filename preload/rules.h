// SPDX-License-Identifier: MIT
// MPKLINK_RULES: which connections are accelerated and which stay on TCP. Pure, bounded, no malloc.
//
//   ignore,port=22,port=6000-6010;accelerate,exe=nginx,dir=in,addr=127.0.0.0/8,uid=33
//
// The first rule that matches decides; none: accelerate. A rule matches when each kind of condition that it has is met by one of its
// values. Port and address are the server's (where connect() went), `dir` is `in` at the end that accepted, `uid` is the peer's user,
// `exe` a pattern with * and ?: of the whole path when it has a slash, else of its last component.
//
// What is not understood must not accelerate what was meant to be left alone: a rule with a mistake ignores, and the kind of condition with
// the mistake (all, when its name is none) is left out of it, so that it can only cover more than was meant. From the first rule that finds no room on, all is ignored.
#pragma once
#include <cstddef>
#include <cstdint>

namespace mpklink {

struct RuleTerm {
  enum Kind : std::uint8_t { kRule, kExe, kPort, kAddress, kUid, kDirection };  // kExe: while reading only
  Kind kind;
  std::uint8_t prefix;        // kAddress: bits that count
  std::uint8_t address[16];   // kAddress: IPv4 as v4-mapped
  std::uint32_t first, last;  // from, to (kDirection: 1 is in); kRule: first is 1 to accelerate
};

// Only those for this program. A term of kind kRule, then its conditions.
struct Rules {
  static constexpr std::size_t kMax = 64;
  RuleTerm terms[kMax];
  std::size_t count;
};

// `program`: the path of the executable; "" when it is not known: then ignore-rules for other programs count, too. False: something was
// not understood.
bool parse_rules(const char* text, const char* program, Rules* rules);

struct RuleQuestion {
  std::uint8_t address[16];
  std::uint16_t port;
  bool incoming;
  bool uid_known;
  std::uint32_t uid;
};
enum class RuleVerdict { kAccelerate, kIgnore, kDependsOnUid };
RuleVerdict judge(const Rules& rules, const RuleQuestion& question);

// * and ?.
bool glob_matches(const char* pattern, std::size_t length, const char* text);

constexpr char kRulesExpected[] = "accelerate or ignore, with ,exe= ,port= ,addr= ,uid= ,dir=, and ; between rules";

}  // namespace mpklink
