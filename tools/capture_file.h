// SPDX-License-Identifier: MIT
// Where a capture is written to: a file, or a pipe whose reader may be slow or go away.
#pragma once

#include <string>
#include <string_view>

#include "tools/stop_signals.h"

namespace mpklink {

class CaptureFile {
 public:
  /// "-" is standard output. A file is its owner's alone: it has what was said in private. What it had before stays until begin().
  explicit CaptureFile(const std::string& path);
  void begin();
  ~CaptureFile();
  CaptureFile(const CaptureFile&) = delete;
  CaptureFile& operator=(const CaptureFile&) = delete;

  /// Keeps the bytes until flush(), or until there are many. Throws a Refusal when they cannot be written.
  void write(std::string_view bytes, const StopSignals& signals);
  void flush(const StopSignals& signals);
  /// The reader is gone, or does not read although an end was asked for: what is written from then on is nobody's.
  bool reader_gone() const { return reader_gone_; }
  /// What to wait for to learn that the reader is gone while there is nothing to write, and how to say so.
  pollfd reader_poll() const { return {is_file_ ? -1 : fd_, 0, 0}; }
  void set_reader_gone() { reader_gone_ = true; }

 private:
  bool wait_writable(const StopSignals& signals);

  std::string path_;
  int fd_;
  bool is_file_ = true, reader_gone_ = false;
  std::string kept_;
};

}  // namespace mpklink
