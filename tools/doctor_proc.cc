// SPDX-License-Identifier: MIT
#include "tools/doctor_proc.h"

#include <dirent.h>
#include <elf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "tools/text.h"

namespace mpklink {
namespace {

constexpr std::uint64_t kNone = ~std::uint64_t{0};
constexpr unsigned long kKernelThread = 0x00200000;           // PF_KTHREAD, include/linux/sched.h
constexpr std::uint64_t kUnlimited = std::uint64_t{1} << 62;  // cgroups of version 1 have a number for none
constexpr std::size_t kMostBytes = std::size_t{64} << 20;
constexpr char kDeleted[] = " (deleted)";

std::vector<std::string> split_zeros(const std::string& text) {
  std::vector<std::string> words;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\0', at), text.size());
    words.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return words;
}

bool cut_deleted(std::string* path) {
  const std::size_t length = strlen(kDeleted);
  if (path->size() < length || path->compare(path->size() - length, length, kDeleted) != 0) return false;
  path->resize(path->size() - length);
  return true;
}

std::map<std::string, std::string> status_of(pid_t pid) {
  std::istringstream text(read_whole(proc_path(pid, "status")));
  std::map<std::string, std::string> fields;
  for (std::string line; std::getline(text, line);) {
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::size_t value = line.find_first_not_of(" \t", colon + 1);
    fields[line.substr(0, colon)] = value == std::string::npos ? "" : line.substr(value);
  }
  return fields;
}

/// Field 9 of /proc/PID/stat; the name in field 2 may hold anything, but the last ')' ends it.
bool is_kernel_thread(pid_t pid) {
  const std::string stat = read_whole(proc_path(pid, "stat"));
  const std::size_t end = stat.rfind(')');
  if (end == std::string::npos) return false;
  std::istringstream rest(stat.substr(end + 1));
  std::string word;
  for (int field = 3; field < 9; ++field) rest >> word;
  unsigned long flags = 0;
  rest >> flags;
  return (flags & kKernelThread) != 0;
}

bool is_library(const std::string& path) {
  const std::string file = path.substr(path.rfind('/') + 1);
  return file.rfind("libmpklink", 0) == 0 && file.find(".so") != std::string::npos;
}

/// The first mapping of a file that is the library, from the text of /proc/PID/maps: range, rights, offset, device,
/// inode, path.
MappedLibrary find_library_in(const std::string& maps, pid_t pid) {
  std::istringstream lines(maps);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream fields(line);
    std::string range, rights, offset, device, inode, path;
    fields >> range >> rights >> offset >> device >> inode >> std::ws;
    std::getline(fields, path);
    if (path.empty() || path[0] != '/') continue;
    const bool deleted = cut_deleted(&path);
    if (!is_library(path)) continue;
    const std::string here = proc_path(pid, "root" + path);
    struct stat st {};
    const bool same = !deleted && stat(here.c_str(), &st) == 0 && fmt::format("{}", st.st_ino) == inode;
    // map_files names the very file, but only CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE may follow it (proc(5)).
    return {path, !same, same ? here : proc_path(pid, "map_files/" + range)};
  }
  return {};
}

}  // namespace

std::string read_whole(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {};
  std::string text;
  char buffer[16384];
  ssize_t n = 0;
  while (text.size() < kMostBytes && (n = read(fd, buffer, sizeof buffer)) > 0)
    text.append(buffer, static_cast<std::size_t>(n));
  const int error = n < 0 ? errno : 0;
  close(fd);
  errno = error;
  return text;
}

std::string read_link(const std::string& path) {
  char target[PATH_MAX];
  const ssize_t n = readlink(path.c_str(), target, sizeof target);
  return n > 0 ? std::string(target, static_cast<std::size_t>(n)) : std::string();
}

std::string proc_path(pid_t pid, const std::string& name) {
  return fmt::format("/proc/{}/{}", pid, name);
}

std::string ProcessFacts::title() const {
  return fmt::format("{} (pid {})", name.empty() ? "?" : printable(name), pid);
}

std::string ProcessFacts::variable(const std::string& wanted) const {
  for (const std::string& entry : environment) {
    if (entry.compare(0, wanted.size(), wanted) == 0 && entry.size() > wanted.size() && entry[wanted.size()] == '=') {
      return entry.substr(wanted.size() + 1);
    }
  }
  return {};
}

ProcessFacts look_at(pid_t pid) {
  using Kind = ProcessFacts::Kind;
  ProcessFacts p;
  p.pid = pid;
  p.status = status_of(pid);
  if (p.status.empty()) return p;
  p.name = read_whole(proc_path(pid, "comm"));
  if (!p.name.empty() && p.name.back() == '\n') p.name.pop_back();
  p.words = split_zeros(read_whole(proc_path(pid, "cmdline")));
  std::istringstream uids(p.status["Uid"]);
  uid_t real = 0;
  uids >> real >> p.uid;
  p.program = read_link(proc_path(pid, "exe"));
  cut_deleted(&p.program);
  if (is_kernel_thread(pid)) return p.kind = Kind::kKernelThread, p;
  if (p.status["State"].rfind('Z', 0) == 0 || p.status["State"].rfind('X', 0) == 0) return p.kind = Kind::kZombie, p;
  const std::string maps = read_whole(proc_path(pid, "maps"));
  if (maps.empty()) {
    const int error = errno;
    p.kind = error == ENOENT || error == ESRCH || (error == 0 && status_of(pid).empty()) ? Kind::kGone : Kind::kClosed;
    return p;
  }
  p.kind = Kind::kOpen;
  p.environment = split_zeros(read_whole(proc_path(pid, "environ")));
  p.library = find_library_in(maps, pid);
  if (!p.library.path.empty()) p.version = library_version(p.library.file);
  return p;
}

