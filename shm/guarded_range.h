// SPDX-License-Identifier: MIT
// One reserved piece of address space in which everything shared with peers lives: equal slots, each a mapping followed
// by PROT_NONE pages. One range makes the question "does this buffer of the program touch guarded memory" one compare.
#pragma once
#include <cstddef>
#include <cstdint>

#include "shm/atomic.h"
#include "shm/system_calls.h"

namespace mpklink {

class GuardedRange {
 public:
  static constexpr std::size_t kSlotsMax = 32768;

  // Reserves address space for `slots` mappings of up to `slot_bytes`, fewer when the limits of the process (RLIMIT_AS)
  // ask for that. False: not even a few fit.
  bool reserve(const SystemCalls& sys, std::size_t slot_bytes, std::size_t slots);
  bool reserved() const { return base_.load_acquire() != 0; }  // SYNC: range reserved
  std::size_t slot_bytes() const { return slot_bytes_; }

  // Maps `private_bytes` of anonymous memory (shared with forked children only), then `bytes` of `fd`, into a free slot,
  // as PROT_NONE; the guard opens or tags it. Null with errno: no slot (ENOMEM) or mmap failed.
  unsigned char* map(const SystemCalls& sys, std::size_t private_bytes, int fd, std::size_t bytes);
  // Where the process has no mapping left (vm.max_map_count), the slot stays as it is until a later map() can free it.
  void unmap(const SystemCalls& sys, unsigned char* address);

  // Whether [address, address + length) touches the range. A huge length counts as touching, none does not (the kernel looks at no byte then).
  bool touches(const void* address, std::size_t length) const {
    const auto a = reinterpret_cast<std::uintptr_t>(address);
    const std::uintptr_t base = base_.load_relaxed();  // relaxed: only non-zero once mapped, and then constant
    return base != 0 && length != 0 && a < base + total_ && a + length > base;
  }

  // mprotect of every mapping there is, for the guard mode that needs it.
  void protect_all(const SystemCalls& sys, int prot);

 private:
  static constexpr std::uint32_t kLeftBehind = std::uint32_t{1} << 31;  // in mapped_pages_: unmap() failed

  std::size_t find_free();
  bool release(const SystemCalls& sys, std::size_t slot, std::uint32_t pages);
  void release_left_behind(const SystemCalls& sys);
  unsigned char* address_of(std::size_t slot) const;

  Atomic<std::uintptr_t> base_;
  std::size_t slot_bytes_ = 0;
  std::size_t slots_ = 0;
  std::size_t total_ = 0;
  Atomic<std::uint64_t> taken_[kSlotsMax / 64] = {};
  Atomic<std::uint32_t> mapped_pages_[kSlotsMax] = {};
  Atomic<std::uint32_t> left_behind_;
};

}  // namespace mpklink
