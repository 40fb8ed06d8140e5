// SPDX-License-Identifier: MIT
// What the guard_* programs know of the library's guard: only what the kernel shows of it. Where guarded memory lies is read from
// /proc/self/smaps, whether this thread may touch it from PKRU, what a touch does from the signal that it raises.
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>

#include "testlib.h"

namespace testlib {

inline constexpr size_t kPageBytes = 4096;

// ---- where guarded memory is ------------------------------------------------------------------------------------------

struct Mapping {
  uintptr_t begin, end;
  int key;        // ProtectionKey of smaps; 0: the default one
  bool shared;
  bool no_dump;   // VmFlags "dd"
  bool ours;      // a memfd of the library's, or secret memory
  bool anonymous;  // shared memory without a file
};

class Guarded {
 public:
  static constexpr size_t kMost = 64;

  Guarded() {
    FILE* file = fopen("/proc/self/smaps", "re");
    CHECK(file != nullptr);
    static char line[4096];
    Mapping now = {}, before = {};
    const auto finish = [&] {
      // A channel's first page is anonymous shared memory right in front of the memfd.
      if (now.ours && before.anonymous && before.end == now.begin) add(before);
      if (now.ours) add(now);
      before = now;
    };
    while (fgets(line, sizeof line, file) != nullptr) {
      unsigned long begin, end;
      char rights[8];
      int name = 0;
      if (sscanf(line, "%lx-%lx %7s %*s %*s %*s %n", &begin, &end, rights, &name) == 3) {
        finish();
        now = {};
        now.begin = begin;
        now.end = end;
        now.shared = rights[3] == 's';
        // memfd_secret gives no names; nobody else here uses it.
        now.ours = (strncmp(line + name, "/memfd:mpklink-", 15) == 0 && strncmp(line + name + 15, "status", 6) != 0) || strncmp(line + name, "/secretmem", 10) == 0;
        now.anonymous = now.shared && strncmp(line + name, "/dev/zero", 9) == 0;
      }
      if (strncmp(line, "ProtectionKey:", 14) == 0) now.key = atoi(line + 14);
      if (strncmp(line, "VmFlags:", 8) == 0) now.no_dump = strstr(line, " dd") != nullptr;
    }
    finish();
    fclose(file);
  }

  size_t count() const { return count_; }
  const Mapping& operator[](size_t i) const { return all_[i]; }
  const Mapping* begin() const { return all_; }
  const Mapping* end() const { return all_ + count_; }

  // The first channel's memfd (header, then rings) and the first board; null without guarded memory.
  char* channel() const { return find(true); }
  char* board() const { return find(false); }
  int key() const { return count_ > 0 ? all_[0].key : 0; }

 private:
  void add(const Mapping& m) {
    CHECK(count_ < kMost);
    all_[count_++] = m;
  }
  // Channels follow their anonymous page, boards do not.
  char* find(bool with_page) const {
    for (size_t i = 0; i < count_; i++) {
      if (!all_[i].ours) continue;
      const bool has_page = i > 0 && all_[i - 1].anonymous && all_[i - 1].end == all_[i].begin;
      if (has_page == with_page) return reinterpret_cast<char*>(all_[i].begin);
    }
    return nullptr;
  }