std::string namespace_of(pid_t pid, const std::string& kind) {
  return read_link(proc_path(pid, "ns/" + kind));
}

std::string different_namespaces(pid_t a, pid_t b) {
  std::string different;
  for (const char* kind : {"net", "pid", "user", "mnt"}) {
    const std::string one = namespace_of(a, kind), other = namespace_of(b, kind);
    if (one.empty() || other.empty()) return "?";
    if (one != other) different += fmt::format("{}{}", different.empty() ? "" : ", ", kind);
  }
  return different;
}

int secure_mode(pid_t pid) {
  const std::string vector = read_whole(proc_path(pid, "auxv"));
  Elf64_auxv_t entry;
  for (std::size_t at = 0; at + sizeof entry <= vector.size(); at += sizeof entry) {
    memcpy(&entry, vector.data() + at, sizeof entry);
    if (entry.a_type == AT_SECURE) return entry.a_un.a_val != 0 ? 1 : 0;
  }
  return -1;
}

Descriptors descriptors_of(pid_t pid) {
  Descriptors found;
  const std::string path = proc_path(pid, "fd");
  DIR* dir = opendir(path.c_str());
  if (dir == nullptr) return found;
  found.open = 0;
  while (const dirent* entry = readdir(dir)) {
    if (entry->d_name[0] == '.') continue;
    ++found.open;
    if (read_link(path + "/" + entry->d_name) == "anon_inode:[io_uring]") ++found.io_uring;
  }
  closedir(dir);
  return found;
}

std::uint64_t limit_of(pid_t pid, const std::string& name) {
  std::istringstream lines(read_whole(proc_path(pid, "limits")));
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(name, 0) != 0) continue;
    std::istringstream values(line.substr(name.size()));
    std::uint64_t soft = 0;
    return values >> soft ? soft : kNone;  // "unlimited"
  }
  return kNone;
}

std::uint64_t memory_limit_of(pid_t pid) {
  std::istringstream lines(read_whole(proc_path(pid, "cgroup")));
  std::uint64_t least = kNone;
  for (std::string line; std::getline(lines, line);) {
    const std::size_t second = line.find("::/"), first = line.find(":memory:/");
    std::string group, root, file;
    if (second != std::string::npos) {
      group = line.substr(second + 2), root = "/sys/fs/cgroup", file = "/memory.max";
    } else if (first != std::string::npos) {
      group = line.substr(first + 8), root = "/sys/fs/cgroup/memory", file = "/memory.limit_in_bytes";
    } else {
      continue;
    }
    for (;; group.resize(group.rfind('/'))) {  // its own group, and those it is in
      std::uint64_t limit = 0;
      const bool known = static_cast<bool>(std::istringstream(read_whole(root + group + file)) >> limit);
      if (known && limit < kUnlimited) least = std::min(least, limit);
      if (group.find('/') == std::string::npos) break;
    }
  }
  return least;
}

std::string service_of(pid_t pid) {
  if (access("/run/systemd/system", F_OK) != 0) return {};
  std::istringstream lines(read_whole(proc_path(pid, "cgroup")));
  for (std::string line; std::getline(lines, line);) {
    for (std::size_t at = line.find('/'); at != std::string::npos;) {
      const std::size_t end = std::min(line.find('/', at + 1), line.size());
      const std::string part = line.substr(at + 1, end - at - 1);
      const bool is_service = part.size() > 8 && part.compare(part.size() - 8, 8, ".service") == 0;
      if (is_service && part.rfind("user@", 0) != 0) return part;
      at = end < line.size() ? end : std::string::npos;
    }
  }
  return {};
}

std::string user_name(uid_t uid) {
  const passwd* entry = getpwuid(uid);
  return entry != nullptr ? entry->pw_name : fmt::format("uid {}", uid);
}

std::vector<pid_t> all_pids() {
  std::vector<pid_t> pids;
  DIR* dir = opendir("/proc");
  if (dir == nullptr) return pids;
  while (const dirent* entry = readdir(dir)) {
    if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9') pids.push_back(atoi(entry->d_name));
  }
  closedir(dir);
  return pids;
}

std::string restart_advice(const ProcessFacts& process) {
  const std::string service = service_of(process.pid);
  if (!service.empty()) {
    return fmt::format(
        "Give {} the lines that 'mpklink env --help' shows for a unit (systemctl edit {}), then: systemctl restart {}",
        service, service, service);
  }
  std::string words;
  bool exact = true;
  for (const std::string& word : process.words) {
    words += " " + shell_quote(word);
    exact = exact && printable(word) == word;
  }
  constexpr std::size_t kLongest = 300;
  // A title that the program has put over its words (nginx: worker process) cannot be typed.
  const bool title = !process.words.empty() && process.words[0].find(' ') != std::string::npos;
  if (words.empty() || title || !exact || words.size() > kLongest) {
    const std::string program = words.empty() || title ? process.program : process.words[0];
    words = fmt::format(" {} ...", printable(program.empty() ? process.name : program));
  }
  return "Start it again with: mpklink run --" + words;
}

}  // namespace mpklink
