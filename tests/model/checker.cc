// SPDX-License-Identifier: MIT
#include "tests/model/checker.h"

#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <sstream>
#include <unordered_map>

namespace mpklink::model {

namespace {

constexpr std::size_t kNobody = 31;
static_assert(2 * kMaxThreads <= kNobody);

/// One choice on the path from the start of the execution.
struct Node {
  Set candidates, sleep, done;
  std::uint8_t chosen;
  bool is_value;    // of choose(), not of the scheduler
  int preemptions;  // before it
  Word state;       // 0: not looked up
};

char letter(const Node& node) {
  if (node.is_value) return static_cast<char>('0' + node.chosen);
  const bool drain = node.chosen >= kMaxThreads;
  return static_cast<char>((drain ? 'A' - static_cast<int>(kMaxThreads) : 'a') + node.chosen);
}

}  // namespace

/// Depth-first search over the choices, from the start each time: a path of choices is replayed up to the deepest one
/// that has an alternative left, takes that, and goes on with the first choice from there.
class Checker {
 public:
  Checker(const Options& options, const std::function<void(Run&)>& scenario);
  Result explore();

  unsigned choose_value(unsigned n);
  void fail(const std::string& message);
  std::string schedule() const;
  Machine& machine() { return machine_; }

 private:
  void run_once();
  bool run_threads();
  int choose_transition(Set all, Set sleep);
  int next_choice(Node node, std::size_t preferred);
  bool reached_before(Node& node);
  bool backtrack();
  void write_trace();

  const Options& options_;
  const std::function<void(Run&)>& scenario_;
  Reduction reduction_;
  Machine machine_;
  Result result_;

  std::vector<Node> path_;
  std::size_t depth_ = 0;
  std::size_t last_ = kNobody;  // the thread that took the last step which others could notice
  int preemptions_ = 0;
  std::unordered_map<Word, Set> states_;  // reached, with the sleep set that was then left out
  std::string forced_;                    // the schedule to replay
  bool replaying_ = false, print_ = false;
};

namespace {

Checker* g_checker = nullptr;

/// An assert of the code under test, or its crash: say which schedule led there before the old handler ends it all.
class CrashReporter {
 public:
  CrashReporter() {
    struct sigaction action {};
    action.sa_handler = &on_crash;
    action.sa_flags = SA_ONSTACK;
    sigaction(SIGABRT, &action, &old_abort_);
    sigaction(SIGSEGV, &action, &old_fault_);
  }
  ~CrashReporter() { restore(); }
  CrashReporter(const CrashReporter&) = delete;
  CrashReporter& operator=(const CrashReporter&) = delete;

 private:
  static void restore() {
    sigaction(SIGABRT, &old_abort_, nullptr);
    sigaction(SIGSEGV, &old_fault_, nullptr);
  }
  static void on_crash(int signal_number) {
    restore();
    const std::string text = "\nmodel: crash; replay with MODEL_REPLAY='" + g_checker->schedule() + "'\n";
    if (write(STDERR_FILENO, text.data(), text.size()) < 0) _exit(1);
    raise(signal_number);  // stays pending until this handler returns
  }

