// SPDX-License-Identifier: MIT
// Copies between the ring and memory of the program, whose pointers may be bad: recv(2) then says EFAULT, it does not crash.
//
// The copy faults like any other. A SIGSEGV or SIGBUS handler that finds the faulting instruction between
// user_copy_begin and user_copy_end continues at user_copy_fault instead (preload/fault.cc installs one); what the kernel
// does for its own copies with an exception table (arch/x86/lib/copy_user_64.S).
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {
// Returns the bytes that were NOT copied: 0, or more after a fault. memcpy's other rules hold.
std::size_t mpklink_user_copy(void* to, const void* from, std::size_t n) __attribute__((visibility("hidden")));
extern const char mpklink_user_copy_end[] __attribute__((visibility("hidden")));
extern const char mpklink_user_copy_fault[] __attribute__((visibility("hidden")));
}

namespace mpklink {

// Sanitizers see only what they compile: there the copy is theirs, and bad pointers are reports.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MPKLINK_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MPKLINK_SANITIZED 1
#endif

inline std::size_t user_copy(void* to, const void* from, std::size_t n) {
#ifdef MPKLINK_SANITIZED
  __builtin_memcpy(to, from, n);
  return 0;
#else
  return mpklink_user_copy(to, from, n);
#endif
}

// Where a thread that faulted at `pc` goes on; 0: not in the copy.
inline std::uintptr_t user_copy_continuation(std::uintptr_t pc) {
  const auto begin = reinterpret_cast<std::uintptr_t>(&mpklink_user_copy);
  const auto end = reinterpret_cast<std::uintptr_t>(mpklink_user_copy_end);
  return pc >= begin && pc < end ? reinterpret_cast<std::uintptr_t>(mpklink_user_copy_fault) : 0;
}

}  // namespace mpklink
