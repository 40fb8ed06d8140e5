// SPDX-License-Identifier: MIT
#include "tools/doctor_child.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "tools/doctor_proc.h"
#include "tools/preload_env.h"
#include "tools/refusal.h"

namespace mpklink {
namespace {

constexpr int kLifeSeconds = 30;  // of a child whose parent was killed
constexpr std::size_t kMostErrors = 400;

struct Pipe {
  int ends[2] = {-1, -1};
  Pipe() {
    if (pipe2(ends, O_CLOEXEC) != 0) {
      throw Refusal(kExitUnavailable,
                    fmt::format("no pipe for a process of the test: {}; raise the limits (ulimit -n), and try again",
                                strerror(errno)));
    }
  }
};

int scratch_file() {
  return memfd_create("mpklink-doctor", MFD_CLOEXEC);
}

std::string content_of(int fd) {
  std::string text(1 << 16, '\0');
  const ssize_t n = pread(fd, text.data(), text.size(), 0);
  text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  return text;
}

[[noreturn]] void become_end(const std::string& role, const Environment& changes, int input, int output, int errors) {
  for (const auto& [name, value] : changes)
    value.empty() ? unsetenv(name.c_str()) : setenv(name.c_str(), value.c_str(), 1);
  dup2(input, STDIN_FILENO);
  dup2(output, STDOUT_FILENO);
  dup2(errors, STDERR_FILENO);
  signal(SIGPIPE, SIG_DFL);
  alarm(kLifeSeconds);
  execl("/proc/self/exe", "mpklink", "doctor", "--end", role.c_str(), nullptr);
  _exit(127);
}

}  // namespace

Child::Child(const std::string& role, const Environment& changes) {
  const Pipe in, out;
  errors_ = scratch_file();
  pid_ = fork();
  if (pid_ == 0) become_end(role, changes, in.ends[0], out.ends[1], errors_);
  close(in.ends[0]);
  close(out.ends[1]);
  input_ = in.ends[1];
  output_ = out.ends[0];
  if (pid_ < 0)
    throw Refusal(
        kExitUnavailable,
        fmt::format("no process for the test: {}; raise the limits (ulimit -u), and try again", strerror(errno)));
}

Child::~Child() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  for (const int fd : {input_, output_, errors_}) {
    if (fd >= 0) close(fd);
  }
}

std::string Child::line(int timeout_ms) {
  for (;;) {
    const std::size_t end = buffer_.find('\n');
    if (end != std::string::npos) {
      std::string line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      return line;
    }
    pollfd wait = {output_, POLLIN, 0};
    char bytes[4096];
    if (poll(&wait, 1, timeout_ms) <= 0) return {};
    const ssize_t n = read(output_, bytes, sizeof bytes);
    if (n <= 0) return {};
    buffer_.append(bytes, static_cast<std::size_t>(n));
  }
}

int Child::finish(int timeout_ms) {
  close(input_);
  input_ = -1;
  pollfd wait = {output_, 0, 0};  // hangs up when it ends
  poll(&wait, 1, timeout_ms);
  int status = 0;
  for (int tries = 0; waitpid(pid_, &status, WNOHANG) != pid_; ++tries) {
    if (tries == 100) return -1;
    usleep(10000);
  }
  pid_ = -1;
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

std::string Child::errors() const {
  std::string text = content_of(errors_).substr(0, kMostErrors);
  return text.substr(0, text.find('\n'));
}

Scratch::Scratch() : fd_(scratch_file()) {
  if (fd_ < 0)
    throw Refusal(
        kExitUnavailable,
        fmt::format("no memory file for the test's statistics: {}; allow memfd_create, or raise the limits (ulimit -n)",
                    strerror(errno)));
}
Scratch::~Scratch() {
  close(fd_);
}
std::string Scratch::path() const {
  return fmt::format("/proc/{}/fd/{}", getpid(), fd_);
}
std::string Scratch::content() const {
  return content_of(fd_);
}

Environment with_library(const std::string& library) {
  const char* current = getenv("LD_PRELOAD");
  return {{"LD_PRELOAD", append_preload(current != nullptr ? current : "", library)},
          {"MPKLINK_LOG", "off"},
          {"MPKLINK_STATS", ""}};
}

Environment without_library() {
  return {{"MPKLINK_DISABLE", "1"}, {"MPKLINK_LOG", "off"}, {"MPKLINK_STATS", ""}};
}

}  // namespace mpklink
