// SPDX-License-Identifier: MIT
#include "preload/fd_table.h"

#include <sys/mman.h>

#include "preload/fault.h"
#include "preload/process.h"

namespace mpklink {

FdTable g_fd_table;

bool FdTable::allocate() {
  constexpr std::size_t kBytes = sizeof(Atomic<std::uintptr_t>) * kMaxFd;
  // Address space only: pages come as numbers are used.
  void* at = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return false;
  mark_own_memory();         // before a status page can be, which it points to
  install_fault_handlers();  // from the first socket or epoll instance on; before unused() says so
  std::uintptr_t expected = 0;
  if (!words_.compare_exchange(expected, reinterpret_cast<std::uintptr_t>(at))) ::munmap(at, kBytes);  // another was faster
  return true;
}

bool FdTable::set(int fd, std::uintptr_t value) {
  if (fd < 0 || fd >= kMaxFd || (words_.load_acquire() == 0 && !allocate())) return false;
  std::uint32_t seen = highest_.load_relaxed();  // relaxed: the compare-exchange orders
  while (seen < static_cast<std::uint32_t>(fd) && !highest_.compare_exchange(seen, static_cast<std::uint32_t>(fd))) {
  }
  reinterpret_cast<Atomic<std::uintptr_t>*>(words_.load_acquire())[fd].store_release(value);  // SYNC: fd entered
  return true;
}

bool FdTable::take_word(int fd, std::uintptr_t expected) {
  auto* words = reinterpret_cast<Atomic<std::uintptr_t>*>(words_.load_acquire());
  return words != nullptr && fd >= 0 && fd < kMaxFd && words[fd].compare_exchange(expected, 0);
}

void FdTable::clear(int fd) {
  auto* words = reinterpret_cast<Atomic<std::uintptr_t>*>(words_.load_acquire());
  if (words != nullptr && fd >= 0 && fd < kMaxFd) words[fd].store_release(0);
}

}  // namespace mpklink
