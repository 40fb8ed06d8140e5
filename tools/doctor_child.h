// SPDX-License-Identifier: MIT
// This program, started once more as an end of a connection, with or without the library.
#pragma once
#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

namespace mpklink {

using Environment =
    std::vector<std::pair<std::string, std::string>>;  // changes; an empty value takes the variable away

class Child {
 public:
  /// Starts `mpklink doctor --end ROLE`. Throws Refusal (3) when there can be no process.
  Child(const std::string& role, const Environment& changes);
  ~Child();  // ends it
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  pid_t pid() const { return pid_; }
  /// The next line it says, without its end; "" when it ends or says none in time.
  std::string line(int timeout_ms);
  /// Closes its standard input, which tells it to end, and waits. Its exit code; 128 + the signal; -1: it did not end
  /// in time.
  int finish(int timeout_ms);
  /// The beginning of what it and ld.so said on stderr.
  std::string errors() const;

 private:
  pid_t pid_ = -1;
  int input_ = -1, output_ = -1, errors_ = -1;
  std::string buffer_;
};

/// An anonymous file, for a child to append to by its path.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  std::string path() const;
  std::string content() const;

 private:
  int fd_;
};

/// Changes to the environment: the library preloaded beside what is there, or switched off. The user's other settings
/// stay.
Environment with_library(const std::string& library);
Environment without_library();

}  // namespace mpklink
