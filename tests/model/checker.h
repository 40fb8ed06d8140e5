// SPDX-License-Identifier: MIT
#pragma once

// Runs a small concurrent scenario under every schedule that x86-TSO allows. README.md says what that covers.
//
//   auto result = model::explore({"two increments"}, [](model::Run& run) {
//     auto& counter = run.state<Atomic<std::uint32_t>>();
//     for (int i = 0; i < 2; ++i) run.thread("inc", [&] { counter.fetch_add(1); });
//     run.finally([&] { model::check(counter.load_acquire() == 2, "an increment is lost"); });
//   });
//   INFO(result.report());
//   REQUIRE(result.exhausted);
//
// A scenario is run again for each schedule, so it must be deterministic but for choose(). Locals of a thread body that
// live across an operation must not own anything: the bodies of an execution that is given up are never unwound.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tests/model/machine.h"
#include "tests/model/model_atomic.h"

namespace mpklink::model {

/// What is left out because it can show nothing new.
enum class Reduction : std::uint8_t {
  kNone,
  kSleepSets,  // orders of steps that differ only in steps that commute from one that was run
  kStates,     // that, and what follows a state that was reached before: for big scenarios. All that threads share must
               // be in Run::state, without pointers to the heap
};

struct Options {
  std::string name;
  unsigned buffer_length = 4;  // stores a thread may hold back; 0 gives sequential consistency
  int preemption_bound = -1;   // only schedules that preempt an enabled thread so often, without reduction; -1: all
  std::uint64_t max_executions = 5'000'000;
  unsigned max_steps = 500;  // of one execution; beyond it a livelock is reported
  Reduction reduction = Reduction::kSleepSets;
  std::string replay{};  // run this one schedule; MODEL_REPLAY='name:schedule' does the same from outside
};

struct Result {
  std::string name{};
  std::uint64_t executions = 0;  // complete ones; with kSleepSets exactly one of each class of equivalent schedules
  std::uint64_t pruned = 0;      // given up half-way, because nothing new could follow
  std::uint64_t steps = 0;
  bool exhausted = false;  // every schedule was run or is covered by one that was, and none failed
  bool failed = false;
  std::string message{};   // of the first failure
  std::string schedule{};  // its choices: a = thread 0 runs, A = thread 0's oldest store drains, digit = choose()
  std::string trace{};     // its steps, one a line

  std::string report() const;
};

/// One execution, as the scenario that builds it sees it. Names must outlive it: literals.
class Run {
 public:
  /// An object that lives as long as the execution, at the same address in each.
  template <class T, class... Args>
  T& state(Args&&... args) {
    T* object = new (machine_.allocate(sizeof(T), alignof(T))) T(std::forward<Args>(args)...);
    owned_.emplace_back(object, [](T* self) { self->~T(); });
    return *object;
  }

  /// Up to kMaxThreads. What a body does before its first operation happens before everything else.
  void thread(const char* name, std::function<void()> body) { machine_.add_thread(name, std::move(body)); }

  /// Runs when all threads have ended and all buffers are drained.
  void finally(std::function<void()> check) { final_ = std::move(check); }

  /// For the trace. An array's elements get an index.
  template <class T>
  void name(const T& object, const char* name) {
    machine_.name(&object, sizeof(T), sizeof(std::remove_extent_t<T>), name);
  }

 private:
  friend class Checker;
  explicit Run(Machine& machine) : machine_(machine) {}

  Machine& machine_;
  std::vector<std::shared_ptr<void>> owned_;
  std::function<void()> final_;
};

Result explore(const Options& options, const std::function<void(Run&)>& scenario);

// What a scenario calls -----------------------------------------------------------------------------------------------

/// A property. The first one that does not hold ends the exploration.
void check(bool holds, const char* message);

/// Any of 0…n-1 (n ≤ 10): every one is explored.
unsigned choose(unsigned n);

/// A line in the trace.
void note(const char* text, Word value = 0);

/// Makes the plain accesses that follow, up to the next operation, a step of their own: without it they are part of the
/// step before, and no schedule can come between. Takes them to touch anything at all.
void point();
/// The same for an access to these bytes only, which leaves far fewer schedules to run.
void point_read(const void* address, std::size_t size);
void point_write(void* address, std::size_t size);

namespace detail {

/// Waits to be scheduled, which happens only when `predicate` holds over memory (not over the thread's own buffer).
void wait_step(const char* label, Footprint footprint, Predicate predicate, bool needs_empty_buffer);

/// While one exists, atomics act on memory at once: the rest of the step belongs to the kernel.
struct AtOnce {
  AtOnce() { g_machine->set_at_once(true); }
  ~AtOnce() { g_machine->set_at_once(false); }
  AtOnce(const AtOnce&) = delete;
  AtOnce& operator=(const AtOnce&) = delete;
};

template <class F>
Predicate predicate_of(F& f) {
  return {[](void* argument) -> bool { return (*static_cast<F*>(argument))(); }, &f};
}

}  // namespace detail

/// Sleeps until `pred()`. The code that follows, up to the next operation, is one step with the waking.
template <class Pred>
void block_until(Pred pred) {
  detail::wait_step("block_until", kEverything, detail::predicate_of(pred), false);
}

/// A system call on `object`: waits for `ready(object)`, then does `action(object)` in the same step. Neither may touch
/// anything shared but the object. The store buffer is empty first: the kernel's own stores cannot overtake ours, and
/// every call that wakes someone or moves bytes takes a lock.
template <class Object, class Ready, class Action>
auto kernel_wait(const char* label, Object& object, Ready ready, Action action) {
  static_assert(std::is_trivially_destructible_v<Object>, "Reduction::kStates knows it by its own bytes");
  auto pred = [&] { return ready(static_cast<const Object&>(object)); };
  const auto begin = reinterpret_cast<std::uintptr_t>(&object);
  detail::wait_step(label, {begin, begin + sizeof(Object), true}, detail::predicate_of(pred), true);
  detail::AtOnce at_once;
  return action(object);
}

template <class Object, class Action>
auto kernel_call(const char* label, Object& object, Action action) {
  return kernel_wait(
      label, object, [](const Object&) { return true; }, action);
}

}  // namespace mpklink::model
