// SPDX-License-Identifier: MIT
// One protection key per process, allocated when the first channel is made and never freed: freed keys leave their tag on
// pages, and the next owner of the number would open them (pkeys(7), "use after free").
#pragma once
#include <cstddef>

namespace mpklink {

// CPUID(7,0).ECX bit 4 (OSPKE): the kernel has switched protection keys on. Bit 3 alone is not enough (`nopku`).
bool cpu_has_ospke();

// Kernels whose handling of PKRU is sound for us: 5.13 and later (XSTATE fixes). See README.md for the list of reasons.
bool kernel_pkru_sound(const char* release);

// The key (1 … 15), closed for this thread, or -1 for "no protection key" however the kernel says so (ENOSPC, EINVAL,
// ENOSYS, EPERM differ by kernel and seccomp profile).
int allocate_pkey();

// Tags [address, address + length) with `key`, readable and writable for threads whose PKRU opens it. 0 or -1 with errno.
int tag_pages(void* address, std::size_t length, int key);

}  // namespace mpklink
