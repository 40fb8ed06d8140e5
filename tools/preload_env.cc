// SPDX-License-Identifier: MIT
#include "preload_env.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "elf_check.h"
#include "program_check.h"

namespace mpklink {
namespace {

constexpr char kSoname[] = "libmpklink.so";
constexpr char kSeparators[] = " :";  // of LD_PRELOAD; ld.so(8) has no way to quote them
// Those that the loader searches without being told to (ld.so --help), in Debian's and in Red Hat's layout.
constexpr const char* kStandardDirs[] = {
    "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"};

bool exists(const std::string& path) {
  return access(path.c_str(), F_OK) == 0;
}

std::string canonical(const std::string& path) {
  char real[PATH_MAX];
  return realpath(path.c_str(), real) != nullptr ? real : path;
}

/// First match of a pattern with a literal directory in front.
std::string first_match(const std::string& dir, const char* pattern) {
  std::string escaped;
  for (char c : dir) {
    if (strchr("*?[]\\", c) != nullptr) escaped += '\\';
    escaped += c;
  }
  glob_t matches{};
  std::string found;
  if (glob((escaped + pattern).c_str(), 0, nullptr, &matches) == 0 && matches.gl_pathc > 0) found = matches.gl_pathv[0];
  globfree(&matches);
  return found;
}

std::string search_library() {
  if (const char* named = getenv("MPKLINK_LIBRARY"); named != nullptr && *named != '\0') return canonical(named);
  const std::string here = own_directory();
  if (!here.empty()) {
    for (const char* pattern :
         {"/libmpklink.so", "/../preload/libmpklink.so", "/../lib*/libmpklink.so", "/../lib*/x86_64-linux-gnu/libmpklink.so"}) {
      std::string found = first_match(here, pattern);
      if (!found.empty()) return canonical(found);
    }
  }
  for (const char* dir : kStandardDirs) {
    if (exists(fmt::format("{}/{}", dir, kSoname))) return kSoname;
  }
  throw Refusal(kExitCannotWrap,
                fmt::format("{} was not found beside this program or in the standard library directories; build it, or "
                            "name it with --library or MPKLINK_LIBRARY",
                            kSoname));
}

bool same_file(const std::string& a, const std::string& b) {
  struct stat sa, sb;
  return stat(a.c_str(), &sa) == 0 && stat(b.c_str(), &sb) == 0 && sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

bool is_entry(const std::string& entry, const std::string& library) {
  if (entry == library) return true;
  bool both_paths = entry.find('/') != std::string::npos && library.find('/') != std::string::npos;
  return both_paths && same_file(entry, library);
}

}  // namespace

std::string own_directory() {
  char path[PATH_MAX];
  ssize_t n = readlink("/proc/self/exe", path, sizeof path);
  if (n <= 0 || n == static_cast<ssize_t>(sizeof path)) return {};
  std::string exe(path, static_cast<size_t>(n));
  return exe.substr(0, exe.rfind('/'));
}

std::string library_problem(const std::string& path) {
  if (path.find_first_of(kSeparators) != std::string::npos) {
    return fmt::format(
        "the library's path {} contains a space or a colon, which LD_PRELOAD cannot express; move it to a path without",
        path);
  }
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return fmt::format("the library {} cannot be opened ({}); check --library and MPKLINK_LIBRARY", path,
                       strerror(errno));
  }
  ElfInfo elf = inspect_elf(fd);
  close(fd);
  bool usable = elf.is_shared_object && (elf.kind == ElfKind::kStatic || elf.kind == ElfKind::kDynamic);
  if (usable) return {};
  return fmt::format("the library {} is not an x86-64 shared object; check --library and MPKLINK_LIBRARY", path);
}

std::string find_library() {
  std::string library = search_library();
  if (library == kSoname) return library;
  std::string problem = library_problem(library);
  if (!problem.empty()) throw Refusal(kExitCannotWrap, problem);
  return library;
}

std::string append_preload(const std::string& current, const std::string& library) {
  for (size_t at = 0; at < current.size();) {
    size_t end = std::min(current.find_first_of(kSeparators, at), current.size());
    if (is_entry(current.substr(at, end - at), library)) return current;
    at = end + 1;
  }
  return current.empty() ? library : current + ":" + library;
}

}  // namespace mpklink
