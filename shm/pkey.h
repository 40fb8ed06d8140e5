// SPDX-License-Identifier: MIT
// One protection key per process, allocated when the first channel is made and never freed: freed keys leave their tag on
// pages, and the next owner of the number would open them (pkeys(7), "use after free").
#pragma once
#include <cstddef>

namespace mpklink {

// CPUID(7,0).ECX bit 4 (OSPKE): the kernel has switched protection keys on. Bit 3 alone is not enough (`nopku`).
bool cpu_has_ospke();

// Why protection keys are not to be used on this machine, or null when they are sound; a word for the statistics ("guard_why").
//   no-pku      the CPU has none, or the kernel has not switched them on (nopku)
//   old-kernel  PKRU and XSTATE get mixed up: before 5.13, but for 5.4.182 and 5.10.103 and what followed them (V8 refuses these, too)
//   amd-signal  early 6.12 on AMD: after a signal all keys are open (fixed by ae6012d72fa6 in December 2024; the exact release is not
//               verified, so the line is drawn with a margin, at 6.12.10)
const char* pkey_unsound(bool ospke, bool amd, const char* release);
bool cpu_is_amd();  // or Hygon, the same design

// The key (1 … 15), closed for this thread, or -1 for "no protection key" however the kernel says so (ENOSPC, EINVAL,
// ENOSYS, EPERM differ by kernel and seccomp profile).
int allocate_pkey();

// Tags [address, address + length) with `key`, readable and writable for threads whose PKRU opens it. 0 or -1 with errno.
int tag_pages(void* address, std::size_t length, int key);

}  // namespace mpklink
