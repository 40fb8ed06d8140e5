// SPDX-License-Identifier: MIT
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>

namespace mpklink {

/// A file of known size, read at any offset without overflow.
class FileBytes {
 public:
  explicit FileBytes(int fd) : fd_(fd) {
    struct stat st;
    if (fstat(fd, &st) == 0 && st.st_size > 0) size_ = static_cast<uint64_t>(st.st_size);
  }

  bool contains(uint64_t offset, uint64_t length) const { return offset <= size_ && length <= size_ - offset; }

  bool read(uint64_t offset, void* to, uint64_t length) const {
    if (!contains(offset, length)) return false;
    char* out = static_cast<char*>(to);
    while (length > 0) {
      ssize_t n = pread(fd_, out, length, static_cast<off_t>(offset));
      if (n <= 0) return false;
      out += n;
      offset += static_cast<uint64_t>(n);
      length -= static_cast<uint64_t>(n);
    }
    return true;
  }

 private:
  int fd_;
  uint64_t size_ = 0;
};

}  // namespace mpklink
