// SPDX-License-Identifier: MIT
#pragma once
#include <cstring>

namespace mpklink {

enum class Reason : unsigned {
#define REASON(id, slug, sentence, remedy) id,
#include "preload/reasons.def"
  kCount
};

struct ReasonText {
  const char* slug;
  const char* sentence;
  const char* remedy;
};
// For tools: all of them.
inline constexpr ReasonText kReasonTexts[] = {
#define REASON(id, slug, sentence, remedy) {slug, sentence, remedy},
#include "preload/reasons.def"
};

// The same for the library: one array, as pointers are relocated at load and take 32 bytes each in the file.
inline constexpr char kReasonStrings[] =
#define REASON(id, slug, sentence, remedy) slug "\0" sentence "\0" remedy "\0"
#include "preload/reasons.def"
    ;
inline ReasonText reason_text(unsigned reason) {
  const char* at = kReasonStrings;
  const auto next = [&at] {
    const char* text = at;
    at += std::strlen(at) + 1;
    return text;
  };
  for (unsigned i = 0; i < reason * 3; ++i) next();
  const char* const slug = next();
  const char* const sentence = next();
  return {slug, sentence, at};
}

}  // namespace mpklink
