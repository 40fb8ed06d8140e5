// SPDX-License-Identifier: MIT
// fd -> what this library knows of it. A flat array of words, read without a lock; the memory behind a word is never
// returned (slabs), so a stale look is harmless: whoever acts on it checks again under the object's lock.
#pragma once
#include <cstdint>

#include "shm/atomic.h"

namespace mpklink {

struct Stream;
struct EpollSet;

class FdTable {
 public:
  static constexpr int kMaxFd = 1 << 20;

  Stream* stream(int fd) const { return reinterpret_cast<Stream*>(entry(fd, kStream)); }
  bool names(int fd, const Stream* s) const { return s != nullptr && stream(fd) == s; }
  EpollSet* epoll(int fd) const { return reinterpret_cast<EpollSet*>(entry(fd, kEpoll)); }
  bool hidden(int fd) const { return (word(fd) & kHidden) != 0; }
  bool empty(int fd) const { return word(fd) == 0; }
  // Nothing was ever entered: no call concerns us, and no fault handler is there to read a program's memory under.
  bool unused() const { return words_.load_relaxed() == 0; }  // relaxed: a number of ours was handed out after it was entered

  // False: the table could not be made or the number is beyond it; the descriptor stays unknown.
  bool set_stream(int fd, Stream* stream) { return set(fd, reinterpret_cast<std::uintptr_t>(stream) | kStream); }
  bool set_epoll(int fd, EpollSet* set_) { return set(fd, reinterpret_cast<std::uintptr_t>(set_) | kEpoll); }
  bool set_stand_in(int fd, Stream* stream) { return set(fd, reinterpret_cast<std::uintptr_t>(stream) | kStandIn); }  // hidden, too
  bool set_hidden(int fd) { return set(fd, kHidden); }
  void clear(int fd);
  // Forgets `fd` if it still names the object. Of several threads that close one number, one gets true.
  bool take(int fd, const Stream* stream) {
    const auto word = reinterpret_cast<std::uintptr_t>(stream);
    return take_word(fd, word | kStream) || take_word(fd, word | kStandIn);
  }
  bool take(int fd, const EpollSet* set_) { return take_word(fd, reinterpret_cast<std::uintptr_t>(set_) | kEpoll); }

  // Highest number ever entered, for the few loops over all.
  int highest() const { return static_cast<int>(highest_.load_relaxed()); }  // relaxed: a hint for rare loops

 private:
  enum Tag : std::uintptr_t { kStream = 1, kEpoll = 2, kHidden = 4, kStandIn = kStream | kHidden, kTagMask = 7 };

  std::uintptr_t word(int fd) const {
    auto* words = reinterpret_cast<Atomic<std::uintptr_t>*>(words_.load_acquire());  // SYNC: table made
    if (words == nullptr || static_cast<unsigned>(fd) >= kMaxFd) return 0;
    return words[fd].load_acquire();  // SYNC: fd entered
  }
  std::uintptr_t entry(int fd, Tag tag) const {
    const std::uintptr_t w = word(fd);
    return (w & tag) != 0 ? w & ~static_cast<std::uintptr_t>(kTagMask) : 0;
  }
  bool set(int fd, std::uintptr_t value);
  bool take_word(int fd, std::uintptr_t expected);
  bool allocate();

  Atomic<std::uintptr_t> words_;  // of Atomic<std::uintptr_t>[kMaxFd]
  Atomic<std::uint32_t> highest_;
};

extern FdTable g_fd_table;  // by its name nowhere: on the data path, where a call would cost
inline FdTable& fd_table() { return g_fd_table; }

}  // namespace mpklink
