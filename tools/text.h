// SPDX-License-Identifier: MIT
// Words in the spellings of those who read them: a terminal, JSON, a shell.
#pragma once

#include <string>
#include <string_view>

namespace mpklink {

/// Text of others (names of processes, what stands in shared memory) with its control characters replaced: it must not speak to a terminal.
std::string printable(std::string_view text);
/// In quotes, escaped. Bytes that are not UTF-8 become U+FFFD.
std::string json_string(std::string_view text);
/// So that a word can be pasted into a shell.
std::string shell_quote(const std::string& word);

}  // namespace mpklink
