// SPDX-License-Identifier: MIT
#include "preload/rules.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>

namespace mpklink {
namespace {

struct Word {
  const char* at;
  std::size_t length;

  bool is(const char* text) const { return strlen(text) == length && memcmp(at, text, length) == 0; }
  // The value of "key=value".
  bool value_of(const char* key, Word* value) const {
    const std::size_t n = strlen(key);
    if (length <= n || at[n] != '=' || memcmp(at, key, n) != 0) return false;
    *value = {at + n + 1, length - n - 1};
    return true;
  }
  // All before the first `c`, which it takes out together with that; false: there is none.
  bool cut(char c, Word* head) {
    const void* found = memchr(at, c, length);
    *head = *this;
    if (found == nullptr) return false;
    head->length = static_cast<std::size_t>(static_cast<const char*>(found) - at);
    at += head->length + 1;
    length -= head->length + 1;
    return true;
  }
};

bool read_number(const Word& word, std::uint32_t max, std::uint32_t* out) {
  std::uint64_t n = 0;
  for (std::size_t i = 0; i < word.length; ++i) {
    if (word.at[i] < '0' || word.at[i] > '9') return false;
    n = n * 10 + static_cast<std::uint64_t>(word.at[i] - '0');
    if (n > max) return false;
  }
  *out = static_cast<std::uint32_t>(n);
  return word.length > 0;
}

bool read_range(Word value, std::uint32_t max, RuleTerm* term) {
  Word first;
  const bool range = value.cut('-', &first);
  if (!read_number(first, max, &term->first)) return false;
  term->last = term->first;
  return !range || (read_number(value, max, &term->last) && term->first <= term->last);
}

bool read_address(Word value, RuleTerm* term) {
  Word address;
  char text[INET6_ADDRSTRLEN];
  const bool has_prefix = value.cut('/', &address);
  if (address.length >= sizeof text) return false;
  memcpy(text, address.at, address.length);
  text[address.length] = '\0';
  memset(term->address + 10, 0xff, 2);  // v4-mapped; an IPv6 address is written over it
  const bool v4 = inet_pton(AF_INET, text, term->address + 12) == 1;
  if (!v4 && inet_pton(AF_INET6, text, term->address) != 1) return false;
  const std::uint32_t bits = v4 ? 32 : 128;
  std::uint32_t prefix = bits;
  if (has_prefix && !read_number(value, bits, &prefix)) return false;
  term->prefix = static_cast<std::uint8_t>(128 - bits + prefix);
  return true;
}

// Whether the pattern is for this program.
bool read_exe(const Word& pattern, const char* program, RuleTerm* term) {
  const char* slash = strrchr(program, '/');
  const bool whole = slash == nullptr || memchr(pattern.at, '/', pattern.length) != nullptr;
  term->first = glob_matches(pattern.at, pattern.length, whole ? program : slash + 1);
  return pattern.length > 0;
}

// Reads "port=80" to *term, whose kind stays kRule when there is no such condition. False: a mistake.
bool read_term(const Word& word, const char* program, RuleTerm* term) {
  constexpr std::uint32_t kUidMax = 0xfffffffe;  // above it is nobody's: (uid_t)-1
  static const char kKinds[][5] = {"exe", "port", "addr", "uid", "dir"};  // as the enumerators behind kRule
  *term = {};
  Word value = {};
  for (unsigned i = 0; i < sizeof kKinds / sizeof *kKinds; ++i) {
    if (word.value_of(kKinds[i], &value)) term->kind = static_cast<RuleTerm::Kind>(i + 1);
  }
  switch (term->kind) {
    case RuleTerm::kExe: return read_exe(value, program, term);
    case RuleTerm::kPort: return read_range(value, 65535, term);
    case RuleTerm::kAddress: return read_address(value, term);
    case RuleTerm::kUid: return read_range(value, kUidMax, term);
    case RuleTerm::kDirection:
      term->first = term->last = value.is("in");
      return term->first != 0 || value.is("out");
    default: return false;
  }
}

// A rule was read to terms[start...]; `unclear` has the bits of the kinds with a mistake, kRule's for its action. Leaves out those
// conditions, and the whole rule when it is for other programs.
void finish_rule(Rules* rules, std::size_t start, std::uint32_t unclear, bool program_known) {
  RuleTerm* head = &rules->terms[start];
  if (unclear != 0) head->first = 0;
  std::size_t kept = start + 1;
  bool for_others = false, for_us = !program_known && head->first == 0;
  for (std::size_t i = kept; i < rules->count; ++i) {
    const RuleTerm& term = rules->terms[i];
    if ((unclear >> term.kind & 1) != 0) continue;
    if (term.kind == RuleTerm::kExe) {
      for_others = true;
      for_us = for_us || (program_known && term.first != 0);
    } else {
      rules->terms[kept++] = term;
    }
  }
  rules->count = for_others && !for_us ? start : kept;
}

bool address_matches(const RuleTerm& term, const std::uint8_t* address) {
  for (unsigned bit = 0; bit < term.prefix; bit += 8) {
    const unsigned left = term.prefix - bit;
    if ((term.address[bit / 8] ^ address[bit / 8]) >> (left < 8 ? 8 - left : 0) != 0) return false;
  }
  return true;
}

bool term_matches(const RuleTerm& term, const RuleQuestion& q) {
  if (term.kind == RuleTerm::kAddress) return address_matches(term, q.address);
  const std::uint32_t value = term.kind == RuleTerm::kPort ? q.port : term.kind == RuleTerm::kUid ? q.uid : q.incoming;
  return value >= term.first && value <= term.last;
}

}  // namespace

bool glob_matches(const char* pattern, std::size_t length, const char* text) {
  const char* const end = pattern + length;
  const char* star = nullptr;  // behind the last *, which has taken all before `taken`
  const char* taken = text;
  while (*text != '\0' || pattern != end) {
    if (pattern != end && *pattern == '*') {
      star = ++pattern;
      taken = text;
    } else if (pattern != end && *text != '\0' && (*pattern == '?' || *pattern == *text)) {
      ++pattern;
      ++text;
    } else if (star != nullptr && *taken != '\0') {
      pattern = star;
      text = ++taken;
    } else {
      return false;
    }
  }
  return true;
}

bool parse_rules(const char* text, const char* program, Rules* rules) {
  bool good = true;
  rules->count = 0;
  Word left = {text, strlen(text)}, rule, word;
  for (bool more = left.length > 0; more;) {
    more = left.cut(';', &rule);
    if (rule.length == 0) continue;
    const std::size_t start = rules->count;
    if (start == Rules::kMax - 1) {
      rules->terms[rules->count++] = {};  // ignores all
      return false;
    }
    bool more_words = rule.cut(',', &word);
    rules->terms[rules->count++] = {};
    rules->terms[start].first = word.is("accelerate");
    std::uint32_t unclear = word.is("accelerate") || word.is("ignore") ? 0 : 1;
    while (more_words) {
      more_words = rule.cut(',', &word);
      if (rules->count == Rules::kMax - 1) {
        rules->terms[start] = {};
        rules->count = start + 1;
        return false;
      }
      RuleTerm* term = &rules->terms[rules->count];
      if (read_term(word, program, term)) {
        ++rules->count;
      } else {
        unclear |= term->kind == RuleTerm::kRule ? ~0u : 1u << term->kind;
      }
    }
    finish_rule(rules, start, unclear, *program != '\0');
    good = good && unclear == 0;
  }
  return good;
}

RuleVerdict judge(const Rules& rules, const RuleQuestion& question) {
  bool depends = false;  // a rule before would decide otherwise, for some uid
  for (std::size_t i = 0; i < rules.count;) {
    const RuleTerm& head = rules.terms[i++];
    std::uint32_t asked = 0, met = 0;
    for (; i < rules.count && rules.terms[i].kind != RuleTerm::kRule; ++i) {
      const std::uint32_t kind = 1u << rules.terms[i].kind;
      asked |= kind;
      if (term_matches(rules.terms[i], question)) met |= kind;
    }
    constexpr std::uint32_t kUid = 1u << RuleTerm::kUid;
    const bool open = (asked & kUid) != 0 && !question.uid_known;
    if (asked != (open ? met | kUid : met)) continue;
    if (!open) return depends ? RuleVerdict::kDependsOnUid : head.first != 0 ? RuleVerdict::kAccelerate : RuleVerdict::kIgnore;
    depends = true;
  }
  return depends ? RuleVerdict::kDependsOnUid : RuleVerdict::kAccelerate;
}

}  // namespace mpklink
