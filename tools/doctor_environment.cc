// SPDX-License-Identifier: MIT
// The library that programs started from here would get, and what else is preloaded into them.
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "tools/doctor_checks.h"
#include "tools/doctor_proc.h"
#include "tools/preload_env.h"
#include "tools/program_check.h"
#include "tools/refusal.h"
#include "tools/text.h"

namespace mpklink {
namespace {

std::vector<std::string> own_environment() {
  std::vector<std::string> list;
  for (char** entry = environ; *entry != nullptr; ++entry) list.emplace_back(*entry);
  return list;
}

/// May any user read this file through its directories? Workers of another user's load it, too, when they exec.
bool is_for_everybody(const std::string& path) {
  for (std::size_t slash = path.find('/', 1); slash != std::string::npos; slash = path.find('/', slash + 1)) {
    struct stat st {};
    if (stat(path.substr(0, slash).c_str(), &st) == 0 && (st.st_mode & S_IXOTH) == 0) return false;
  }
  struct stat st {};
  return stat(path.c_str(), &st) != 0 || (st.st_mode & S_IROTH) != 0;
}

Finding check_library(std::string* library) {
  Finding found{"environment", "library", Level::kOk, "", "", {}};
  try {
    *library = find_library();
  } catch (const Refusal& refusal) {
    found.level = Level::kFail;
    found.sentence = fmt::format("There is no library to preload: {}.", refusal.what());
    found.remedy = "Install the package libmpklink, or: export MPKLINK_LIBRARY=/path/to/libmpklink.so";
    found.facts = {{"path", std::string()}, {"version", std::string()}, {"layout", std::int64_t{0}}};
    return found;
  }
  const LibraryVersion version = library_version(*library);
  found.facts = {{"path", *library}, {"version", version.text}, {"layout", std::int64_t{version.layout}}};
  found.sentence = version.text.empty()
                       ? fmt::format("{}.", *library)
                       : fmt::format("{}, version {} (memory layout {}).", *library, version.text, version.layout);
  struct statvfs fs {};
  if (statvfs(library->c_str(), &fs) == 0 && (fs.f_flag & ST_NOEXEC) != 0) {
    found.level = Level::kFail;
    found.sentence += " It is on a file system that is mounted noexec, from which ld.so loads nothing.";
    found.remedy = "Copy it elsewhere, or: mount -o remount,exec THERE";
  } else if (!is_for_everybody(*library)) {
    found.level = Level::kNote;
    found.sentence += " Not every user may read it: programs of others run without it.";
    found.remedy = "Put it where all may read it (/usr/lib), if programs of other users are to load it.";
  }
  return found;
}

// ---- LD_PRELOAD ----

struct Neighbour {
  const char* file;  // begins so
  const char* what;
};
// Libraries that come before ours, or take the same calls.
constexpr Neighbour kNeighbours[] = {
    {"libasan", "AddressSanitizer"},
    {"libtsan", "ThreadSanitizer"},
    {"liblsan", "LeakSanitizer"},
    {"libubsan", "UBSan"},
    {"libtorsocks", "torsocks"},
    {"libproxychains", "proxychains"},
    {"libvma", "VMA"},
    {"libxlio", "XLIO"},
    {"libonload", "Onload"},
    {"libsocksify", "dante"},
    {"libip2unix", "ip2unix"},
    {"libsd.so", "SocksDirect"},
};

const Neighbour* neighbour(const std::string& path) {
  const std::string file = path.substr(path.rfind('/') + 1);
  for (const Neighbour& known : kNeighbours) {
    if (file.rfind(known.file, 0) == 0) return &known;
  }
  return nullptr;
}

bool takes_sockets(const Neighbour& known) {
  return strncmp(known.what, "Addr", 4) != 0 && strstr(known.file, "san") == nullptr;
}

void check_entry(const std::string& entry, Findings* findings) {
  const Facts facts = {{"entry", entry}};
  const Neighbour* known = neighbour(entry);
  if (entry.find('/') != std::string::npos && access(entry.c_str(), R_OK) != 0) {
    findings->push_back(
        {"environment", "preload", Level::kWarn,
         fmt::format("LD_PRELOAD names {}, which cannot be read ({}): ld.so complains and goes on without it.",
                     printable(entry), strerror(errno)),
         "Correct LD_PRELOAD, or unset it and start programs with: mpklink run -- PROGRAM", facts});
  } else if (known != nullptr && takes_sockets(*known)) {
    findings->push_back(
        {"environment", "preload", Level::kWarn,
         fmt::format("LD_PRELOAD has {} ({}), which takes socket calls, too: what it keeps to itself stays on TCP.",
                     printable(entry), known->what),
         fmt::format("Leave one of them out. To see what becomes of a program's connections: mpklink doctor PID"),
         facts});
  } else {
    findings->push_back(
        {"environment", "preload", Level::kNote,
         known != nullptr
             ? fmt::format("LD_PRELOAD has {} ({}); the library goes behind it.", printable(entry), known->what)
             : fmt::format("LD_PRELOAD has {}; the library goes behind it.", printable(entry)),
         "", facts});
  }
}

void check_preload(const std::string& library, Findings* findings) {
  const char* list = getenv("LD_PRELOAD");
  const std::string text = list != nullptr ? list : "";
  const std::size_t before = findings->size();
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find_first_of(" :", at), text.size());
    const std::string entry = text.substr(at, end - at);
    if (!entry.empty() && append_preload(entry, library) != entry) check_entry(entry, findings);
    at = end + 1;
  }
  if (findings->size() == before) {
    findings->push_back({"environment",
                         "preload",
                         Level::kOk,
                         text.empty() ? "Nothing else is preloaded." : "LD_PRELOAD has the library, and nothing else.",
                         "",
                         {{"entry", std::string()}}});
  }
}

}  // namespace

Findings check_environment(std::string* library) {
  Findings findings = {check_library(library)};
  for (Finding& f : check_settings(own_environment(), "environment")) findings.push_back(std::move(f));
  check_preload(*library, &findings);
  return findings;
}

}  // namespace mpklink
