// SPDX-License-Identifier: MIT
// select in terms of poll.
#pragma once
#include <sys/select.h>

#include <cstdint>

namespace mpklink {

// What `n` is to be (select.cc). Before anything else is asked.
int select_size(int n, const fd_set* in, const fd_set* out, const fd_set* except);
bool select_concerns_us(int n, const fd_set* in, const fd_set* out, const fd_set* except);
int select_streams(int n, fd_set* in, fd_set* out, fd_set* except, std::int64_t timeout_ns, const sigset_t* mask);

}  // namespace mpklink
