// SPDX-License-Identifier: MIT
// The state this library keeps for one process, constant-initialised: hooks run before constructors and after destructors.
#pragma once
#include <errno.h>
#include <sys/types.h>

#include <cstdint>

#include "preload/real.h"
#include "preload/reasons.h"
#include "preload/settings.h"
#include "preload/spin_lock.h"
#include "shm/guard.h"
#include "shm/status.h"

namespace mpklink {

struct ProcessId {
  std::uint64_t word[2] = {0, 0};
  bool operator==(const ProcessId& other) const { return word[0] == other.word[0] && word[1] == other.word[1]; }
};

// What must not be taken for a forked child's before that is in order: in a page that it finds zeroed (MADV_WIPEONFORK).
struct OwnMemory {
  Atomic<std::uint32_t> mine;                   // 0: the child of a fork that no handler of ours has seen yet
  Atomic<const Atomic<std::uint32_t>*> wanted;  // Requests::wanted, or a word that is 0
  Atomic<StatusCounters*> shown;                // where tools see the counters; null: nowhere
};
extern Atomic<OwnMemory*> g_own_memory;  // by its name nowhere else
inline OwnMemory& own_memory() { return *g_own_memory.load_acquire(); }  // SYNC: own memory

constexpr std::uint32_t kNotMine = ~0u;
// What tools ask for (Request), looked at with each operation; kNotMine where OwnMemory is not.
inline std::uint32_t wanted_now() {
  const Atomic<std::uint32_t>* word = own_memory().wanted.load_acquire();  // SYNC: status page
  return __builtin_expect(word != nullptr, 1) ? word->load_relaxed() : kNotMine;  // relaxed: a wish, followed now or next time
}

// The truth is private; what tools see is a copy that nobody here reads.
class Counter {
 public:
  std::uint64_t load_relaxed() const { return value_.load_relaxed(); }
  void store_relaxed(std::uint64_t value) { value_.store_relaxed(value); }
  inline void fetch_add(std::uint64_t n);

 private:
  Atomic<std::uint64_t> value_;
};

// Of things that cost a system call or happen once a stream; ring bytes are summed from the streams.
struct Counters : CountersOf<Counter, Atomic<std::uint64_t>> {
  Atomic<std::uint64_t> slow_waits, reentered;
};
static_assert(sizeof(CountersOf<Counter, Atomic<std::uint64_t>>) == sizeof(StatusCounters));
static_assert(static_cast<unsigned>(Reason::kCount) <= kStatusReasons);

struct Process {
  Settings settings;
  Guard& guard;  // apart: its tables are large and all zeros at load
  Counters counters;
  Atomic<std::uint32_t> initialised;   // settings are read
  Atomic<std::uint32_t> generation;    // counts the forks this process descends from since the library was loaded
  Atomic<std::uint32_t> pid;
  Atomic<std::uint32_t> guard_state;   // 0 undecided, 2 in force, 3 no upgrade (guard required, not there)
  Atomic<std::uint32_t> io_uring_seen;
  Atomic<std::uint32_t> usable_cpus;   // 0: not counted yet
  Hint<const char*> guard_why;         // why there is no guard (shm/pkey.h); null: not decided, or there is one
  SpinLock setup_lock;                 // the two below, and the guard's decision
  ProcessId id;                        // random, made with the first rendezvous
};

extern Process g_process;  // by its name nowhere: on the data path, where a call would cost
inline Process& process() { return g_process; }

inline void Counter::fetch_add(std::uint64_t n) {
  const std::uint64_t now = value_.fetch_add(n) + n;
  auto* shown = reinterpret_cast<char*>(own_memory().shown.load_acquire());  // SYNC: status page
  if (shown == nullptr) return;
  const auto at = reinterpret_cast<char*>(this) - reinterpret_cast<char*>(&g_process.counters);
  reinterpret_cast<Atomic<std::uint64_t>*>(shown + at)->store_relaxed(now);  // relaxed: a statistic
}

// Whether this is a vfork child: it shares our memory, and its calls must not change our tables. A child of _Fork or clone,
// for which no fork handler ran, is put in order here at its first call.
bool in_foreign_child();
void notice_fork();  // the second half of it, for calls that make streams: those must come after
void mark_own_memory();  // makes the page that tells such children from vfork's (MADV_WIPEONFORK); once

// Decides and installs the guard when the first channel is to be made. False, with the reason, when there may be none.
bool ensure_guard(Reason* reason);

std::uint64_t now_ns();  // CLOCK_MONOTONIC

// A gate on this process's guard.
class Gate : private Section, private OpenGate {
 public:
  Gate() : OpenGate(process().guard, real().sys) {}
};

// errno as the program left it, unless the hook failed.
class ErrnoSaver {
 public:
  ErrnoSaver() : saved_(errno) {}
  ~ErrnoSaver() { errno = saved_; }
  ErrnoSaver(const ErrnoSaver&) = delete;
  ErrnoSaver& operator=(const ErrnoSaver&) = delete;

 private:
  int saved_;
};

void initialise();     // reads the settings once; safe from any hook, any thread
void reset_counters();
void forked_child();   // resets what belongs to the parent

}  // namespace mpklink
