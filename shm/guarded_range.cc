// SPDX-License-Identifier: MIT
#include "shm/guarded_range.h"

#include <cerrno>

#include "shm/layout.h"

namespace mpklink {
namespace {

constexpr std::size_t kSlotsLeast = 16;

}  // namespace

bool GuardedRange::reserve(const SystemCalls& sys, std::size_t slot_bytes, std::size_t slots) {
  slot_bytes = round_to_page(slot_bytes) + kPage;  // one PROT_NONE page at least behind each mapping
  if (slots > kSlotsMax) slots = kSlotsMax;
  for (; slots >= kSlotsLeast; slots /= 2) {
    // One page more in front: the first mapping needs its lower guard too.
    const std::size_t total = slots * slot_bytes + kPage;
    void* at = sys.mmap(nullptr, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) continue;
    slot_bytes_ = slot_bytes;
    slots_ = slots;
    total_ = total;
    base_.store_release(reinterpret_cast<std::uintptr_t>(at));  // SYNC: range reserved
    return true;
  }
  return false;
}

unsigned char* GuardedRange::address_of(std::size_t slot) const {
  return reinterpret_cast<unsigned char*>(base_.load_relaxed()) + kPage + slot * slot_bytes_;  // relaxed: constant once set
}

std::size_t GuardedRange::find_free() {
  for (std::size_t w = 0; w * 64 < slots_; ++w) {
    std::uint64_t taken = taken_[w].load_relaxed();  // relaxed: the fetch_or below decides
    while (taken != ~std::uint64_t{0}) {
      const unsigned bit = static_cast<unsigned>(__builtin_ctzll(~taken));
      if (w * 64 + bit >= slots_) return slots_;
      taken = taken_[w].fetch_or(std::uint64_t{1} << bit);
      if (!(taken & (std::uint64_t{1} << bit))) return w * 64 + bit;
    }
  }
  return slots_;
}

unsigned char* GuardedRange::map(const SystemCalls& sys, std::size_t private_bytes, int fd, std::size_t bytes) {
  release_left_behind(sys);
  const std::size_t need = private_bytes + bytes;
  const std::size_t slot = need + kPage <= slot_bytes_ ? find_free() : slots_;
  if (slot == slots_) {
    errno = ENOMEM;
    return nullptr;
  }
  unsigned char* const at = address_of(slot);
  const int fixed = MAP_SHARED | MAP_FIXED;
  const bool ok =
      (private_bytes == 0 || sys.mmap(at, private_bytes, PROT_NONE, fixed | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) &&
      sys.mmap(at + private_bytes, bytes, PROT_NONE, fixed, fd, 0) != MAP_FAILED;
  mapped_pages_[slot].store_release(static_cast<std::uint32_t>(round_to_page(need) / kPage));  // SYNC: slot mapped
  if (ok) {
    // Shared contents do not belong into a core dump of this process.
    sys.madvise(at, need, MADV_DONTDUMP);
    return at;
  }
  const int error = errno;
  unmap(sys, at);
  errno = error;
  return nullptr;
}

void GuardedRange::unmap(const SystemCalls& sys, unsigned char* address) {
  const std::size_t offset = reinterpret_cast<std::uintptr_t>(address) - base_.load_relaxed() - kPage;
  const std::size_t slot = offset / slot_bytes_;
  release(sys, slot, mapped_pages_[slot].exchange(0));
}

bool GuardedRange::release(const SystemCalls& sys, std::size_t slot, std::uint32_t pages) {
  // Reserved again in one call: at no moment is there a hole that another mmap could fall into.
  const int fixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  if (sys.mmap(address_of(slot), std::size_t{pages} * kPage, PROT_NONE, fixed, -1, 0) == MAP_FAILED) {
    mapped_pages_[slot].store_release(pages | kLeftBehind);  // SYNC: slot mapped
    left_behind_.fetch_add(1);
    return false;
  }
  taken_[slot / 64].fetch_and(~(std::uint64_t{1} << (slot % 64)));
  return true;
}

void GuardedRange::release_left_behind(const SystemCalls& sys) {
  for (std::size_t slot = 0; slot < slots_ && left_behind_.load_relaxed() != 0; ++slot) {  // relaxed: a hint
    std::uint32_t pages = mapped_pages_[slot].load_relaxed();                              // relaxed: the exchange decides
    if (!(pages & kLeftBehind) || !mapped_pages_[slot].compare_exchange(pages, 0)) continue;
    left_behind_.fetch_add(~std::uint32_t{0});
    if (!release(sys, slot, pages & ~kLeftBehind)) return;
  }
}

void GuardedRange::protect_all(const SystemCalls& sys, int prot) {
  for (std::size_t slot = 0; slot < slots_; ++slot) {
    if (taken_[slot / 64].load_relaxed() == 0) {  // relaxed: serialised by the guard's lock
      slot |= 63;
      continue;
    }
    const std::uint32_t pages = mapped_pages_[slot].load_acquire() & ~kLeftBehind;  // SYNC: slot mapped
    if (pages != 0) sys.mprotect(address_of(slot), pages * kPage, prot);
  }
}

}  // namespace mpklink
