// SPDX-License-Identifier: MIT
#include "tools/capture_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>

#include "tools/command_support.h"

namespace mpklink {
namespace {

constexpr std::size_t kKeptBytes = 1 << 20;
constexpr std::chrono::seconds kPatience{1};  // with a reader that stopped reading, after the end was asked for

[[noreturn]] void refuse(const std::string& path, int error) {
  const char* next = error == ENOSPC || error == EDQUOT ? "make room, or write elsewhere" : "write elsewhere with -w FILE";
  throw Refusal(kExitUnavailable, fmt::format("{} cannot be written: {}; {}", path, strerror(error), next));
}

}  // namespace

CaptureFile::CaptureFile(const std::string& path) : path_(path == "-" ? "standard output" : printable(path)) {
  if (path == "-" && stdout_is_terminal()) {
    throw UsageError("a capture is not for terminals; say -w FILE, or: mpklink dump -w - | tshark -r -");
  }
  fd_ = path == "-" ? STDOUT_FILENO : open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (fd_ < 0) refuse(path_, errno);
  struct stat st;
  is_file_ = fstat(fd_, &st) == 0 && S_ISREG(st.st_mode);
}

void CaptureFile::begin() {
  if (is_file_ && fd_ != STDOUT_FILENO && ftruncate(fd_, 0) != 0) refuse(path_, errno);
}

CaptureFile::~CaptureFile() {
  if (fd_ != STDOUT_FILENO) close(fd_);
}

void CaptureFile::write(std::string_view bytes, const StopSignals& signals) {
  kept_ += bytes;
  if (kept_.size() >= kKeptBytes) flush(signals);
}

void CaptureFile::flush(const StopSignals& signals) {
  std::string_view rest = kept_;
  while (!rest.empty() && !reader_gone_) {
    if (!is_file_ && !wait_writable(signals)) break;
    // So many bytes a pipe with room takes without making us wait, and deaf to signals.
    const std::size_t length = is_file_ ? rest.size() : std::min<std::size_t>(rest.size(), PIPE_BUF);
    const ssize_t written = ::write(fd_, rest.data(), length);
    if (written >= 0) {
      rest.remove_prefix(static_cast<std::size_t>(written));
    } else if (errno == EPIPE) {
      reader_gone_ = true;
    } else if (errno != EINTR && errno != EAGAIN) {
      kept_.clear();
      refuse(path_, errno);
    }
  }
  kept_.clear();
}

bool CaptureFile::wait_writable(const StopSignals& signals) {
  std::vector<pollfd> fds = {{fd_, POLLOUT, 0}};
  for (;;) {
    const int ready = signals.wait(&fds, StopSignals::wanted() ? kPatience : std::chrono::seconds(-1));
    if (ready > 0) return true;
    if (ready == 0) reader_gone_ = true;
    if (ready == 0) return false;
  }
}

}  // namespace mpklink
