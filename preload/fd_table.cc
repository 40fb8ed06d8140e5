// SPDX-License-Identifier: MIT
#include "preload/fd_table.h"

#include <sys/mman.h>

#include "preload/process.h"

namespace mpklink {
namespace {

FdTable g_fd_table;

}  // namespace

FdTable& fd_table() { return g_fd_table; }

bool FdTable::allocate() {
  static SpinLock lock;
  const LockGuard guard(lock);
  if (words_ != nullptr) return true;
  // Address space only: pages come as numbers are used.
  void* at = ::mmap(nullptr, sizeof(words_[0]) * kMaxFd, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return false;
  // An aligned pointer store; a reader that still sees null treats the descriptor as unknown, which it was.
  mark_own_memory();
  words_ = static_cast<Atomic<std::uintptr_t>*>(at);
  return true;
}

bool FdTable::set(int fd, std::uintptr_t value) {
  if (fd < 0 || fd >= kMaxFd || (words_ == nullptr && !allocate())) return false;
  std::uint32_t seen = highest_.load_relaxed();  // relaxed: the compare-exchange orders
  while (seen < static_cast<std::uint32_t>(fd) && !highest_.compare_exchange(seen, static_cast<std::uint32_t>(fd))) {
  }
  words_[fd].store_release(value);  // SYNC: fd entered
  return true;
}

void FdTable::clear(int fd) {
  if (words_ != nullptr && fd >= 0 && fd < kMaxFd) words_[fd].store_release(0);
}

}  // namespace mpklink
