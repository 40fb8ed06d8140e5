// SPDX-License-Identifier: MIT
// The checker checked: known litmus tests, known bugs that it must find, and random programs against a second, naive
// enumerator of the x86-TSO machine.

#include <array>
#include <catch2/catch.hpp>
#include <random>
#include <set>
#include <string>

#include "tests/model/checker.h"

namespace mpklink {
namespace {

using model::Options;
using model::Reduction;
using model::Result;
using model::Run;
using U32 = std::uint32_t;
using Outcomes = std::set<std::string>;

enum class Order { kPlain, kFenced, kExchange };

struct Pair {
  Atomic<U32> x, y;
  U32 r[4] = {};
  bool data_seen = false;
};

void put(Atomic<U32>& word, Order order) {
  if (order == Order::kExchange) {
    word.exchange(1);
  } else {
    word.store_release(1);
    if (order == Order::kFenced) thread_fence_seq_cst();
  }
}

/// Store buffering, the heart of Dekker and of every sleep protocol: both threads may miss the other's store.
Result store_buffering(Order first, Order second, Options options, Outcomes* outcomes = nullptr) {
  return model::explore(options, [=](Run& run) {
    auto& s = run.state<Pair>();
    run.name(s.x, "x");
    run.name(s.y, "y");
    run.thread("left", [&s, first] {
      put(s.x, first);
      s.r[0] = s.y.load_acquire();
    });
    run.thread("right", [&s, second] {
      put(s.y, second);
      s.r[1] = s.x.load_acquire();
    });
    run.finally([&s, outcomes] {
      if (outcomes) {
        outcomes->insert(std::to_string(s.r[0]) + std::to_string(s.r[1]));
      } else {
        model::check(s.r[0] == 1 || s.r[1] == 1, "both missed the other's store");
      }
    });
  });
}

Result increments(int threads, int times, bool same_word, bool reduce) {
  Options options{"increments"};
  options.reduction = reduce ? Reduction::kSleepSets : Reduction::kNone;
  return model::explore(options, [=](Run& run) {
    auto& words = run.state<std::array<Atomic<U32>, 4>>();
    for (int i = 0; i < threads; ++i) {
      run.thread("adder", [&words, i, times, same_word] {
        for (int n = 0; n < times; ++n) words[same_word ? 0 : static_cast<std::size_t>(i)].fetch_add(1);
      });
    }
    run.finally([&words, threads, times, same_word] {
      const auto all = static_cast<U32>(times * (same_word ? threads : 1));
      model::check(words[0].load_acquire() == all, "an increment is lost");
    });
  });
}

TEST_CASE("the number of schedules of tiny cases is known") {
  CHECK(increments(2, 1, true, true).executions == 2);
  CHECK(increments(2, 1, true, false).executions == 2);
  CHECK(increments(2, 2, true, true).executions == 6);   // 4 over 2
  CHECK(increments(3, 2, true, true).executions == 90);  // 6! / 2!^3
  CHECK(increments(2, 1, false, false).executions == 2);
  CHECK(increments(2, 2, false, true).executions == 1);  // different words: every order is the same
  CHECK(increments(3, 2, false, true).exhausted);
}

TEST_CASE("preemption bound and execution limit") {
  Options options{"limits"};
  auto scenario = [](Run& run) {
    auto& word = run.state<Atomic<U32>>();
    for (int i = 0; i < 2; ++i) {
      run.thread("adder", [&word] {
        word.fetch_add(1);
        word.fetch_add(1);
      });
    }
  };
  options.preemption_bound = 0;
  CHECK(model::explore(options, scenario).executions == 2);  // aabb bbaa
  options.preemption_bound = 1;
  CHECK(model::explore(options, scenario).executions == 4);  // and abba baab
  options.preemption_bound = 2;
  CHECK(model::explore(options, scenario).executions == 6);
  options.preemption_bound = -1;
  options.max_executions = 3;
  const Result result = model::explore(options, scenario);
  CHECK(result.executions == 3);
  CHECK_FALSE(result.exhausted);
}

TEST_CASE("store buffering is found, and cured by fences or RMWs on both sides") {
  for (Order first : {Order::kPlain, Order::kFenced, Order::kExchange}) {
    for (Order second : {Order::kPlain, Order::kFenced, Order::kExchange}) {
      const Result result = store_buffering(first, second, {"store buffering"});
      INFO(result.report());
      const bool cured = first != Order::kPlain && second != Order::kPlain;
      CHECK(result.exhausted == cured);
      CHECK(result.failed == !cured);
    }
  }
  Options sequential{"store buffering, sequentially consistent"};
  sequential.buffer_length = 0;
  CHECK(store_buffering(Order::kPlain, Order::kPlain, sequential).exhausted);
}

TEST_CASE("the outcomes of a litmus test are exactly those of TSO") {
  Outcomes plain, fenced;
  CHECK(store_buffering(Order::kPlain, Order::kPlain, {"SB"}, &plain).exhausted);
  CHECK(store_buffering(Order::kFenced, Order::kFenced, {"SB"}, &fenced).exhausted);
  CHECK(plain == Outcomes{"00", "01", "10", "11"});
  CHECK(fenced == Outcomes{"01", "10", "11"});
}

TEST_CASE("a failing schedule can be replayed") {
  Options options{"replay"};
  const Result found = store_buffering(Order::kPlain, Order::kPlain, options);
  REQUIRE(found.failed);
  CHECK(found.trace.find("store x = 1") != std::string::npos);
  const auto colon = found.schedule.find(':');
  REQUIRE(colon != std::string::npos);
  options.replay = found.schedule.substr(colon + 1);
  const Result again = store_buffering(Order::kPlain, Order::kPlain, options);
  CHECK(again.failed);
  CHECK(again.executions == 1);
  CHECK(again.schedule == found.schedule);
  CHECK(again.trace == found.trace);
  options.replay = "aAabBb";  // one that passes
  CHECK_FALSE(store_buffering(Order::kPlain, Order::kPlain, options).failed);
  options.replay = "zz";
  CHECK(store_buffering(Order::kPlain, Order::kPlain, options).failed);
}

/// Data, then flag. `point_write` before the flag: the data; after it: the bug.
Result message_passing(bool flag_first) {
  return model::explore({"message passing"}, [=](Run& run) {
    struct State {
      Atomic<U32> word, flag;
      unsigned char bytes[2] = {};
    };
    auto& s = run.state<State>();
    auto copy = [&s] {
      s.word.store_relaxed(7);
      model::point_write(s.bytes, 2);
      s.bytes[0] = s.bytes[1] = 7;
    };
    run.thread("writer", [&s, copy, flag_first] {
      if (flag_first) s.flag.store_release(1);
      copy();
      if (!flag_first) s.flag.store_release(1);
    });
    run.thread("reader", [&s] {
      if (s.flag.load_acquire() == 0) return;
      model::check(s.word.load_relaxed() == 7, "flag without its word");
      model::point_read(s.bytes, 2);
      model::check(s.bytes[0] == 7 && s.bytes[1] == 7, "flag without its bytes");
    });
  });
}

TEST_CASE("message passing is fine on TSO, and only in the right order") {
  const Result right = message_passing(false);
  INFO(right.report());
  CHECK(right.exhausted);
  CHECK(message_passing(true).failed);
}

Result naive_sleep(bool look_again) {
  return model::explore({"naive sleep"}, [=](Run& run) {
    struct Kernel {
      bool bell = false;
    };
    struct State {
      Atomic<U32> flag, asleep;
      Kernel kernel;
    };
    auto& s = run.state<State>();
    run.thread("waker", [&s] {
      s.flag.exchange(1);
      if (s.asleep.load_acquire()) {
        model::kernel_call("ring", s.kernel, [](Kernel& kernel) { kernel.bell = true; });
      }
    });
    run.thread("sleeper", [&s, look_again] {
      if (s.flag.load_acquire()) return;
      s.asleep.exchange(1);
      if (look_again && s.flag.load_acquire()) return;
      model::block_until([&s] { return s.kernel.bell; });
    });
  });
}

TEST_CASE("a lost wake-up is a deadlock") {
  const Result naive = naive_sleep(false);
  CHECK(naive.failed);
  CHECK(naive.message == "deadlock: sleeper waits in block_until");
  const Result right = naive_sleep(true);
  INFO(right.report());
  CHECK(right.exhausted);
}

Result two_locks(bool same_order) {
  return model::explore({"two locks"}, [=](Run& run) {
    struct State {
      Atomic<U32> lock[2];
      int inside = 0;
    };
    auto& s = run.state<State>();
    run.name(s.lock, "lock");
    auto body = [&s](std::size_t first) {
      for (std::size_t i : {first, 1 - first}) {
        while (s.lock[i].exchange(1)) cpu_relax();
      }
      model::check(++s.inside == 1, "two inside");
      model::point();
      --s.inside;
      s.lock[0].store_release(0);
      s.lock[1].store_release(0);
    };
    run.thread("one", [body] { body(0); });
    run.thread("two", [body, same_order] { body(same_order ? 0 : 1); });
  });
}

TEST_CASE("spin locks: exclusion holds, a deadlock of spinners is found") {
  const Result right = two_locks(true);
  INFO(right.report());
  CHECK(right.exhausted);
  CHECK(two_locks(false).failed);  // both spin for ever: the step limit
}

TEST_CASE("a thread that waits for what nobody does is a deadlock") {
  const Result result = model::explore({"hang"}, [](Run& run) {
    auto& word = run.state<Atomic<U32>>();
    run.thread("waiter", [&word] { model::block_until([&word] { return word.load_acquire() == 2; }); });
    run.thread("other", [&word] { word.store_release(1); });
  });
  CHECK(result.message == "deadlock: waiter waits in block_until");
}

TEST_CASE("a bounded spin ends, also when nothing changes") {
  const Result result = model::explore({"bounded spin"}, [](Run& run) {
    auto& word = run.state<Atomic<U32>>();
    run.thread("spinner", [&word] {
      for (int i = 0; i < 3 && word.load_acquire() == 0; ++i) cpu_relax();
    });
  });
  CHECK(result.exhausted);
}

TEST_CASE("choose explores every value") {
  std::set<unsigned> sums;
  const Result result = model::explore({"choose"}, [&sums](Run& run) {
    auto& word = run.state<Atomic<U32>>();
    const unsigned start = model::choose(2) * 100;
    for (int i = 0; i < 2; ++i) run.thread("adder", [&word] { word.fetch_add(1 + model::choose(3)); });
    run.finally([&word, &sums, start] { sums.insert(start + word.load_acquire()); });
  });
  CHECK(result.exhausted);
  CHECK(result.executions == 2 * 2 * 9);
  CHECK(sums == std::set<unsigned>{2, 3, 4, 5, 6, 102, 103, 104, 105, 106});
}

TEST_CASE("endless spinning without cpu_relax is a livelock, with every reduction") {
  for (auto reduction : {Reduction::kNone, Reduction::kSleepSets, Reduction::kStates}) {
    Options options{"endless"};
    options.reduction = reduction;
    const Result result = model::explore(options, [](Run& run) {
      auto& word = run.state<Atomic<U32>>();
      run.thread("spinner", [&word] {
        while (word.load_acquire() == 0) continue;
      });
      run.thread("other", [&word] { word.load_acquire(); });
    });
    INFO(result.report());
    CHECK(result.message.rfind("livelock", 0) == 0);
    CHECK(result.trace.find("not deterministic") == std::string::npos);
  }
}

// Random programs -----------------------------------------------------------------------------------------------------

enum class Do { kLoad, kStore, kExchange, kFence, kAwait, kSpin, kRing, kSleep };

struct Instruction {
  Do what;
  std::size_t variable;
  U32 value;
};
constexpr std::size_t kVariables = 2, kBuffer = 2;
using Program = std::vector<std::vector<Instruction>>;

bool waits_for_buffer(Do what) {
  return what == Do::kExchange || what == Do::kFence || what == Do::kRing || what == Do::kSleep;
}

bool reads(Do what) {
  return what == Do::kLoad || what == Do::kExchange || what == Do::kSpin;
}

/// The x86-TSO machine written down as naively as possible: all reachable states, no schedules, no reduction.
struct NaiveMachine {
  struct Core {
    std::size_t at = 0;
    std::vector<std::pair<std::size_t, U32>> buffer{};
    std::string read{};
    bool operator<(const Core& o) const { return std::tie(at, buffer, read) < std::tie(o.at, o.buffer, o.read); }
  };
  std::array<U32, kVariables> memory{};
  std::array<bool, kVariables> bells{};
  std::vector<Core> cores{};
  bool operator<(const NaiveMachine& o) const {
    return std::tie(memory, bells, cores) < std::tie(o.memory, o.bells, o.cores);
  }
};

bool naive_step(const Instruction& todo, std::size_t i, NaiveMachine& next) {
  NaiveMachine::Core& core = next.cores[i];
  if (waits_for_buffer(todo.what) && !core.buffer.empty()) return false;
  U32& memory = next.memory[todo.variable];
  bool& bell = next.bells[todo.variable];
  U32 visible = memory;
  for (const auto& [variable, value] : core.buffer) visible = variable == todo.variable ? value : visible;
  switch (todo.what) {
    case Do::kStore:
      if (core.buffer.size() == kBuffer) return false;
      core.buffer.emplace_back(todo.variable, todo.value);
      break;
    case Do::kExchange:
      memory = todo.value;
      break;
    case Do::kAwait:
      if (memory == 0) return false;
      break;
    case Do::kSpin:
      if (visible == 0) return false;
      break;
    case Do::kSleep:
      if (!bell) return false;
      bell = false;
      break;
    case Do::kRing:
      bell = true;
      break;
    case Do::kLoad:
    case Do::kFence:
      break;
  }
  if (reads(todo.what)) core.read += std::to_string(visible);
  ++core.at;
  return true;
}

/// Outcomes of the executions that end, and "stuck" for those that do not.
void reach(const Program& program, const NaiveMachine& machine, std::set<NaiveMachine>& seen, Outcomes& outcomes) {
  if (!seen.insert(machine).second) return;
  bool ended = true, moved = false;
  for (std::size_t i = 0; i < program.size(); ++i) {
    const auto& core = machine.cores[i];
    if (!core.buffer.empty()) {
      NaiveMachine next = machine;
      next.memory[core.buffer[0].first] = core.buffer[0].second;
      next.cores[i].buffer.erase(next.cores[i].buffer.begin());
      reach(program, next, seen, outcomes);
      moved = true;
    }
    if (core.at == program[i].size()) continue;
    ended = false;
    NaiveMachine next = machine;
    if (!naive_step(program[i][core.at], i, next)) continue;
    reach(program, next, seen, outcomes);
    moved = true;
  }
  if (moved) return;
  std::string outcome;
  for (const auto& core : machine.cores) outcome += core.read + "|";
  for (U32 value : machine.memory) outcome += std::to_string(value);
  outcomes.insert(ended ? outcome : "stuck");
}

struct RandomState {
  struct KernelBell {
    bool pending;
  };
  Atomic<U32> memory[kVariables];
  KernelBell bells[kVariables] = {};
  std::array<char, 8> read[3] = {};  // here and not in the threads: an execution may be given up

