// SPDX-License-Identifier: MIT
#include "tools/doctor_attempt.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace mpklink {

Outcome attempt(const std::function<int()>& work) {
  const pid_t child = fork();
  if (child < 0) return {255, 0};
  if (child == 0) {
    const rlimit no_core{};
    setrlimit(RLIMIT_CORE, &no_core);
    _exit(work());
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFSIGNALED(status)) return {0, WTERMSIG(status)};
  return {WEXITSTATUS(status), 0};
}

std::string outcome_text(const Outcome& outcome) {
  if (outcome.signal != 0) return fmt::format("the call ends the process with {}", strsignal(outcome.signal));
  const char* name = strerrorname_np(outcome.code);
  return fmt::format("{} ({})", strerror(outcome.code), name != nullptr ? name : "?");
}

}  // namespace mpklink
