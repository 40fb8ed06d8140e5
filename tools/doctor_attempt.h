// SPDX-License-Identifier: MIT
// What the kernel says to a call, tried in a child: a seccomp filter may answer with a signal, and what is taken there
// (keys, locked memory) ends with it.
#pragma once
#include <functional>
#include <string>

namespace mpklink {

struct Outcome {
  int code = 0;    // what `work` returned, 0 … 255
  int signal = 0;  // that ended the child instead
};

/// `work` runs in a forked child of this single-threaded tool. A fork that fails: code 255.
Outcome attempt(const std::function<int()>& work);

/// Why a call that was tried failed: "Operation not permitted (EPERM)", or the signal's name.
std::string outcome_text(const Outcome& outcome);

}  // namespace mpklink