  void run(const std::vector<Instruction>& core, std::array<char, 8>& out) {
    std::size_t count = 0;
    for (const Instruction& todo : core) {
      Atomic<U32>& word = memory[todo.variable];
      KernelBell& bell = bells[todo.variable];
      U32 value = 0;
      if (todo.what == Do::kStore) word.store_release(todo.value);
      if (todo.what == Do::kExchange) value = word.exchange(todo.value);
      if (todo.what == Do::kFence) thread_fence_seq_cst();
      if (todo.what == Do::kRing) model::kernel_call("ring", bell, [](KernelBell& b) { b.pending = true; });
      if (todo.what == Do::kSleep) {
        model::kernel_wait(
            "sleep", bell, [](const KernelBell& b) { return b.pending; }, [](KernelBell& b) { b.pending = false; });
      }
      if (todo.what == Do::kLoad) value = word.load_acquire();
      if (todo.what == Do::kAwait) model::block_until([&word] { return word.load_acquire() != 0; });
      if (todo.what == Do::kSpin) {
        while ((value = word.load_acquire()) == 0) cpu_relax();
      }
      if (reads(todo.what)) out[count++] = static_cast<char>('0' + value);
    }
  }
};

/// Outcomes, and "stuck" if any execution was: the exploration ends there.
Outcomes explored(const Program& program, Reduction reduction, Result* result) {
  Outcomes outcomes;
  Options options{"random"};
  options.reduction = reduction;
  options.buffer_length = kBuffer;
  options.max_steps = 100;
  *result = model::explore(options, [&](Run& run) {
    auto& s = run.state<RandomState>();
    for (std::size_t i = 0; i < program.size(); ++i) {
      run.thread("core", [&s, &program, i] { s.run(program[i], s.read[i]); });
    }
    run.finally([&] {
      std::string outcome;
      for (std::size_t i = 0; i < program.size(); ++i) outcome += std::string(s.read[i].data()) + "|";
      for (auto& word : s.memory) outcome += std::to_string(word.load_acquire());
      outcomes.insert(outcome);
    });
  });
  if (result->failed) outcomes.insert("stuck");
  return outcomes;
}

Program random_program(std::mt19937& random) {
  auto below = [&random](unsigned n) { return static_cast<unsigned>(random() % n); };
  constexpr std::array<Do, 16> kKinds = {Do::kLoad,  Do::kLoad,  Do::kLoad,  Do::kLoad,  Do::kLoad,     Do::kStore,
                                         Do::kStore, Do::kStore, Do::kStore, Do::kStore, Do::kExchange, Do::kFence,
                                         Do::kAwait, Do::kSpin,  Do::kRing,  Do::kSleep};
  const bool may_wait = below(2) == 0;
  Program program(2 + below(2));
  U32 value = 0;
  for (auto& core : program) {
    for (unsigned n = 1 + below(program.size() == 2 ? 4 : 2); n > 0; --n) {
      core.push_back({kKinds[below(may_wait ? 16 : 12)], below(kVariables), ++value % 10});
    }
  }
  return program;
}

TEST_CASE("random programs have the outcomes of the naive machine, with every reduction") {
  std::mt19937 random(20260101);
  std::uint64_t executions[3] = {};
  int stuck = 0;
  for (int round = 0; round < 1000; ++round) {
    CAPTURE(round);
    const Program program = random_program(random);
    Outcomes expected;
    std::set<NaiveMachine> seen;
    NaiveMachine start;
    start.cores.resize(program.size());
    reach(program, start, seen, expected);
    const bool may_stick = expected.count("stuck") != 0;
    stuck += may_stick;
    for (auto reduction : {Reduction::kNone, Reduction::kSleepSets, Reduction::kStates}) {
      CAPTURE(static_cast<int>(reduction));
      Result result;
      const Outcomes found = explored(program, reduction, &result);
      if (may_stick) {
        REQUIRE(result.failed);
        continue;
      }
      INFO(result.report());
      REQUIRE(result.exhausted);
      REQUIRE(found == expected);
      executions[static_cast<int>(reduction)] += result.executions + result.pruned;
    }
  }
  CHECK(stuck > 100);
  CHECK(stuck < 900);
  CHECK(executions[1] * 3 < executions[0]);
  CHECK(executions[2] < executions[1]);
}

}  // namespace
}  // namespace mpklink
