// SPDX-License-Identifier: MIT
// For the second readings of text: not the parser's own way.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace mpklink::fuzz {

inline std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == at) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

// All digits, and at most `max`.
inline bool number(const std::string& text, std::uint64_t max, std::uint64_t* out) {
  *out = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return false;
    if (*out <= max) *out = *out * 10 + static_cast<std::uint64_t>(c - '0');
  }
  return !text.empty() && *out <= max;
}

}  // namespace mpklink::fuzz
