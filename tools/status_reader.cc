// SPDX-License-Identifier: MIT
#include "tools/status_reader.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <pwd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <utility>

#include "tools/command_support.h"

namespace mpklink {
namespace {

/// The numbers among the names in a folder of /proc; errno is 0, or why there are none.
std::vector<int> numbers_in(const std::string& folder) {
  errno = 0;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir(folder.c_str()), closedir);
  std::vector<int> numbers;
  if (dir == nullptr) return numbers;
  while (const dirent* entry = readdir(dir.get())) {
    if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9') numbers.push_back(atoi(entry->d_name));
  }
  errno = 0;
  return numbers;
}

std::string link_path(pid_t pid, int fd) {
  return fmt::format("/proc/{}/fd/{}", pid, fd);
}

bool link_is_named(const std::string& path) {
  static const std::string wanted = fmt::format("/memfd:{} (deleted)", kStatusName);
  char text[64];
  const ssize_t length = readlink(path.c_str(), text, sizeof text);
  return length == static_cast<ssize_t>(wanted.size()) && memcmp(text, wanted.data(), wanted.size()) == 0;
}

/// The kernel's own tmpfs, which memfds are files of.
dev_t memfd_device() {
  static const dev_t device = [] {
    struct stat st {};
    const int fd = memfd_create("mpklink", MFD_CLOEXEC);
    if (fd >= 0 && fstat(fd, &st) != 0) st.st_dev = 0;
    if (fd >= 0) close(fd);
    return st.st_dev;
  }();
  return device;
}

/// Opens what the link points to if it is a memfd. A container may have a file of that name on a file system of its own, where a mere
/// look can hang: it is held without being opened first, and asked for what the kernel knows already.
int open_memfd(const std::string& path, int flags) {
  const int held = ::open(path.c_str(), O_PATH | O_CLOEXEC);
  if (held < 0) return -1;
  struct statx st {};
  const bool known = statx(held, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &st) == 0;
  int fd = -1;
  if (known && S_ISREG(st.stx_mode) && makedev(st.stx_dev_major, st.stx_dev_minor) == memfd_device()) {
    fd = ::open(fmt::format("/proc/self/fd/{}", held).c_str(), flags | O_CLOEXEC);
  }
  close(held);
  return fd;
}

ProcessName name_of(pid_t pid) {
  ProcessName name;
  name.pid = pid;
  const std::string folder = fmt::format("/proc/{}", pid);
  struct stat st {};
  if (stat(folder.c_str(), &st) == 0) name.uid = st.st_uid;
  if (stat((folder + "/ns/net").c_str(), &st) == 0) name.network = st.st_ino;
  std::ifstream comm(folder + "/comm");
  name.program.assign(std::istreambuf_iterator<char>(comm), {});
  if (!name.program.empty()) name.program.pop_back();  // the line's end; the name may have others
  name.program = printable(name.program);
  return name;
}

std::string user_name(uid_t uid) {
  const passwd* entry = getpwuid(uid);
  return entry != nullptr ? entry->pw_name : fmt::format("user {}", uid);
}

}  // namespace

std::uint32_t own_pid_of(pid_t pid) {
  std::ifstream status(fmt::format("/proc/{}/status", pid));
  for (std::string line; std::getline(status, line);) {
    if (line.compare(0, 6, "NSpid:") == 0) {
      return static_cast<std::uint32_t>(strtoul(line.c_str() + line.find_last_of("\t ") + 1, nullptr, 10));
    }
  }
  return 0;
}

std::string process_text(const ProcessName& process) {
  return fmt::format("{}[{}]", process.program, process.pid);
}

// ---- an open page ----

OpenPage::OpenPage(OpenPage&& other) noexcept
    : process(std::move(other.process)), fd(std::exchange(other.fd, -1)), inode(other.inode), page(std::move(other.page)) {}

