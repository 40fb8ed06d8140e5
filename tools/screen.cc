// SPDX-License-Identifier: MIT
#include "tools/screen.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <csignal>
#include <string_view>

#include "tools/command_support.h"

namespace mpklink {
namespace {

constexpr std::string_view kOtherScreen = "\033[?1049h\033[?25l", kFirstScreen = "\033[?25h\033[?1049l";
constexpr std::string_view kHome = "\033[H", kClearLine = "\033[K", kClearRest = "\033[J";

}  // namespace

Screen::Screen() {
  keys_ = tcgetattr(STDIN_FILENO, &before_) == 0;
  take();
}

Screen::~Screen() {
  give_back();
}

void Screen::take() {
  termios raw = before_;
  raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);  // Ctrl-C and Ctrl-Z stay signals
  if (keys_) tcsetattr(STDIN_FILENO, TCSANOW, &raw);
  emit(kOtherScreen);
}

/// Also when the terminal is gone, hence no complaint.
void Screen::give_back() {
  if (keys_) tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  if (write(STDOUT_FILENO, kFirstScreen.data(), kFirstScreen.size()) < 0) return;
}

std::size_t Screen::rows() const {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 ? size.ws_row : 24;
}

void Screen::show(const std::string& text) {
  std::string lines(kHome);
  std::size_t left = rows();
  for (std::size_t at = 0; at < text.size() && left > 0; --left) {
    const std::size_t end = text.find('\n', at);
    lines += text.substr(at, end - at);
    lines += kClearLine;
    at = end + 1;
    if (at < text.size() && left > 1) lines += "\n";
  }
  lines += kClearRest;
  emit(lines);
}

void Screen::stop() {
  give_back();
  raise(SIGSTOP);
  take();
}

}  // namespace mpklink
