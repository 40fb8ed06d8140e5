// SPDX-License-Identifier: MIT
// What /proc says of a process. Everything may vanish between two looks, and what belongs to others may be closed to
// us.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace mpklink {

/// A whole file, or "" with errno. For /proc: of files whose size is not known.
std::string read_whole(const std::string& path);
/// What a symbolic link says, or "" with errno.
std::string read_link(const std::string& path);
std::string proc_path(pid_t pid, const std::string& name);

/// The library in a process's address space.
struct MappedLibrary {
  std::string path;       // as the kernel names it, without " (deleted)"; empty: not mapped
  bool replaced = false;  // the file of that name is another one by now, or gone
  std::string file;       // where its bytes can be read from here: through /proc; may fail to open
};

struct LibraryVersion {
  std::string text;          // "0.1.0"; empty: not known
  std::uint32_t layout = 0;  // peers of others stay on TCP
};
/// From the note in the file (preload/version_note.cc).
LibraryVersion library_version(const std::string& path);

struct ProcessFacts {
  enum class Kind { kGone, kKernelThread, kZombie, kClosed, kOpen } kind = Kind::kGone;
  pid_t pid = 0;
  std::string name;                // its comm
  std::vector<std::string> words;  // its command line
  std::string program;             // /proc/PID/exe, without " (deleted)"
  std::map<std::string, std::string> status;
  uid_t uid = 0;  // effective
  // Only of kOpen:
  std::vector<std::string> environment;  // as it was started with
  MappedLibrary library;
  LibraryVersion version;

  /// "nginx (pid 12)".
  std::string title() const;
  /// The value of a variable of its environment, or "".
  std::string variable(const std::string& name) const;
};

ProcessFacts look_at(pid_t pid);

/// `net:[4026531840]` and the like; "" when we may not see it.
std::string namespace_of(pid_t pid, const std::string& kind);
/// "net, pid": the namespaces (of net, pid, user and mnt) in which two processes are not together; "?": we may not see
/// them.
std::string different_namespaces(pid_t a, pid_t b);
/// Was it started in secure mode (AT_SECURE), in which ld.so ignores LD_PRELOAD? -1: not known.
int secure_mode(pid_t pid);
/// Descriptors that are open, and those of io_uring among them. -1: not known.
struct Descriptors {
  long open = -1;
  long io_uring = 0;
};
Descriptors descriptors_of(pid_t pid);
/// The soft limit that `name` begins with in /proc/PID/limits; ~0: none.
std::uint64_t limit_of(pid_t pid, const std::string& name);
/// The least limit of the memory cgroups it is in, as preload/allowance.cc reads them; ~0: none.
std::uint64_t memory_limit_of(pid_t pid);
/// "nginx.service" when systemd runs it; else "".
std::string service_of(pid_t pid);
std::string user_name(uid_t uid);

/// All process ids there are.
std::vector<pid_t> all_pids();

/// What to type so that it runs with the library next time.
std::string restart_advice(const ProcessFacts& process);

}  // namespace mpklink