  static inline struct sigaction old_abort_, old_fault_;
};

}  // namespace

Checker::Checker(const Options& options, const std::function<void(Run&)>& scenario)
    : options_(options),
      scenario_(scenario),
      reduction_(options.preemption_bound < 0 ? options.reduction : Reduction::kNone),
      machine_(options.buffer_length) {
  result_.name = options.name;
  forced_ = options.replay;
  const char* replay = std::getenv("MODEL_REPLAY");
  if (replay && std::string(replay).rfind(options.name + ":", 0) == 0) {
    forced_ = replay + options.name.size() + 1;
    print_ = true;
  }
  replaying_ = !forced_.empty();
}

Result Checker::explore() {
  CrashReporter crash_reporter;
  bool more = true;
  while (more) {
    run_once();
    if (machine_.must_restart()) {
      path_.clear();
      states_.clear();
      result_ = Result{};
      result_.name = options_.name;
    } else {
      more = !result_.failed && !replaying_ && result_.executions < options_.max_executions && backtrack();
    }
  }
  result_.exhausted = !result_.failed && !replaying_ && path_.empty();
  if (result_.failed) write_trace();
  if (print_) std::cerr << result_.report() << (result_.failed ? "" : machine_.trace());
  return result_;
}

/// Of the failing execution, which is run once more for it.
void Checker::write_trace() {
  result_.schedule = schedule();
  const Result first = result_;
  forced_ = first.schedule.substr(options_.name.size() + 1);
  replaying_ = true;
  path_.clear();
  result_.failed = false;
  run_once();
  const bool same = result_.failed && result_.message == first.message;
  result_ = first;
  result_.trace = machine_.trace();
  if (!same) result_.trace += "(this second run went otherwise: the scenario is not deterministic)\n";
}

void Checker::run_once() {
  depth_ = 0;
  preemptions_ = 0;
  last_ = kNobody;
  machine_.reset(replaying_);
  Run run(machine_);
  scenario_(run);
  machine_.start();
  const bool ended = run_threads();
  if (machine_.must_restart()) return;
  if (!ended) {
    ++result_.pruned;
    return;
  }
  if (!result_.failed && run.final_) run.final_();
  ++result_.executions;
}

/// False when the execution was given up.
bool Checker::run_threads() {
  // Sleep sets (Godefroid): the transitions that were taken from an earlier state of this path, and that commute with
  // all that was done since. Whatever they lead to from here is reached by that other path.
  Set sleep = 0;
  while (!result_.failed && !machine_.must_restart()) {
    const Set all = machine_.enabled();
    if (all == 0) {
      const std::string waiting = machine_.waiting();
      if (!waiting.empty()) fail("deadlock: " + waiting);
      break;
    }
    const int chosen = choose_transition(all, sleep);
    if (chosen < 0) return result_.failed;
    const auto transition = static_cast<std::size_t>(chosen);
    const Node& node = path_[depth_ - 1];
    sleep = 0;
    for (std::size_t i = 0; reduction_ != Reduction::kNone && i < 2 * kMaxThreads; ++i) {
      if (((node.sleep | node.done) & bit(i)) && machine_.independent(i, transition)) sleep |= bit(i);
    }
    machine_.take(transition);
    ++result_.steps;
  }
  return true;
}

int Checker::choose_transition(Set all, Set sleep) {
  if (depth_ < path_.size()) preemptions_ = path_[depth_].preemptions;
  Node node{all, sleep, 0, 0, false, preemptions_, 0};
  std::size_t preferred = last_;
  for (std::size_t i = 0; options_.reduction != Reduction::kNone && !replaying_ && i < kMaxThreads; ++i) {
    if (!(all & bit(i)) || !machine_.local(i)) continue;
    node.candidates = bit(i);  // its order against the others does not matter: take it at once
    break;
  }
  const bool last_is_enabled = (all & bit(last_)) != 0;
  if (options_.preemption_bound >= 0 && preemptions_ >= options_.preemption_bound && (node.candidates & bit(last_))) {
    node.candidates &= bit(last_) | ~(bit(kMaxThreads) - 1);
  }
  if (depth_ >= path_.size() && reached_before(node)) return -1;

  const int chosen = next_choice(node, preferred);
  if (chosen < 0 || chosen >= static_cast<int>(kMaxThreads)) return chosen;
  const auto thread = static_cast<std::size_t>(chosen);
  if (!machine_.local(thread)) {
    if (thread != last_ && last_is_enabled) ++preemptions_;
    last_ = thread;
  }
  return chosen;
}

/// Whether all that is to be done from here has been done from the same state. Godefroid's rule for joining this with
/// sleep sets: a state is known with what has been left out in every visit so far, and must be visited again unless all
/// of that can be left out now.
bool Checker::reached_before(Node& node) {
  const bool is_forced = (node.candidates & (node.candidates - 1)) == 0;
  if (reduction_ != Reduction::kStates || is_forced) return false;
  node.state = machine_.hash();
  for (const Node& earlier : path_) {
    if (earlier.state == node.state) fail("livelock: a state repeats itself");
  }
  if (replaying_) return false;
  const auto [known, is_new] = states_.try_emplace(node.state, node.sleep);
  if (is_new) return false;
  if ((known->second & ~node.sleep) == 0) return true;
  known->second &= node.sleep;
  return false;
}

/// The choice taken, or -1 when there is none that leads to anything new.
int Checker::next_choice(Node node, std::size_t preferred) {
  if (depth_ < path_.size()) {
    const Node& known = path_[depth_++];
    if (known.is_value == node.is_value && known.candidates == node.candidates) return known.chosen;
    std::cerr << "model: " << options_.name << ": a replayed execution went otherwise: it is not deterministic\n";
    std::abort();
  }
  if (depth_ >= options_.max_steps) fail("livelock? no end after " + std::to_string(depth_) + " steps");
  const Set available = node.candidates & ~node.sleep;
  if (available == 0 || result_.failed) return -1;
  node.chosen = static_cast<std::uint8_t>((available & bit(preferred)) ? preferred : __builtin_ctz(available));
  if (replaying_ && depth_ < forced_.size()) {
    for (node.chosen = 0; node.chosen < kNobody; ++node.chosen) {
      if ((available & bit(node.chosen)) && letter(node) == forced_[depth_]) break;
    }
    if (node.chosen == kNobody) {
      fail("the schedule to replay does not fit at choice " + std::to_string(depth_));
      return -1;
    }
  }
  path_.push_back(node);
  ++depth_;
  return node.chosen;
}

/// To the deepest choice that has an alternative left; false when there is none.
bool Checker::backtrack() {
  while (!path_.empty()) {
    Node& node = path_.back();
    node.done |= bit(node.chosen);
    const Set left = node.candidates & ~node.sleep & ~node.done;
    if (left != 0) {
      node.chosen = static_cast<std::uint8_t>(__builtin_ctz(left));
      return true;
    }
    path_.pop_back();
  }
  return false;
}

unsigned Checker::choose_value(unsigned n) {
  if (n == 0 || n > 10) std::abort();
  const int value = next_choice({bit(n) - 1, 0, 0, 0, true, preemptions_, 0}, 0);
  if (value < 0) return 0;  // failed while the scenario was built; a virtual thread does not come back from fail()
  machine_.chosen(static_cast<Word>(value));
  return static_cast<unsigned>(value);
}

void Checker::fail(const std::string& message) {
  if (!result_.failed) {
    result_.failed = true;
    result_.message = message;
  }
  if (machine_.in_thread()) machine_.stop();
}

std::string Checker::schedule() const {
  std::string text = options_.name + ":";
  for (std::size_t i = 0; i < depth_; ++i) text += letter(path_[i]);
  return text;
}

std::string Result::report() const {
  std::ostringstream text;
  text << name << ": " << executions << " executions, " << pruned << " pruned, " << steps << " steps, "
       << (exhausted ? "exhausted" : "NOT exhausted") << "\n";
  if (failed) text << message << "\nreplay with MODEL_REPLAY='" << schedule << "'\n" << trace;
  return text.str();
}

Result explore(const Options& options, const std::function<void(Run&)>& scenario) {
  if (g_checker) std::abort();
  auto checker = std::make_unique<Checker>(options, scenario);
  g_checker = checker.get();
  g_machine = &checker->machine();
  Result result = checker->explore();
  g_machine = nullptr;
  g_checker = nullptr;
  return result;
}

void check(bool holds, const char* message) {
  if (!holds) g_checker->fail(message);
}

unsigned choose(unsigned n) {
  return g_checker->choose_value(n);
}

void note(const char* text, Word value) {
  g_machine->note(text, value);
}

void point() {
  detail::wait_step("point", kEverything, {}, false);
}

void point_read(const void* address, std::size_t size) {
  const auto begin = reinterpret_cast<std::uintptr_t>(address);
  detail::wait_step("read data", {begin, begin + size, false}, {}, false);
}

void point_write(void* address, std::size_t size) {
  const auto begin = reinterpret_cast<std::uintptr_t>(address);
  detail::wait_step("write data", {begin, begin + size, true}, {}, false);
}

void detail::wait_step(const char* label, Footprint footprint, Predicate predicate, bool needs_empty_buffer) {
  if (g_machine && !g_machine->at_once()) g_machine->wait(label, footprint, predicate, needs_empty_buffer);
}

}  // namespace mpklink::model
