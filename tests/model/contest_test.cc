// SPDX-License-Identifier: MIT
// A second process begins to wait in an epoll instance in which the first sleeps, with registrations of the library's in it
// (preload/epoll_share.h): the first learns of it, and what the kernel has in the end is the first one's word.
#include <catch2/catch.hpp>
#include <string>

#include "tests/model/checker.h"

namespace mpklink {
namespace {

using model::Options;
using model::Reduction;
using model::Result;
using model::Run;
using U32 = std::uint32_t;

enum class Mutation {
  kNone,
  kLooksBeforeCounting,  // the sleeper asks whether it is alone before it counts itself
  kNoLook,               // or not at all
  kComesUncounted,       // the newcomer looks for sleepers before it counts itself
  kEdge,                 // what wakes the sleepers is taken away at once
  kGivesUncounted,       // a copy goes into the kernel without a word
  kNoWaitForGivers,      // the owner does not wait for one that is under way
};

enum class Registration { kTagged, kOld, kTrue };

struct State {
  Atomic<U32> waiters{1}, sleepers, seen, givers;  // the owner has waited before
  bool wake = false;                               // a descriptor in the instance that is always readable
  Registration registration = Registration::kTagged;
  Mutation mutation = Mutation::kNone;

  bool contested() const { return waiters.load_relaxed() > 1; }
  void put(Registration what) {
    model::kernel_call("epoll_ctl", registration, [what](Registration& r) { r = what; });
  }
  void set_wake(bool to) {
    model::kernel_call("wake", wake, [to](bool& w) { w = to; });
  }
};

void owner(State& s) {
  while (!s.contested()) {
    const bool before = s.contested();
    s.sleepers.fetch_add(1);
    const bool alone = s.mutation == Mutation::kNoLook || !(s.mutation == Mutation::kLooksBeforeCounting ? before : s.contested());
    if (alone) model::kernel_wait("epoll_wait", s.wake, [](const bool& w) { return w; }, [](bool&) { return 0; });
    s.sleepers.fetch_add(~U32{0});
  }
  s.seen.fetch_add(1);
  while (s.mutation != Mutation::kNoWaitForGivers && s.givers.load_acquire() != 0) cpu_relax();
  s.put(Registration::kTrue);
}

void newcomer(State& s) {
  const bool asleep = s.mutation == Mutation::kComesUncounted && s.sleepers.load_acquire() != 0;
  s.waiters.fetch_add(1);
  s.seen.fetch_add(1);
  const auto unaware = [&s] { return s.seen.load_acquire() < s.waiters.load_acquire() && s.sleepers.load_acquire() != 0; };
  if (s.mutation == Mutation::kComesUncounted ? asleep : unaware()) {
    s.set_wake(true);
    while (s.mutation != Mutation::kEdge && unaware()) cpu_relax();
    s.set_wake(false);
  }
  // A copy's stream is back on TCP.
  if (s.mutation != Mutation::kGivesUncounted) s.givers.fetch_add(1);
  if (s.seen.load_acquire() < s.waiters.load_acquire()) s.put(Registration::kOld);
  if (s.mutation != Mutation::kGivesUncounted) s.givers.fetch_add(~U32{0});
}

Result second_waiter(const std::string& name, Mutation mutation, Reduction reduction = Reduction::kSleepSets) {
  Options options;
  options.name = name;
  options.reduction = reduction;
  return model::explore(options, [mutation](Run& run) {
    auto& s = run.state<State>();
    s.mutation = mutation;
    run.name(s.waiters, "waiters");
    run.name(s.sleepers, "sleepers");
    run.name(s.seen, "seen");
    run.name(s.givers, "givers");
    run.thread("owner", [&s] { owner(s); });
    run.thread("newcomer", [&s] { newcomer(s); });
    run.finally([&s] { model::check(s.registration == Registration::kTrue, "a copy is the kernel's last word"); });
  });
}

void require_found(Mutation mutation, const char* message) {
  const Result result = second_waiter("broken contest " + std::to_string(static_cast<int>(mutation)), mutation);
  INFO(result.report());
  REQUIRE(result.failed);
  CHECK(result.message.find(message) != std::string::npos);
}

TEST_CASE("contest: a second process waits in an epoll instance") {
  for (const auto reduction : {Reduction::kSleepSets, Reduction::kStates}) {
    const Result result = second_waiter("contest", Mutation::kNone, reduction);
    INFO(result.report());
    REQUIRE(result.exhausted);
  }
}

TEST_CASE("contest: without one of its parts it is found to be wrong") {
  require_found(Mutation::kLooksBeforeCounting, "waits in epoll_wait");
  require_found(Mutation::kNoLook, "waits in epoll_wait");
  require_found(Mutation::kComesUncounted, "waits in epoll_wait");
  require_found(Mutation::kEdge, "waits in epoll_wait");
  require_found(Mutation::kGivesUncounted, "last word");
  require_found(Mutation::kNoWaitForGivers, "last word");
}

}  // namespace
}  // namespace mpklink
