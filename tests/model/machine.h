// SPDX-License-Identifier: MIT
#pragma once

// The x86-TSO machine of Owens, Sarkar and Sewell (2009), with virtual threads for processors: each has a store buffer
// that drains first in, first out, at any time; loads look into it first; locked instructions and fences wait until it
// is empty. It says what can happen next and does it; which of it happens is checker.cc's choice.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/model/coroutine.h"
#include "tests/model/model_atomic.h"

namespace mpklink::model {

constexpr std::size_t kMaxThreads = 8;

// A transition is a number: i = thread i takes its next step, kMaxThreads + i = the oldest store of thread i drains.
using Set = std::uint32_t;
constexpr Set bit(std::size_t i) {
  return Set{1} << i;
}

/// Memory that a step touches, to tell which steps commute.
struct Footprint {
  std::uintptr_t begin = 0, end = 0;
  bool writes = false;
};

constexpr Footprint kEverything{0, UINTPTR_MAX, true};

struct Predicate {
  bool (*holds)(void*) = nullptr;
  void* argument = nullptr;
};

class Machine {
 public:
  explicit Machine(unsigned buffer_length) : buffer_length_(buffer_length) {}

  // One execution: reset, build (allocate, add_thread, name), start, then take one of enabled() until there is none.
  void reset(bool tracing);
  void* allocate(std::size_t size, std::size_t alignment);
  void add_thread(const char* name, std::function<void()> body);
  void name(const void* object, std::size_t size, std::size_t element_size, const char* name);
  void start();
  Set enabled();
  void take(std::size_t transition);

  /// Whether thread `i` is at a step that nobody else can notice or influence, and that commutes with its own drains.
  bool local(std::size_t i) const;
  /// For two enabled transitions: they lead to the same state in either order, and neither enables or disables the
  /// other.
  bool independent(std::size_t a, std::size_t b) const;
  /// Of all that the rest of the execution depends on.
  Word hash();
  /// "a waits in x; b waits in y", of the threads that have not ended.
  std::string waiting() const;

  // From virtual threads; from elsewhere atomics act on memory at once.
  bool in_thread() const { return current_ != nullptr; }
  bool at_once() const { return !current_ || at_once_; }
  void set_at_once(bool at_once) { at_once_ = at_once; }
  Word load(const void* address, std::size_t size);
  void store(void* address, std::size_t size, Word value);
  Word rmw(Rmw kind, void* address, std::size_t size, Word operand, Word expected);
  void fence();
  void relax();
  void wait(const char* label, Footprint footprint, Predicate predicate, bool needs_empty_buffer);
  void chosen(Word value);
  void note(const char* text, Word value);
  [[noreturn]] void stop();  // this thread, for ever

  /// True when the execution is void: what spinning threads see must be recorded, from the next execution on.
  bool must_restart() const { return must_restart_; }
  const std::string& trace() const { return trace_; }

 private:
  enum class Kind : std::uint8_t { kLoad, kStore, kLocked, kFence, kRelax, kWait };

  /// What a thread does when it is scheduled next.
  struct Op {
    Kind kind = Kind::kWait;
    const char* label = "start";
    Footprint footprint{};
    Predicate predicate{};
    bool needs_empty_buffer = false;
  };
  struct Store {
    void* address;
    std::size_t size;
    Word value;
  };
  struct Seen {
    const void* address;
    std::size_t size;
    Word value;
  };
  struct Thread {
    const char* name = "";
    std::function<void()> body{};
    Op op{};
    std::vector<Store> buffer{};
    std::vector<Seen> seen{};  // since its last cpu_relax()
    bool saw_more = false;     // than `seen` can say
    bool finished = true;
    Coroutine coroutine{};
  };
  struct Name {
    std::uintptr_t begin;
    std::size_t size, element_size;
    const char* name;
  };

  static void entry();
  void resume(Thread& thread);
  void step(const Op& op);
  bool enabled(const Thread& thread) const;
  bool sees_change(const Thread& thread) const;
  Footprint footprint(std::size_t transition) const;
  Word visible(const Thread& thread, const void* address, std::size_t size) const;
  void saw(const void* address, std::size_t size, Word value);
  std::string place(const void* address);
  void trace(const Thread& thread, const std::string& text, bool drain = false);

  const unsigned buffer_length_;
  Thread threads_[kMaxThreads];
  std::size_t thread_count_ = 0;
  Thread* current_ = nullptr;  // null while the scheduler runs
  Coroutine scheduler_;
  bool at_once_ = false;
  bool spins_ = false;  // some thread calls cpu_relax()
  bool must_restart_ = false;

  static constexpr std::size_t kArenaBytes = 256 * 1024;
  alignas(64) std::byte arena_[kArenaBytes] = {};
  std::size_t arena_used_ = 0;
  Word choices_ = 0;  // a hash of what was chosen before the threads started

  bool tracing_ = false;
  std::string trace_;
  unsigned steps_ = 0;
  std::vector<Name> names_;
  std::vector<const void*> unnamed_;
};

/// The one that runs now.
extern Machine* g_machine;

}  // namespace mpklink::model
