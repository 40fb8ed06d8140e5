// SPDX-License-Identifier: MIT
// Finds the processes that have the library: their status pages are links in /proc/PID/fd. The kernel decides whose links may be followed:
// one's own processes, or all for root. Processes come and go meanwhile; in lists the vanished are left out, by name they are an error.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tools/status_page.h"

namespace mpklink {

/// Who a process is, as the kernel has it.
struct ProcessName {
  pid_t pid = 0;
  uid_t uid = 0;
  std::string program;        // /proc/PID/comm, printable
  std::uint64_t network = 0;  // inode of its network namespace, 0: not known
};

/// An open status page of a process.
struct OpenPage {
  ProcessName process;
  int fd = -1;              // the page's file, to be locked; closed with this object
  std::uint64_t inode = 0;  // of the file: another one after an exec
  std::optional<StatusPage> page;

  OpenPage() = default;
  OpenPage(OpenPage&& other) noexcept;
  OpenPage& operator=(OpenPage&& other) noexcept;
  ~OpenPage();
};

/// Content is empty when the library is another version.
struct ProcessStatus {
  ProcessName process;
  std::uint32_t version = 0;
  std::optional<PageContent> content;
};

/// Remembers where it found the pages, which makes looking again cheap.
class StatusReader {
 public:
  /// The pages of all visible processes, or of `pids`, which throws a Refusal (kExitUnavailable) for one that is not there, is not ours or
  /// has no page. In the order of their pids.
  std::vector<OpenPage> open(StatusPage::Access access, const std::vector<int>& pids = {});
  std::vector<ProcessStatus> read(const std::vector<int>& pids = {});

 private:
  enum class Problem { kNone, kVanished, kForbidden, kNoPage };
  Problem open_one(pid_t pid, StatusPage::Access access, OpenPage* found);
  Problem search(pid_t pid, StatusPage::Access access, OpenPage* found);
  [[noreturn]] void refuse(pid_t pid, Problem problem);

  std::map<pid_t, int> known_fds_;
};

/// The number of a process in the innermost of its pid namespaces, as it sees itself; 0: not known.
std::uint32_t own_pid_of(pid_t pid);

/// "nginx[12]"
std::string process_text(const ProcessName& process);

}  // namespace mpklink
