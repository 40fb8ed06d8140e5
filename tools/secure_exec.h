// SPDX-License-Identifier: MIT
#pragma once

#include <string>

namespace mpklink {

/// Why the kernel would set AT_SECURE if this process executed the file open at `fd` (ld.so(8): LD_PRELOAD is then
/// ignored): the middle of a sentence, such as "is setuid to uid 0". Empty if it would not.
std::string secure_exec_reason(int fd);

}  // namespace mpklink
