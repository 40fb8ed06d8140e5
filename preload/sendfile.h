// SPDX-License-Identifier: MIT
#pragma once
#include <sys/types.h>

#include "preload/stream.h"

namespace mpklink {

// sendfile(2) to a managed stream. Bytes, -1 with errno, or kNotOurs (preload/transfer.h).
ssize_t send_file(int fd, Stream* s, int in_fd, off64_t* offset, std::size_t count);

}  // namespace mpklink
