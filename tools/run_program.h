// SPDX-License-Identifier: MIT
// How `mpklink run` runs a program: by becoming it, or, for --report, as its parent.
#pragma once

#include <string>
#include <vector>

namespace mpklink {

/// Becomes the program: its process id, its descriptors, its signals. Returns only if the kernel refuses: a Refusal.
[[noreturn]] void become(const std::string& path, const std::vector<std::string>& command);

/// Runs it as a child in the same process group, so that the terminal is both's, and waits for its end. Signals that are sent to us go
/// on to it. Returns its exit code, 128 + signal as a shell does.
int run_as_parent(const std::string& path, const std::vector<std::string>& command);

/// A file that processes of any user can append to while the object lives: statistics are written by workers that have changed theirs.
class StatsFile {
 public:
  /// `path`: one that the user wants to keep, which may have lines of earlier runs; empty: one of our own, removed at the end.
  explicit StatsFile(const std::string& path);
  ~StatsFile();
  StatsFile(const StatsFile&) = delete;
  StatsFile& operator=(const StatsFile&) = delete;
  const std::string& path() const { return path_; }
  /// What was appended since.
  std::string lines() const;

 private:
  std::string directory_;
  std::string path_;
  long before_ = 0;
};

}  // namespace mpklink
