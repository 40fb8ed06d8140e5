// SPDX-License-Identifier: MIT
#include "preload/allowance.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "preload/process.h"

namespace mpklink {
namespace {

constexpr std::uint64_t kNone = ~std::uint64_t{0};

bool read_file(const char* path, char* text, std::size_t size) {
  const int fd = quiet().open(path, O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) return false;
  const ssize_t n = quiet().read(fd, text, size - 1);
  quiet().close(fd);
  text[n > 0 ? n : 0] = '\0';
  return n > 0;
}

// The least of a group's limit and those of the groups it is in. A container sees its own group as the root, or by its name outside.
std::uint64_t least_limit(const char* root, const char* group, const char* file) {
  char path[512];
  std::uint64_t least = kNone;
  std::size_t length = strlen(group);
  if (strlen(root) + length + strlen(file) + 2 > sizeof path) return kNone;
  for (;;) {
    char* at = static_cast<char*>(mempcpy(stpcpy(path, root), group, length));
    *at++ = '/';
    strcpy(at, file);
    char text[32];
    if (read_file(path, text, sizeof text) && *text >= '0' && *text <= '9') {
      const std::uint64_t limit = strtoull(text, nullptr, 10);
      if (limit < least) least = limit;
    }
    if (length == 0) return least;
    while (length > 0 && group[--length] != '/') {
    }
  }
}

// cgroups(7): a line for each hierarchy, "number:controllers:group"; version 2 has no controllers there.
std::uint64_t cgroup_limit() {
  char text[4096];
  if (!read_file("/proc/self/cgroup", text, sizeof text)) return kNone;
  std::uint64_t least = kNone;
  for (char* line = text; *line != '\0';) {
    char* const end = strchrnul(line, '\n');
    char* const next = *end == '\0' ? end : end + 1;
    *end = '\0';
    std::uint64_t limit = kNone;
    if (const char* two = strstr(line, "::/")) {
      limit = least_limit("/sys/fs/cgroup", two + 2, "memory.max");
    } else if (const char* one = strstr(line, ":memory:/")) {
      limit = least_limit("/sys/fs/cgroup/memory", one + 8, "memory.limit_in_bytes");
    }
    if (limit < least) least = limit;
    line = next;
  }
  return least;
}

}  // namespace

std::uint64_t share_of_limits() {
  const ErrnoSaver keep;
  rlimit addresses = {};
  const bool limited = getrlimit(RLIMIT_AS, &addresses) == 0 && addresses.rlim_cur != RLIM_INFINITY;
  const std::uint64_t of_addresses = limited ? addresses.rlim_cur / 8 : kNone;
  const std::uint64_t of_memory = cgroup_limit() / 4;
  return of_addresses < of_memory ? of_addresses : of_memory;
}

}  // namespace mpklink
