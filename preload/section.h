// SPDX-License-Identifier: MIT
// Sections of a thread: while it holds a SpinLock or has the gate open, no signal handler of the program runs on it (signals.h). So no
// handler finds the library half-way: it may use any stream, fork, or jump out and never come back. The same holds while it owes something
// between two sections (a pin, a place among the sleepers) and is Undisturbed.
#pragma once
#include <atomic>
#include <cstdint>

#include "shm/atomic.h"

namespace mpklink {

struct Stream;

// __thread, not thread_local: no wrapper that looks for an initialiser. Initial-exec, or the first touch in a signal handler could allocate.
struct ThreadState {
  std::uint32_t id = 0;           // this thread's number in the kernel; 0: not asked for yet
  Atomic<std::uint32_t> sections;  // it is in; a signal handler of this thread reads it
  Atomic<std::uint32_t> undisturbed;  // Undisturbed scopes it is in
  Atomic<std::uint32_t> after;     // not 0: something was put off to their end
  Atomic<std::uint64_t> held_signals;  // bit N - 1: signal N, blocked until then
  Atomic<std::uint32_t> handlers;  // of the program that have run on it; wraps
  Atomic<std::uint32_t> breaks;    // those without SA_RESTART
  Stream* deferred = nullptr;      // streams with something put off (stream.cc)
};
extern __thread ThreadState t_state __attribute__((tls_model("initial-exec")));

std::uint32_t ask_thread_id();
// Cached, renewed in the child of a fork.
inline std::uint32_t thread_id() {
  const std::uint32_t id = t_state.id;
  return __builtin_expect(id != 0, 1) ? id : ask_thread_id();
}

// How many sections this thread is in. In a signal handler: not 0 means that it interrupted the library all the same (a handler for a
// crash, or one installed past libc), and that taking a lock may wait for ever for the very thread it runs on. What needs one is put off.
inline std::uint32_t sections_here() { return t_state.sections.load_relaxed(); }  // relaxed: this thread's own

void after_sections();  // what was put off: first the streams, then the signals

inline void enter_section() {
  Atomic<std::uint32_t>& sections = t_state.sections;
  sections.store_relaxed(sections.load_relaxed() + 1);  // relaxed: this thread's own
  std::atomic_signal_fence(std::memory_order_seq_cst);
}
inline void leave_section() {
  std::atomic_signal_fence(std::memory_order_seq_cst);
  const std::uint32_t left = t_state.sections.load_relaxed() - 1;  // relaxed: this thread's own
  t_state.sections.store_relaxed(left);
  std::atomic_signal_fence(std::memory_order_seq_cst);  // a handler that came before saw a section, and said so in `after`
  if (__builtin_expect(left == 0 && t_state.after.load_relaxed() != 0, 0)) after_sections();  // relaxed: this thread's own
}

// Which of the program's handlers have run on this thread since it was made: a blocking call, before it sleeps, asks whether one has
// interrupted it already.
class HandlersSince {
 public:
  bool any() const { return t_state.handlers.load_relaxed() != handlers_; }    // relaxed: this thread's own
  bool breaking() const { return t_state.breaks.load_relaxed() != breaks_; }  // relaxed: this thread's own. No SA_RESTART

 private:
  std::uint32_t handlers_ = t_state.handlers.load_relaxed();  // relaxed: this thread's own
  std::uint32_t breaks_ = t_state.breaks.load_relaxed();      // relaxed: this thread's own
};

// Handlers of the program wait until the scope ends, or until allow(). What is put off for streams does not.
class Undisturbed {
 public:
  Undisturbed() { again(); }
  ~Undisturbed() {
    if (waits_) allow();
  }
  // They may come, and one of them may jump out of here. From now on until again().
  void allow() {
    waits_ = false;
    t_state.undisturbed.store_relaxed(t_state.undisturbed.load_relaxed() - 1);  // relaxed: this thread's own
    std::atomic_signal_fence(std::memory_order_seq_cst);
    if (sections_here() == 0 && t_state.after.load_relaxed() != 0) after_sections();  // relaxed: as above
  }
  void again() {
    t_state.undisturbed.store_relaxed(t_state.undisturbed.load_relaxed() + 1);  // relaxed: this thread's own
    std::atomic_signal_fence(std::memory_order_seq_cst);
    waits_ = true;
  }
  Undisturbed(const Undisturbed&) = delete;
  Undisturbed& operator=(const Undisturbed&) = delete;

 private:
  bool waits_ = false;
};

class Section {
 public:
  Section() { enter_section(); }
  ~Section() { leave_section(); }
  Section(const Section&) = delete;
  Section& operator=(const Section&) = delete;
};

}  // namespace mpklink
