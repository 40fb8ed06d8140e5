// SPDX-License-Identifier: MIT
// Protection keys: has this machine sound ones, may this process have them, how many are left; and why not.
#include <cpuid.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <string>

#include "shm/pkey.h"
#include "tools/doctor_attempt.h"
#include "tools/doctor_guard.h"

namespace mpklink {
namespace {

constexpr int kKeys = 15;      // 16 in PKRU, of which 0 is everybody's
constexpr int kCounted = 100;  // exit code of the counting child: this + keys
constexpr char kLeaveIt[] = "Or leave it: with MPKLINK_GUARD=auto connections are accelerated without a guard.";

bool cpu_bit(unsigned leaf, unsigned bit) {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(leaf, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  return (ecx >> bit & 1u) != 0;
}

bool cpu_has_pku() {
  return cpu_bit(7, 3);
}
bool is_virtual() {
  return cpu_bit(1, 31);
}

bool kernel_was_told_nopku() {
  std::ifstream line("/proc/cmdline");
  for (std::string word; line >> word;) {
    if (word == "nopku") return true;
  }
  return false;
}

Explanation explain_no_pku() {
  if (cpu_has_pku()) {
    if (kernel_was_told_nopku()) {
      return {"The CPU has protection keys, and the kernel was told to leave them off (nopku).",
              fmt::format("Take nopku off the kernel's command line and boot again. {}", kLeaveIt)};
    }
    return {"The CPU has protection keys, but the kernel does not use them.",
            fmt::format("Boot a kernel with CONFIG_X86_INTEL_MEMORY_PROTECTION_KEYS (Debian's have it). {}", kLeaveIt)};
  }
  if (is_virtual()) {
    return {"This virtual machine's CPU has no protection keys (PKU): the host has none, or does not pass them on.",
            fmt::format("Give the machine a CPU model with pku (qemu: -cpu host). {}", kLeaveIt)};
  }
  return {"This CPU has no protection keys (PKU).",
          fmt::format("Use an Intel Xeon (Skylake or later) or an AMD of Zen 3 or later. {}", kLeaveIt)};
}

/// Takes keys until there are none: their number, or with none the errno.
int count_keys() {
  int keys = 0;
  while (keys < kKeys && syscall(SYS_pkey_alloc, 0, 0) > 0) ++keys;
  return keys > 0 || errno == 0 ? kCounted + keys : errno;
}

/// The call that tags pages with a key, on a page of its own.
int tag_a_page() {
  void* page = mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return errno;
  const int key = allocate_pkey();
  if (key < 0) return ENOSPC;
  return tag_pages(page, 4096, key) == 0 ? 0 : errno;
}

Explanation explain_refused(const Outcome& keys, bool filtered) {
  const std::string how = outcome_text(keys);
  if (filtered) {
    return {fmt::format("A seccomp filter refuses this process protection keys: {}.", how),
            "Allow pkey_alloc, pkey_mprotect and pkey_free in the filter (docker run --security-opt seccomp=PROFILE; "
            "systemd: SystemCallFilter=@pkey)."};
  }
  return {fmt::format("The kernel gives this process no protection key: {}.", how),
          "Look for what has taken all 15 in this program; a fresh process should have them."};
}

}  // namespace

Level level_without_guard(const Settings& settings) {
  switch (settings.guard) {
    case GuardSetting::kAuto:
      return Level::kWarn;
    case GuardSetting::kPkey:
    case GuardSetting::kRequire:
      return Level::kFail;
    default:
      return Level::kNote;  // it was not asked for
  }
}

Explanation explain_no_guard(const std::string& why) {
  utsname names{};
  uname(&names);
  if (why == "no-pku") return explain_no_pku();
  if (why == "old-kernel") {
    return {fmt::format(
                "Linux {} mixes up the protection keys of threads (mended in 5.13, 5.10.103 and 5.4.182), so they are "
                "not used.",
                names.release),
            "Boot a later kernel. Until then connections are accelerated without a guard."};
  }
  if (why == "amd-signal") {
    return {fmt::format("Linux {} opens all protection keys after a signal on AMD CPUs, so they are not used.",
                        names.release),
            "Update the kernel to 6.12.10 or later. Until then connections are accelerated without a guard."};
  }
  if (why == "no-key") {
    return {
        "The process could not have a protection key: all 15 are its own already, or a seccomp filter refuses "
        "pkey_alloc.",
        "Allow pkey_alloc, pkey_mprotect and pkey_free in its seccomp filter, or look for what takes all keys (V8 "
        "takes one, "
        "some JVMs and databases more)."};
  }
  if (why == "asked-for") {
    return {"The shared memory is not guarded: MPKLINK_GUARD asks for that.",
            "Unset MPKLINK_GUARD to have it guarded where possible."};
  }
  return {};
}

Finding check_guard(const Settings& settings, bool seccomp_filter) {
  utsname names{};
  const bool ospke = cpu_has_ospke();
  const char* why = uname(&names) != 0 ? "uname" : pkey_unsound(ospke, cpu_is_amd(), names.release);
  Finding found{"machine", "guard", Level::kOk, "", "", {}};
  std::int64_t keys = 0;
  if (why == nullptr) {
    const Outcome counted = attempt(count_keys);
    keys = counted.signal == 0 && counted.code >= kCounted && counted.code <= kCounted + kKeys ? counted.code - kCounted
                                                                                               : 0;
    const Outcome tagged = keys > 0 ? attempt(tag_a_page) : counted;
    if (keys == 0 || tagged.signal != 0 || tagged.code != 0) {
      const Explanation refused = explain_refused(tagged, seccomp_filter);
      found.level = level_without_guard(settings);
      found.sentence = refused.sentence;
      found.remedy = refused.remedy;
      why = "no-key";
    } else {
      found.sentence =
          fmt::format("Protection keys (PKU) are there and sound; {} of {} are left to a new process.", keys, kKeys);
    }
  } else {
    const Explanation reason = explain_no_guard(why);
    found.level = level_without_guard(settings);
    found.sentence = reason.sentence;
    found.remedy = reason.remedy;
  }
  found.facts = {{"why", why == nullptr ? std::string() : std::string(why)},
                 {"cpu_pku", cpu_has_pku()},
                 {"kernel_ospke", ospke},
                 {"keys_free", keys}};
  return found;
}

}  // namespace mpklink
