// SPDX-License-Identifier: MIT
#include "shm/pkey.h"

#include <cpuid.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <cerrno>

#include "shm/raw_syscall.h"

namespace mpklink {
namespace {

constexpr unsigned kOspkeBit = 1u << 4;
constexpr unsigned kHygonEbx = 0x6f677948;  // "Hygo"
constexpr long kPkeyDisableAccess = 0x1;  // PKEY_DISABLE_ACCESS, include/uapi/asm-generic/mman-common.h

unsigned parse_number(const char** text) {
  unsigned value = 0;
  while (**text >= '0' && **text <= '9') value = value * 10 + static_cast<unsigned>(*(*text)++ - '0');
  return value;
}

}  // namespace

bool cpu_has_ospke() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  return (ecx & kOspkeBit) != 0;
}

bool cpu_is_amd() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) == 0) return false;
  return ebx == signature_AMD_ebx || ebx == kHygonEbx;
}

const char* pkey_unsound(bool ospke, bool amd, const char* release) {
  if (!ospke) return "no-pku";
  const unsigned major = parse_number(&release);
  unsigned rest[2] = {0, 0};  // minor, patch
  for (unsigned& number : rest) {
    if (*release != '.') break;
    ++release;
    number = parse_number(&release);
  }
  const auto [minor, patch] = rest;
  const bool old = major < 5 || (major == 5 && minor < 13);
  const bool mended = major == 5 && ((minor == 4 && patch >= 182) || (minor == 10 && patch >= 103));
  if (old && !mended) return "old-kernel";
  if (amd && major == 6 && minor == 12 && patch < 10) return "amd-signal";
  return nullptr;
}

int allocate_pkey() {
  const long key = raw_syscall(SYS_pkey_alloc, 0, kPkeyDisableAccess);
  return key > 0 && key < 16 ? static_cast<int>(key) : -1;
}

int tag_pages(void* address, std::size_t length, int key) {
  const long result = raw_syscall(SYS_pkey_mprotect, reinterpret_cast<long>(address), static_cast<long>(length),
                                  PROT_READ | PROT_WRITE, key);
  if (result == 0) return 0;
  errno = static_cast<int>(-result);
  return -1;
}

}  // namespace mpklink
