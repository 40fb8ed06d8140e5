// SPDX-License-Identifier: MIT
// Symbol versions of ELF libraries: ld.so ends a program whose libc lacks one that a preloaded library needs. The files
// are input.
#pragma once

#include <set>
#include <string>

namespace mpklink {

/// What the library open at `fd` needs of `from` (a soname, "libc.so.6"). Empty: nothing, or the file is not a sound
/// x86-64 library.
std::set<std::string> needed_versions(int fd, const std::string& from);

/// What the library open at `fd` defines. Empty as above.
std::set<std::string> defined_versions(int fd);

}  // namespace mpklink
