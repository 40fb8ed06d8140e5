// SPDX-License-Identifier: MIT
#include "preload/settings.h"

#include <cstdlib>
#include <cstring>

namespace mpklink {
namespace {

// Digits, of a number of at most `max`; *at behind them.
bool read_number(const char** at, unsigned long max, unsigned long* out) {
  if (**at < '0' || **at > '9') return false;
  char* end = nullptr;
  *out = std::strtoul(*at, &end, 10);
  *at = end;
  return *out <= max;
}

struct Parser {
  const char* (*get)(const char*);
  void (*complain)(const char*, const char*, const char*);

  // The value when it is set and not empty.
  const char* value(const char* name) const {
    const char* text = get(name);
    return text != nullptr && *text != '\0' ? text : nullptr;
  }

  template <class Enum, std::size_t N>
  void choice(const char* name, const char* const (&words)[N], Enum* out, const char* expected) const {
    const char* text = value(name);
    if (text == nullptr) return;
    for (std::size_t i = 0; i < N; ++i) {
      if (std::strcmp(text, words[i]) == 0) {
        *out = static_cast<Enum>(i);
        return;
      }
    }
    complain(name, text, expected);
  }

  bool number(const char* name, const char* text, unsigned long max, unsigned long* out, const char* expected) const {
    const char* at = text;
    const bool good = read_number(&at, max, out) && *at == '\0';
    if (!good) complain(name, text, expected);
    return good;
  }
};

constexpr std::uint64_t kRingMaxKib = 65536;
constexpr unsigned long kPortMax = 65535;
constexpr unsigned long kUidMax = 0xfffffffe;  // above it is nobody's: (uid_t)-1

std::uint64_t power_of_two_at_least(std::uint64_t n) {
  std::uint64_t p = 8;
  while (p < n) p *= 2;
  return p;
}

// KiB, or bytes with the suffix B: the tests need rings of a few bytes.
void parse_ring(const Parser& parser, Settings* settings) {
  static const char kExpected[] = "a size in KiB from 1 to 65536, or in bytes as in 64B";
  const char* text = parser.value("MPKLINK_RING_KIB");
  if (text == nullptr) return;
  unsigned long parsed = 0;
  const char* at = text;
  bool good = read_number(&at, kRingMaxKib * 1024, &parsed) && parsed != 0;
  const bool bytes = *at == 'B';
  good = good && at[bytes] == '\0' && (bytes || parsed <= kRingMaxKib);
  if (!good) {
    parser.complain("MPKLINK_RING_KIB", text, kExpected);
    return;
  }
  settings->ring_bytes = power_of_two_at_least(bytes ? parsed : parsed * 1024);
}

void parse_peers(const Parser& parser, Settings* settings) {
  static const char kExpected[] = "verified, same-uid, any, or up to 16 user numbers separated by commas";
  const char* text = parser.value("MPKLINK_PEERS");
  if (text == nullptr) return;
  if (std::strcmp(text, "verified") == 0) {
    settings->peers = PeerPolicy::kVerified;
    return;
  }
  if (std::strcmp(text, "same-uid") == 0) {
    settings->peers = PeerPolicy::kSameUid;
    return;
  }
  if (std::strcmp(text, "any") == 0) {
    settings->peers = PeerPolicy::kAny;
    return;
  }
  std::size_t count = 0;
  const char* at = text;
  while (count < Settings::kListMax) {
    unsigned long uid = 0;
    if (!read_number(&at, kUidMax, &uid)) break;
    settings->peer_uids[count++] = static_cast<std::uint32_t>(uid);
    if (*at == '\0') {
      settings->peer_uid_count = count;
      settings->peers = PeerPolicy::kList;
      return;
    }
    if (*at++ != ',') break;
  }
  // Not understood: the stricter reading. A typo in a list of users must not let more users in than were meant.
  settings->peers = PeerPolicy::kSameUid;
  parser.complain("MPKLINK_PEERS", text, kExpected);
}

// "8080,9000-9100" allows only these; "!22,!6000-6010" allows all but these; the first match decides.
void parse_ports(const Parser& parser, Settings* settings) {
  static const char kExpected[] = "up to 16 ports or ranges separated by commas, each denied with a leading !";
  const char* text = parser.value("MPKLINK_PORTS");
  if (text == nullptr) return;
  std::size_t count = 0;
  for (const char* at = text; count < Settings::kListMax;) {
    const bool allow = *at != '!';
    if (!allow) ++at;
    unsigned long first = 0;
    if (!read_number(&at, kPortMax, &first)) break;
    unsigned long last = first;
    if (*at == '-' && !read_number(&++at, kPortMax, &last)) break;
    if (first > last) break;
    settings->ports[count++] = {static_cast<std::uint16_t>(first), static_cast<std::uint16_t>(last), allow};
    if (*at == '\0') {
      settings->port_count = count;
      return;
    }
    if (*at++ != ',') break;
  }
  parser.complain("MPKLINK_PORTS", text, kExpected);
}

void parse_numbers(const Parser& parser, Settings* settings) {
  unsigned long parsed = 0;
  const char* warmup = parser.value("MPKLINK_WARMUP");
  if (warmup != nullptr && parser.number("MPKLINK_WARMUP", warmup, 1000000, &parsed, "a number of operations")) {
    settings->warmup = static_cast<unsigned>(parsed);
    settings->warmup_learns = false;
  }
  const char* spin = parser.value("MPKLINK_SPIN_US");
  if (spin == nullptr) return;
  if (std::strcmp(spin, "auto") == 0) {
    settings->spin_us = -1;
  } else if (parser.number("MPKLINK_SPIN_US", spin, 1000000, &parsed, "auto or a number of microseconds")) {
    settings->spin_us = static_cast<int>(parsed);
  }
}

// A profile sets what the settings after it may override.
void apply_profile(const Parser& parser, Settings* settings) {
  enum class Profile { kSafe, kBalanced, kLatency } profile = Profile::kBalanced;
  static const char* const kProfiles[] = {"safe", "balanced", "latency"};
  parser.choice("MPKLINK_PROFILE", kProfiles, &profile, "safe, balanced or latency");
  if (profile == Profile::kSafe) {
    settings->peers = PeerPolicy::kSameUid;
    settings->spin_us = 0;
    settings->warmup = 8;
  } else if (profile == Profile::kLatency) {
    settings->spin_us = kSpinMaxUs;
    settings->warmup = 0;
    settings->warmup_learns = false;
  }
}

}  // namespace

bool Settings::port_allowed(std::uint16_t port) const {
  bool default_allow = true;
  for (std::size_t i = 0; i < port_count; ++i) {
    if (port >= ports[i].first && port <= ports[i].last) return ports[i].allow;
    if (ports[i].allow) default_allow = false;
  }
  return default_allow;
}

Settings parse_settings(const char* (*get)(const char*), void (*complain)(const char*, const char*, const char*)) {
  Settings settings;
  const Parser parser{get, complain};
  apply_profile(parser, &settings);
  static const char* const kGuards[] = {"auto", "pkey", "mprotect", "off", "require"};
  parser.choice("MPKLINK_GUARD", kGuards, &settings.guard, "auto, pkey, mprotect, off or require");
  static const char* const kLevels[] = {"off", "error", "warn", "info", "debug"};
  parser.choice("MPKLINK_LOG", kLevels, &settings.log, "off, error, warn, info or debug");
  parse_ring(parser, &settings);
  parse_numbers(parser, &settings);
  parse_peers(parser, &settings);
  parse_ports(parser, &settings);
  static const char* const kBackings[] = {"memfd", "secret"};
  parser.choice("MPKLINK_BACKING", kBackings, &settings.backing, "memfd or secret");
  static const char* const kNoYes[] = {"0", "1"};
  parser.choice("MPKLINK_FAULT_REPORT", kNoYes, &settings.fault_report, "0 or 1");
  const char* disable = parser.value("MPKLINK_DISABLE");
  if (disable != nullptr) {
    settings.disabled = std::strcmp(disable, "0") != 0;
    if (std::strcmp(disable, "0") != 0 && std::strcmp(disable, "1") != 0) parser.complain("MPKLINK_DISABLE", disable, "0 or 1");
  }
  const char* stats = parser.value("MPKLINK_STATS");
  if (stats != nullptr) {
    const std::size_t length = std::strlen(stats);
    if (length < sizeof settings.stats_path) {
      std::memcpy(settings.stats_path, stats, length + 1);
    } else {
      parser.complain("MPKLINK_STATS", stats, "a path below 512 bytes");
    }
  }
  return settings;
}

}  // namespace mpklink
