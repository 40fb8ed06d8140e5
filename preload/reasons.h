// SPDX-License-Identifier: MIT
#pragma once

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
inline constexpr ReasonText kReasonTexts[] = {
#define REASON(id, slug, sentence, remedy) {slug, sentence, remedy},
#include "preload/reasons.def"
};

}  // namespace mpklink
