// SPDX-License-Identifier: MIT
#include "preload/process.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "preload/fault_report.h"
#include "preload/fork.h"
#include "preload/allowance.h"
#include "preload/log.h"
#include "preload/status.h"
#include "shm/layout.h"
#include "shm/pkey.h"
#include "shm/raw_syscall.h"

namespace mpklink {
namespace {

Guard g_guard;

}  // namespace

Process g_process = {{}, g_guard};
__thread ThreadState t_state;

namespace {

const Atomic<std::uint32_t> g_nothing_wanted;
OwnMemory g_no_own_memory = {Atomic<std::uint32_t>(1), Atomic<const Atomic<std::uint32_t>*>(&g_nothing_wanted), {}};

}  // namespace

Atomic<OwnMemory*> g_own_memory(&g_no_own_memory);

namespace {

enum : std::uint32_t { kUndecided = 0, kInForce = 2, kRefused = 3 };
constexpr std::size_t kStreamSlots = 16384 + 1024;  // channels and boards together

const char* get_environment(const char* name) { return secure_getenv(name); }

void complain(const char* name, const char* value, const char* expected) {
  // Shown whatever MPKLINK_LOG says short of off: a setting that is not in force must not stay unnoticed.
  log_always(LogLevel::kError, FMT_COMPILE("{}={} is not understood (expected {}); using the default"), name, value, expected);
}

// The key, or -1 and why there is none.
int sound_pkey(const char** why) {
  struct utsname names = {};
  *why = uname(&names) != 0 ? "uname" : pkey_unsound(cpu_has_ospke(), cpu_is_amd(), names.release);
  if (*why != nullptr) return -1;
  const int key = allocate_pkey();
  if (key < 0) *why = "no-key";  // all are the program's own, or seccomp forbids the call
  return key;
}

bool decide_guard() {
  Process& p = g_process;
  GuardMode mode = GuardMode::kOff;
  int key = -1;
  const char* why = "asked-for";
  const GuardSetting wanted = p.settings.guard;
  if (wanted == GuardSetting::kMprotect) mode = GuardMode::kMprotect;
  if (wanted == GuardSetting::kAuto || wanted == GuardSetting::kPkey || wanted == GuardSetting::kRequire) {
    key = sound_pkey(&why);
    if (key > 0) mode = GuardMode::kPkey;
  }
  if (mode == GuardMode::kOff) p.guard_why = why;
  if (mode == GuardMode::kOff && (wanted == GuardSetting::kRequire || wanted == GuardSetting::kPkey)) return false;
  p.guard.set_mode(mode, key);
  if (mode != GuardMode::kOff) prepare_fault_report();
  log(LogLevel::kInfo, FMT_COMPILE("guard: {} {}"), guard_mode_name(mode), mode == GuardMode::kOff ? why : "");
  return true;
}

bool reserve_range() {
  std::size_t largest = channel_bytes(g_process.settings.ring_bytes);
  const std::size_t usual = channel_bytes(Settings().ring_bytes);  // what a peer with default settings will offer
  if (largest < usual) largest = usual;
  if (largest < sizeof(Board)) largest = sizeof(Board);
  // Rings that fill up must not take the memory, nor the reservation the addresses, that the program's limits are meant for.
  const std::uint64_t fits = share_of_limits() / largest;
  return g_process.guard.range().reserve(real().sys, largest + kPage, fits < kStreamSlots ? fits : kStreamSlots);
}

}  // namespace

std::uint32_t ask_thread_id() { return t_state.id = static_cast<std::uint32_t>(raw_syscall(SYS_gettid)); }

void mark_own_memory() {
  if (&own_memory() != &g_no_own_memory) return;
  void* at = ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return;
  auto* own = static_cast<OwnMemory*>(at);
  own->mine.store_relaxed(1);  // relaxed: published by the next
  own->wanted.store_relaxed(&g_nothing_wanted);
  OwnMemory* expected = &g_no_own_memory;
  const bool wiped = ::madvise(at, kPage, MADV_WIPEONFORK) == 0;                     // Linux 4.14
  if (!wiped || !g_own_memory.compare_exchange(expected, own)) ::munmap(at, kPage);  // SYNC: own memory. Or another was faster
}

void notice_fork() {
  if (own_memory().mine.load_relaxed() == 0) after_fork_in_child_unprepared();  // relaxed: one thread here
}

bool in_foreign_child() {
  notice_fork();
  return static_cast<std::uint32_t>(raw_syscall(SYS_getpid)) != g_process.pid.load_relaxed();  // relaxed: changes by fork only
}

bool ensure_guard(Reason* reason) {
  Process& p = g_process;
  std::uint32_t state = p.guard_state.load_acquire();  // SYNC: guard decided
  if (state == kUndecided) {
    const LockGuard one(p.setup_lock);
    state = p.guard_state.load_acquire();
    if (state == kUndecided) {
      // The range first: without memory nothing is decided, and a later stream may find some.
      if (!p.guard.range().reserved() && !reserve_range()) return *reason = Reason::kNoMemory, false;
      state = decide_guard() ? kInForce : kRefused;
      p.guard_state.store_release(state);  // SYNC: guard decided
      show_guard();
    }
  }
  if (state == kRefused) *reason = Reason::kGuardRequired;
  return state == kInForce;
}

std::uint64_t now_ns() {
  struct timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1000000000u + static_cast<std::uint64_t>(now.tv_nsec);
}

void SpinLock::wait_and_lock() {
  for (unsigned tries = 1; !try_lock(); ++tries) {
    if (tries < 64) {
      cpu_relax();
    } else {
      sched_yield();  // the owner may wait for this very CPU
    }
  }
}

void initialise() {
  Process& p = g_process;
  std::uint32_t expected = 0;
  if (p.initialised.load_acquire() == 2 || !p.initialised.compare_exchange(expected, 1)) return;  // SYNC: settings read
  const ErrnoSaver keep;
  p.pid.store_relaxed(static_cast<std::uint32_t>(raw_syscall(SYS_getpid)));
  p.settings = parse_settings(get_environment, complain);
  p.initialised.store_release(2);  // SYNC: settings read
}

void reset_counters() {
  Process& p = g_process;
  auto* word = reinterpret_cast<Atomic<std::uint64_t>*>(&p.counters);
  for (std::size_t i = 0; i < sizeof(Counters) / sizeof(*word); ++i) word[i].store_relaxed(0);
  p.guard.reset_counters();
}

void forked_child() {
  Process& p = g_process;
  own_memory().mine.store_relaxed(1);  // relaxed: one thread here, as are the next
  own_memory().wanted.store_relaxed(&g_nothing_wanted);
  own_memory().shown.store_relaxed(nullptr);
  t_state.id = 0;
  t_state.sections.store_relaxed(0);  // relaxed: the only thread's own
  p.pid.store_relaxed(static_cast<std::uint32_t>(raw_syscall(SYS_getpid)));
  p.generation.fetch_add(1);
  p.id = {};
  p.setup_lock.reset();
  reset_counters();
  p.guard.forked_child();
}

}  // namespace mpklink
