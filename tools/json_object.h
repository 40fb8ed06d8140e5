// SPDX-License-Identifier: MIT
// Writes JSON objects, member by member.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "tools/command_support.h"

namespace mpklink {

class JsonObject {
 public:
  /// `json` is JSON already.
  JsonObject& add_raw(std::string_view key, std::string_view json) {
    text_ += fmt::format("{}{}: {}", text_.size() > 1 ? ", " : "", json_string(key), json);
    return *this;
  }
  JsonObject& add(std::string_view key, std::string_view value) { return add_raw(key, json_string(value)); }
  JsonObject& add(std::string_view key, const char* value) { return add(key, std::string_view(value)); }
  template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number>>>
  JsonObject& add(std::string_view key, Number value) {
    return add_raw(key, fmt::format("{}", value));
  }
  JsonObject& add_null(std::string_view key) { return add_raw(key, "null"); }
  std::string text() const { return text_ + "}"; }

 private:
  std::string text_ = "{";
};

/// One item a line.
inline std::string json_array(const std::vector<std::string>& items) {
  std::string text = "[";
  for (const std::string& item : items) text += (text.size() > 1 ? ",\n  " : "\n  ") + item;
  return text + (items.empty() ? "]" : "\n]");
}

}  // namespace mpklink
