// SPDX-License-Identifier: MIT
#include "shm/stop_point.h"

#include <sys/syscall.h>

#include <cstdlib>
#include <cstring>

#include "shm/atomic.h"
#include "shm/raw_syscall.h"

namespace mpklink {
namespace {

Atomic<std::uint64_t> g_passages;

}  // namespace

void stop_point(const char* name) {
  const char* const wanted = std::getenv("MPKLINK_STOP_AT");
  const std::size_t length = std::strlen(name);
  if (wanted == nullptr || std::strncmp(wanted, name, length) != 0 || wanted[length] != ':') return;
  char* end = nullptr;
  const unsigned long passage = std::strtoul(wanted + length + 1, &end, 10);
  const long signal = *end == ':' ? std::strtol(end + 1, nullptr, 10) : 0;
  if (g_passages.fetch_add(1) + 1 == passage) raw_syscall(SYS_kill, raw_syscall(SYS_getpid), signal);
}

}  // namespace mpklink
