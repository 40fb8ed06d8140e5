// SPDX-License-Identifier: MIT
// Where libmpklink.so is, and how it gets into LD_PRELOAD beside whatever is there already.
#pragma once

#include <string>

namespace mpklink {

/// The directory of this executable, behind symbolic links. Empty without /proc.
std::string own_directory();

/// Why ld.so(8) could not preload this file: a sentence. Empty: it can.
std::string library_problem(const std::string& path);

/// $MPKLINK_LIBRARY, else the build tree or the prefix that this executable is in, else the bare soname if a standard
/// library directory has it. Throws Refusal if there is none or it cannot be preloaded.
std::string find_library();

/// `current` (the value of LD_PRELOAD, may be empty) with `library` as last entry, unless it is in it already.
std::string append_preload(const std::string& current, const std::string& library);

}  // namespace mpklink