OpenPage& OpenPage::operator=(OpenPage&& other) noexcept {
  std::swap(process, other.process);
  std::swap(fd, other.fd);
  std::swap(inode, other.inode);
  std::swap(page, other.page);
  return *this;
}

OpenPage::~OpenPage() {
  if (fd >= 0) close(fd);
}

// ---- finding ----

namespace {

/// A child of a fork may hold its parent's page, too: it is shown for the process that says it is its own.
bool map_page(pid_t pid, int fd, StatusPage::Access access, OpenPage* found) {
  const std::string path = link_path(pid, fd);
  if (!link_is_named(path)) return false;
  OpenPage candidate;
  candidate.fd = open_memfd(path, access == StatusPage::Access::kRequest ? O_RDWR : O_RDONLY);
  if (candidate.fd < 0) return false;
  struct stat st {};
  if (fstat(candidate.fd, &st) != 0) return false;
  candidate.inode = st.st_ino;
  candidate.page = StatusPage::map(candidate.fd, access);
  if (!candidate.page) return false;
  if (candidate.page->same_version() && candidate.page->pid() != own_pid_of(pid)) return false;
  candidate.process = name_of(pid);
  *found = std::move(candidate);
  return true;
}

}  // namespace

StatusReader::Problem StatusReader::search(pid_t pid, StatusPage::Access access, OpenPage* found) {
  std::vector<int> fds = numbers_in(fmt::format("/proc/{}/fd", pid));
  if (errno == EACCES || errno == EPERM) return Problem::kForbidden;
  if (errno != 0) return Problem::kVanished;
  std::sort(fds.begin(), fds.end(), std::greater<>());  // the library keeps its descriptors high
  for (int fd : fds) {
    if (!map_page(pid, fd, access, found)) continue;
    known_fds_[pid] = fd;
    return Problem::kNone;
  }
  return Problem::kNoPage;
}

StatusReader::Problem StatusReader::open_one(pid_t pid, StatusPage::Access access, OpenPage* found) {
  const auto known = known_fds_.find(pid);
  if (known != known_fds_.end()) {
    if (map_page(pid, known->second, access, found)) return Problem::kNone;
    known_fds_.erase(known);
  }
  return search(pid, access, found);
}

std::vector<OpenPage> StatusReader::open(StatusPage::Access access, const std::vector<int>& pids) {
  std::vector<int> wanted = pids.empty() ? numbers_in("/proc") : pids;
  std::sort(wanted.begin(), wanted.end());
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
  std::vector<OpenPage> pages;
  for (int pid : wanted) {
    OpenPage found;
    const Problem problem = open_one(pid, access, &found);
    if (problem == Problem::kNone) {
      pages.push_back(std::move(found));
    } else if (!pids.empty()) {
      refuse(pid, problem);
    }
  }
  return pages;
}

std::vector<ProcessStatus> StatusReader::read(const std::vector<int>& pids) {
  std::vector<ProcessStatus> all;
  for (const OpenPage& open_page : open(StatusPage::Access::kRead, pids)) {
    ProcessStatus status{open_page.process, open_page.page->version(), std::nullopt};
    if (open_page.page->same_version()) status.content = open_page.page->read();
    all.push_back(std::move(status));
  }
  return all;
}

void StatusReader::refuse(pid_t pid, Problem problem) {
  const ProcessName process = name_of(pid);
  if (problem == Problem::kVanished) {
    throw Refusal(kExitUnavailable, fmt::format("there is no process {}; `mpklink ss --processes` lists those that have the library", pid));
  }
  if (problem == Problem::kForbidden) {
    throw Refusal(kExitUnavailable, fmt::format("process {} belongs to {} and may not be looked into; become that user, or root with sudo",
                                                process_text(process), user_name(process.uid)));
  }
  throw Refusal(kExitUnavailable, fmt::format("process {} runs without the library, or has made no connection yet; see mpklink doctor {}",
                                              process_text(process), pid));
}

}  // namespace mpklink
