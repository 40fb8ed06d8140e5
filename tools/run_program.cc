// SPDX-License-Identifier: MIT
#include "tools/run_program.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "tools/program_check.h"
#include "tools/refusal.h"

namespace mpklink {
namespace {

constexpr int kForwarded[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

/// What the child is to find as we found it.
struct SignalState {
  sigset_t mask;
  struct sigaction child;
};

/// From here on the signals wait for sigwaitinfo(): none is lost between two calls.
SignalState hold_signals(sigset_t* held) {
  SignalState before{};
  sigemptyset(held);
  sigaddset(held, SIGCHLD);
  for (int number : kForwarded) sigaddset(held, number);
  sigprocmask(SIG_BLOCK, held, &before.mask);
  struct sigaction standard {};
  standard.sa_handler = SIG_DFL;  // ignored, children would end without a trace
  sigaction(SIGCHLD, &standard, &before.child);
  return before;
}

int wait_for(pid_t child, const sigset_t& held) {
  for (;;) {
    int status = 0;
    const pid_t ended = waitpid(child, &status, WNOHANG);
    if (ended == child) return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    if (ended < 0 && errno != EINTR) return kExitUnavailable;
    siginfo_t info{};
    const int number = sigwaitinfo(&held, &info);
    // What the terminal sends reaches the whole process group, the program too.
    if (number > 0 && number != SIGCHLD && info.si_code <= 0) kill(child, number);
  }
}

[[noreturn]] void become_in_child(const SignalState& before, const std::string& path, const std::vector<std::string>& command) {
  sigaction(SIGCHLD, &before.child, nullptr);
  sigprocmask(SIG_SETMASK, &before.mask, nullptr);
  int code = kExitUnavailable;
  try {
    become(path, command);
  } catch (const Refusal& refusal) {
    const std::string line = std::string("mpklink: ") + refusal.what() + "\n";
    if (write(STDERR_FILENO, line.data(), line.size()) < 0) code = refusal.exit_code;
    code = refusal.exit_code;
  }
  _exit(code);
}

}  // namespace

void become(const std::string& path, const std::vector<std::string>& command) {
  std::vector<char*> argv;
  argv.reserve(command.size() + 1);
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  // The path has a slash, so this searches nothing; it falls back to /bin/sh where execv does not.
  execvp(path.c_str(), argv.data());
  const int code = errno == ENOENT ? kExitNotFound : kExitCannotWrap;
  const char* next = errno == E2BIG ? "; make the environment or the arguments shorter" : "; run it without mpklink to compare";
  throw Refusal(code, path + " cannot be executed: " + strerror(errno) + next);
}

int run_as_parent(const std::string& path, const std::vector<std::string>& command) {
  sigset_t held;
  const SignalState before = hold_signals(&held);
  const pid_t child = fork();
  if (child < 0) {
    throw Refusal(kExitUnavailable, std::string("no process can be made: ") + strerror(errno) + "; raise the limit (ulimit -u), or run without --report");
  }
  if (child == 0) become_in_child(before, path, command);
  return wait_for(child, held);
}

StatsFile::StatsFile(const std::string& path) : path_(path) {
  if (path_.empty()) {
    // Not in /tmp itself: there, fs.protected_regular keeps other users from a file that is not theirs.
    const char* base = getenv("TMPDIR");
    directory_ = std::string(base != nullptr && *base == '/' ? base : "/tmp") + "/mpklink-report-XXXXXX";
    if (mkdtemp(directory_.data()) == nullptr) {
      throw Refusal(kExitUnavailable, directory_ + " cannot be made: " + strerror(errno) + "; make room, or set TMPDIR");
    }
    chmod(directory_.c_str(), 0711);
    path_ = directory_ + "/stats";
    const int fd = open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd >= 0) {
      fchmod(fd, 0666);
      close(fd);
    }
  }
  struct stat st;
  before_ = stat(path_.c_str(), &st) == 0 ? st.st_size : 0;
}

StatsFile::~StatsFile() {
  if (directory_.empty()) return;
  unlink(path_.c_str());
  rmdir(directory_.c_str());
}

std::string StatsFile::lines() const {
  std::ifstream file(path_, std::ios::binary);
  file.seekg(before_);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  return text.str();
}

}  // namespace mpklink
