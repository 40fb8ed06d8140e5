// SPDX-License-Identifier: MIT
// The settings of the library, once: run, env, the TOML file, manual pages and completions are made from this table, and a test
// compares README.md with it. One naming law: "ring.kib" is the key in a file, MPKLINK_RING_KIB the variable, --ring-kib the option.
#pragma once

#include <string>
#include <vector>

namespace mpklink {

struct Setting {
  const char* key;
  const char* values;    // as in a synopsis: alternatives as a|b|c, or what it is in capitals
  const char* standard;  // the default, in words
  const char* help;
};

constexpr Setting kSettings[] = {
    {"guard", "auto|pkey|require|mprotect|off", "auto", "protection of the shared memory: auto (pkey where CPU and kernel have it), pkey, require, mprotect (slow, for tests), off"},
    {"backing", "memfd|secret", "memfd", "what shared memory is made of: memfd, or secret (memfd_secret: closed to the kernel's own ways, too)"},
    {"fault.report", "0|1", "1", "report the first touch of guarded memory on stderr: 0 or 1"},
    {"warmup", "NUMBER", "2", "operations on a connection before it may move to shared memory"},
    {"spin.us", "MICROSECONDS", "auto", "longest busy wait: auto, or a number of microseconds"},
    {"ring.kib", "KIB", "256", "largest ring, per direction of a connection, in KiB"},
    {"peers", "POLICY", "verified", "whom to share memory with: verified, same-uid, any, or user numbers (0,33)"},
    {"ports", "PORTS", "all", "only these ports (80,8000-8999), or all but these (!22)"},
    {"rules", "RULES", "none", "which connections stay on TCP, first match wins: ignore,port=22;accelerate,exe=nginx (mpklink.toml(5))"},
    {"profile", "safe|balanced|latency", "balanced", "preset of the other settings: safe, balanced, latency, or one of the configuration file's"},
    {"log", "off|error|warn|info|debug", "error", "what to report on stderr: off, error, warn, info or debug"},
    {"stats", "FILE", "none", "file to which each process appends its counters when it ends"},
    {"disable", "0|1", "0", "1: the library does nothing"},
};

inline bool operator==(const Setting& a, const Setting& b) { return a.key == b.key; }

std::string option_of(const Setting& setting);    // --ring-kib
std::string variable_of(const Setting& setting);  // MPKLINK_RING_KIB
/// The alternatives of a|b|c; empty for others.
std::vector<std::string> choices_of(const std::string& values);
/// By key; null: there is none.
const Setting* find_setting(const std::string& key);

/// What is wrong with a value, or an empty string: asks the library's own parsers. A typo in the environment must not take a service
/// down, so the library goes on with its default; here a person is waiting for an answer.
std::string value_problem(const Setting& setting, const std::string& value);

constexpr const char* kBuiltInProfiles[] = {"safe", "balanced", "latency"};
bool is_built_in_profile(const std::string& name);

}  // namespace mpklink
