// SPDX-License-Identifier: MIT
// The whole terminal for as long as this object lives: another screen, no echo, keys as they come. The end gives it back as it was.
#pragma once

#include <termios.h>

#include <cstddef>
#include <string>

namespace mpklink {

class Screen {
 public:
  Screen();
  ~Screen();
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;

  std::size_t rows() const;
  /// Replaces what is shown, without flicker.
  void show(const std::string& text);
  /// Ctrl-Z: gives the terminal back, stops, and takes it again when continued.
  void stop();

 private:
  void take();
  void give_back();

  bool keys_ = false;  // standard input is a terminal, too
  termios before_{};
};

}  // namespace mpklink