  Mapping all_[kMost];
  size_t count_ = 0;
};

// ---- PKRU -------------------------------------------------------------------------------------------------------------

// CPUID(7,0).ECX bit 4: RDPKRU is an instruction here.
inline bool has_pku() {
  uint32_t a = 7, b, c = 0, d;
  asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return (c >> 4 & 1) != 0;
}

inline uint32_t rdpkru() {
  uint32_t value, edx;
  asm volatile("rdpkru" : "=a"(value), "=d"(edx) : "c"(0));
  return value;
}

inline void wrpkru(uint32_t value) { asm volatile("wrpkru" : : "a"(value), "c"(0), "d"(0) : "memory"); }

inline uint32_t key_bits(uint32_t pkru, int key) { return pkru >> (2 * key) & 3; }

inline constexpr unsigned kNoAccess = PKEY_DISABLE_ACCESS, kNoWrite = PKEY_DISABLE_WRITE;

inline const char* no_keys() {
  const int key = has_pku() ? pkey_alloc(0, 0) : -1;
  if (key < 0) return "no protection keys on this machine";
  pkey_free(key);
  return nullptr;
}

// This thread may not touch what has `key`. Without a key (another guard, no library) there is nothing to see.
inline void expect_closed(int key) {
  if (key > 0) CHECK_EQ(key_bits(rdpkru(), key), 1);
}

// ---- touching it ------------------------------------------------------------------------------------------------------

struct Fault {
  bool raised;
  bool write;
  int code;
  int key;
  uintptr_t at;
};

inline thread_local sigjmp_buf g_fault_return;
inline thread_local Fault g_fault;
inline thread_local volatile sig_atomic_t g_fault_expected = 0;

inline void on_expected_fault(int, siginfo_t* info, void* context) {
  if (!g_fault_expected) {
    signal(SIGSEGV, SIG_DFL);
    return;  // faults again
  }
  constexpr greg_t kWrite = 2;  // of the page fault's error code
  const auto* machine = static_cast<const ucontext_t*>(context);
  g_fault = {true, (machine->uc_mcontext.gregs[REG_ERR] & kWrite) != 0, info->si_code,
             info->si_code == SEGV_PKUERR ? static_cast<int>(info->si_pkey) : 0, reinterpret_cast<uintptr_t>(info->si_addr)};
  siglongjmp(g_fault_return, 1);
}

inline void catch_faults() {
  struct sigaction action = {};
  action.sa_sigaction = on_expected_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  CHECK_EQ(sigaction(SIGSEGV, &action, nullptr), 0);
}

// Whether `act` faults, and how. It must own nothing that would have to be destroyed.
template <typename F>
Fault fault_of(F act) {
  g_fault = {};
  if (sigsetjmp(g_fault_return, 0) == 0) {
    g_fault_expected = 1;
    act();
  }
  g_fault_expected = 0;
  return g_fault;
}

inline Fault touch_read(uintptr_t at) {
  return fault_of([=] { asm volatile("movb (%0), %%al" : : "r"(at) : "rax", "memory"); });
}

// A write that changes nothing where it is let through: what is there belongs to the library.
inline Fault touch_write(uintptr_t at) {
  return fault_of([=] { asm volatile("lock orb $0, (%0)" : : "r"(at) : "memory", "cc"); });
}

// What came of many touches, by kind. The test compares it with the guard that was in force; the programs do not know that.
struct Tally {
  long touched, pkuerr, accerr, wrong_key, wrong_place, wrong_way, other, let_through;

  void count(const Fault& fault, uintptr_t at, size_t length, int key, bool write) {
    touched++;
    if (!fault.raised) {
      let_through++;
      return;
    }
    if (fault.code == SEGV_PKUERR) {
      pkuerr++;
      if (fault.key != key || key == 0) wrong_key++;
    } else if (fault.code == SEGV_ACCERR) {
      accerr++;
    } else {
      other++;
    }
    if (fault.at < at || fault.at >= at + length) wrong_place++;
    if (fault.write != write) wrong_way++;
  }
  void print(const char* name) const {
    printf("TALLY %s touched=%ld pkuerr=%ld accerr=%ld wrong_key=%ld wrong_place=%ld wrong_way=%ld other=%ld let_through=%ld\n", name, touched, pkuerr,
           accerr, wrong_key, wrong_place, wrong_way, other, let_through);
    fflush(stdout);
  }
};

inline void touch_both(Tally* tally, uintptr_t at, int key) {
  tally->count(touch_read(at), at, 1, key, false);
  tally->count(touch_write(at), at, 1, key, true);
}

}  // namespace testlib
