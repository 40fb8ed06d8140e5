// SPDX-License-Identifier: MIT
// MPKLINK_RULES against a second reading of preload/rules.h's text. Input: the program's path; the rules; then lines "ADDRESS PORT in|out [UID]".
#include <arpa/inet.h>

#include <array>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "preload/rules.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/words.h"

namespace mpklink {
namespace {

using fuzz::number;
using fuzz::split;

bool range(const std::string& text, std::uint64_t max, std::uint64_t value, bool* met) {
  const auto ends = split(text, '-');
  std::uint64_t first = 0, last = 0;
  if (ends.size() > 2 || !number(ends[0], max, &first) || !number(ends.back(), max, &last) || first > last) return false;
  *met = value >= first && value <= last;
  return true;
}

bool pattern(const std::string& p, const std::string& t) {
  std::vector<std::vector<bool>> meets(p.size() + 1, std::vector<bool>(t.size() + 1));
  for (std::size_t i = p.size() + 1; i-- > 0;) {
    for (std::size_t j = t.size() + 1; j-- > 0;) {
      if (i == p.size()) {
        meets[i][j] = j == t.size();
      } else if (p[i] == '*') {
        meets[i][j] = meets[i + 1][j] || (j < t.size() && meets[i][j + 1]);
      } else {
        meets[i][j] = j < t.size() && (p[i] == '?' || p[i] == t[j]) && meets[i + 1][j + 1];
      }
    }
  }
  return meets[0][0];
}

using Address = std::array<std::uint8_t, 16>;

// Bits that an address of this text has; 0: it is none.
unsigned address_of(const std::string& text, Address* out) {
  out->fill(0);
  (*out)[10] = (*out)[11] = 0xff;
  if (inet_pton(AF_INET, text.c_str(), out->data() + 12) == 1) return 32;
  return inet_pton(AF_INET6, text.c_str(), out->data()) == 1 ? 128 : 0;
}

bool network(const std::string& text, const std::uint8_t* address, bool* met) {
  const std::size_t slash = text.find('/');
  Address base;
  const unsigned bits = address_of(text.substr(0, slash), &base);
  std::uint64_t prefix = bits;
  if (bits == 0 || (slash != std::string::npos && !number(text.substr(slash + 1), bits, &prefix))) return false;
  *met = true;
  for (std::uint64_t i = 0; i < 128 - bits + prefix; ++i) {
    if (((base[i / 8] ^ address[i / 8]) >> (7 - i % 8) & 1) != 0) *met = false;
  }
  return true;
}

struct ReadRule {
  bool accelerate = false, good = true, all_unclear = false;
  std::set<std::string> asked, met, unclear;
};

ReadRule read_rule(const std::string& text, const std::string& program, const RuleQuestion& q) {
  ReadRule rule;
  const auto words = split(text, ',');
  rule.accelerate = words[0] == "accelerate";
  rule.good = rule.accelerate || words[0] == "ignore";
  for (std::size_t i = 1; i < words.size(); ++i) {
    const std::size_t equals = words[i].find('=');
    const std::string kind = words[i].substr(0, equals), value = equals == std::string::npos ? "" : words[i].substr(equals + 1);
    bool met = false, good = equals != std::string::npos;
    if (!good || (kind != "exe" && kind != "port" && kind != "uid" && kind != "addr" && kind != "dir")) {
      rule.all_unclear = true;
      continue;
    }
    if (kind == "exe") {
      good = good && !value.empty();
      const std::size_t slash = program.rfind('/');
      met = pattern(value, value.find('/') != std::string::npos || slash == std::string::npos ? program : program.substr(slash + 1));
    } else if (kind == "port") {
      good = good && range(value, 65535, q.port, &met);
    } else if (kind == "uid") {
      good = good && range(value, 0xfffffffe, q.uid, &met);
    } else if (kind == "addr") {
      good = good && network(value, q.address, &met);
    } else {
      good = value == "in" || value == "out";
      met = (value == "in") == q.incoming;
    }
    rule.asked.insert(kind);
    if (good && met) rule.met.insert(kind);
    if (!good) rule.unclear.insert(kind);
    rule.good = rule.good && good;
  }
  rule.good = rule.good && !rule.all_unclear;
  if (!rule.good) rule.accelerate = false;
  for (const std::string& kind : rule.unclear) rule.asked.erase(kind);
  if (rule.all_unclear) rule.asked.clear();
  return rule;
}

// True and the verdict; false: too many for a plain reading, which knows nothing of room.
bool expected(const std::string& text, const std::string& program, const RuleQuestion& q, bool* good, RuleVerdict* verdict) {
  bool decided = false, depends = false;
  *good = true;
  *verdict = RuleVerdict::kAccelerate;
  std::size_t terms = 0;
  for (const std::string& part : split(text, ';')) {
    if (part.empty()) continue;
    ReadRule rule = read_rule(part, program, q);
    terms += split(part, ',').size();
    *good = *good && rule.good;
    if (program.empty() && rule.asked.count("exe") != 0) {
      if (rule.accelerate) continue;
      rule.met.insert("exe");
    }
    const bool open = rule.asked.count("uid") != 0 && !q.uid_known;
    if (open) rule.met.insert("uid");
    bool matches = true;
    for (const std::string& kind : rule.asked) matches = matches && rule.met.count(kind) != 0;
    if (!matches || decided) continue;
    if (open) {
      depends = true;
      continue;
    }
    decided = true;
    *verdict = rule.accelerate ? RuleVerdict::kAccelerate : RuleVerdict::kIgnore;
  }
  if (depends) *verdict = RuleVerdict::kDependsOnUid;
  return terms < Rules::kMax - 1;
}

bool read_question(const std::string& line, RuleQuestion* q) {
  std::istringstream words(line);
  std::string address, direction;
  unsigned port = 0;
  Address bytes;
  if (!(words >> address >> port >> direction) || address_of(address, &bytes) == 0) return false;
  *q = {};
  std::memcpy(q->address, bytes.data(), bytes.size());
  q->port = static_cast<std::uint16_t>(port);
  q->incoming = direction == "in";
  q->uid_known = static_cast<bool>(words >> q->uid);
  if (!q->uid_known) q->uid = 0;
  return true;
}

void check(const std::string& program, const std::string& text, const RuleQuestion& q) {
  static Rules rules;
  const bool good = parse_rules(text.c_str(), program.c_str(), &rules);
  FUZZ_CHECK(rules.count, <=, Rules::kMax);
  const RuleVerdict verdict = judge(rules, q);
  bool wanted_good = false;
  RuleVerdict wanted = RuleVerdict::kAccelerate;
  if (!expected(text, program, q, &wanted_good, &wanted)) return;
  FUZZ_CHECK(good, ==, wanted_good);
  FUZZ_CHECK(static_cast<int>(verdict), ==, static_cast<int>(wanted));
}

}  // namespace
}  // namespace mpklink

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace mpklink;
  const auto lines = split(std::string(reinterpret_cast<const char*>(data), size), '\n');
  if (lines.size() < 2) return 0;
  // An environment has no zeros in it.
  const std::string program(lines[0].c_str()), text(lines[1].c_str());
  RuleQuestion q = {};
  check(program, text, q);
  for (std::size_t i = 2; i < lines.size(); ++i) {
    if (read_question(lines[i], &q)) check(program, text, q);
  }
  return 0;
}
