// SPDX-License-Identifier: MIT
#include "tests/model/machine.h"

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <sstream>

namespace mpklink::model {

Machine* g_machine = nullptr;

namespace {

[[noreturn]] void misuse(const char* text) {
  std::cerr << "model: " << text << "\n";
  std::abort();
}

Footprint bytes(const void* address, std::size_t size, bool writes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(address);
  return {begin, begin + size, writes};
}

bool conflict(const Footprint& a, const Footprint& b) {
  return (a.writes || b.writes) && a.begin < b.end && b.begin < a.end;
}

Word read_memory(const void* address, std::size_t size) {
  Word value = 0;
  std::memcpy(&value, address, size);  // little-endian, as x86 is
  return value;
}

void write_memory(void* address, std::size_t size, Word value) {
  std::memcpy(address, &value, size);
}

Word apply(Rmw kind, Word before, Word operand, Word expected) {
  switch (kind) {
    case Rmw::kExchange:
      return operand;
    case Rmw::kOr:
      return before | operand;
    case Rmw::kAnd:
      return before & operand;
    case Rmw::kAdd:
      return before + operand;
    case Rmw::kCompareExchange:
      break;
  }
  return before == expected ? operand : before;
}

const char* label_of(Rmw kind) {
  static const char* const kLabels[] = {"exchange", "fetch_or", "fetch_and", "fetch_add", "compare_exchange"};
  return kLabels[static_cast<int>(kind)];
}

Word mix(Word hash, Word value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15;
  return hash ^ (hash >> 32);
}

template <class T>
Word mix(Word hash, const T* pointer) {
  return mix(hash, reinterpret_cast<std::uintptr_t>(pointer));
}

}  // namespace

// One execution -------------------------------------------------------------------------------------------------------

void Machine::reset(bool tracing) {
  std::memset(arena_, 0, arena_used_);
  arena_used_ = thread_count_ = steps_ = 0;
  choices_ = 0;
  at_once_ = must_restart_ = false;
  tracing_ = tracing;
  trace_.clear();
  names_.clear();
  unnamed_.clear();
}

void* Machine::allocate(std::size_t size, std::size_t alignment) {
  const std::size_t at = (arena_used_ + alignment - 1) / alignment * alignment;
  if (alignment > alignof(Machine) || at + size > kArenaBytes) misuse("the scenario's state is too big");
  arena_used_ = at + size;
  return arena_ + at;
}

void Machine::add_thread(const char* name, std::function<void()> body) {
  if (thread_count_ == kMaxThreads) misuse("too many threads");
  Thread& thread = threads_[thread_count_++];
  thread.name = name;
  thread.body = std::move(body);
  thread.op = Op{};
  thread.buffer.clear();
  thread.seen.clear();
  thread.saw_more = thread.finished = false;
}

void Machine::name(const void* object, std::size_t size, std::size_t element_size, const char* name) {
  names_.push_back({reinterpret_cast<std::uintptr_t>(object), size, element_size, name});
}

void Machine::start() {
  for (std::size_t i = 0; i < thread_count_; ++i) {
    threads_[i].coroutine.start(&Machine::entry);
    resume(threads_[i]);  // up to its first operation
  }
}

void Machine::entry() {
  Thread& self = *g_machine->current_;
  self.body();
  self.finished = true;
  g_machine->stop();
}

void Machine::resume(Thread& thread) {
  current_ = &thread;
  Coroutine::transfer(scheduler_, thread.coroutine);
  current_ = nullptr;
}

void Machine::step(const Op& op) {
  current_->op = op;
  Coroutine::transfer(current_->coroutine, scheduler_);
}

void Machine::stop() {
  Coroutine::transfer(current_->coroutine, scheduler_);
  misuse("a thread that was given up runs again");
}

void Machine::take(std::size_t transition) {
  ++steps_;
  Thread& thread = threads_[transition % kMaxThreads];
  if (transition < kMaxThreads) return resume(thread);
  const Store oldest = thread.buffer.front();
  thread.buffer.erase(thread.buffer.begin());
  write_memory(oldest.address, oldest.size, oldest.value);
  if (tracing_) trace(thread, "  drains: " + place(oldest.address) + " = " + std::to_string(oldest.value), true);
}

// What can happen -----------------------------------------------------------------------------------------------------

Set Machine::enabled() {
  Set all = 0, relaxing = 0;
  for (std::size_t i = 0; i < thread_count_; ++i) {
    const Thread& thread = threads_[i];
    if (!thread.buffer.empty()) all |= bit(kMaxThreads + i);
    if (enabled(thread)) all |= bit(i);
    if (!thread.finished && thread.op.kind == Kind::kRelax) relaxing |= bit(i);
  }
  return all ? all : relaxing;  // a bounded spin goes on when nothing else can; an endless one is found as a livelock
}

bool Machine::enabled(const Thread& thread) const {
  if (thread.finished) return false;
  const Op& op = thread.op;
  if (op.needs_empty_buffer && !thread.buffer.empty()) return false;
  if (op.predicate.holds && !op.predicate.holds(op.predicate.argument)) return false;
  if (op.kind == Kind::kStore) return buffer_length_ == 0 || thread.buffer.size() < buffer_length_;
  if (op.kind == Kind::kRelax) return sees_change(thread);
  return true;
}

/// Spinning on values that nobody has changed would only repeat itself.
bool Machine::sees_change(const Thread& thread) const {
  if (thread.saw_more || thread.seen.empty()) return true;
  for (const Seen& seen : thread.seen) {
    if (visible(thread, seen.address, seen.size) != seen.value) return true;
  }
  return false;
}

bool Machine::local(std::size_t i) const {
  const Op& op = threads_[i].op;
  return (op.kind == Kind::kStore || op.kind == Kind::kFence) && op.footprint.end == 0;
}

Footprint Machine::footprint(std::size_t transition) const {
  const Thread& thread = threads_[transition % kMaxThreads];
  if (transition < kMaxThreads) return thread.op.footprint;
  const Store& oldest = thread.buffer.front();
  return bytes(oldest.address, oldest.size, true);
}

bool Machine::independent(std::size_t a, std::size_t b) const {
  if (a == b) return false;
  const Op& op = threads_[a % kMaxThreads].op;
  // A load looks into its own buffer first, so it finds the same value before and after its own drain; a store that has
  // room goes to the other end of the buffer. Locked steps and fences are not enabled together with their own drain.
  const bool same_thread = a % kMaxThreads == b % kMaxThreads;
  if (same_thread && (op.kind == Kind::kLoad || op.kind == Kind::kStore)) return true;
  return !conflict(footprint(a), footprint(b));
}

Word Machine::hash() {
  Word hash = choices_;
  for (std::size_t at = 0; at < arena_used_; at += sizeof(Word))
    hash = mix(hash, read_memory(arena_ + at, sizeof(Word)));
  for (std::size_t i = 0; i < thread_count_; ++i) {
    Thread& thread = threads_[i];
    hash = mix(hash, thread.buffer.size());
    for (const Store& store : thread.buffer) hash = mix(mix(hash, store.address), store.value);
    if (thread.finished) continue;
    hash = mix(mix(hash, thread.op.label), thread.op.footprint.begin);
    hash = thread.coroutine.hash(hash, [](Word h, Word value) { return mix(h, value); });
    hash = mix(hash, thread.seen.size() * 2 + thread.saw_more);
    for (const Seen& seen : thread.seen) hash = mix(mix(hash, seen.address), seen.value);
  }
  return hash;
}

std::string Machine::waiting() const {
  std::string text;
  for (std::size_t i = 0; i < thread_count_; ++i) {
    if (threads_[i].finished) continue;
    if (!text.empty()) text += "; ";
    text += std::string(threads_[i].name) + " waits in " + threads_[i].op.label;
  }
  return text;
}

// What threads do -----------------------------------------------------------------------------------------------------

Word Machine::visible(const Thread& thread, const void* address, std::size_t size) const {
  for (auto store = thread.buffer.rbegin(); store != thread.buffer.rend(); ++store) {
    if (store->address == address && store->size == size) return store->value;
    if (conflict(bytes(store->address, store->size, true), bytes(address, size, false))) {
      misuse("atomics of different sizes overlap");
    }
  }
  return read_memory(address, size);
}

void Machine::saw(const void* address, std::size_t size, Word value) {
  if (!spins_) return;
  for (const Seen& seen : current_->seen) {
    if (seen.address == address && seen.value == value) return;
  }
  current_->seen.push_back({address, size, value});
}

Word Machine::load(const void* address, std::size_t size) {
  step({Kind::kLoad, "load", bytes(address, size, false), {}, false});
  const Word value = visible(*current_, address, size);
  saw(address, size, value);
  if (tracing_) trace(*current_, "load " + place(address) + " -> " + std::to_string(value));
  return value;
}

void Machine::store(void* address, std::size_t size, Word value) {
  const bool buffered = buffer_length_ > 0;
  step({Kind::kStore, "store", buffered ? Footprint{} : bytes(address, size, true), {}, false});
  if (buffered) {
    current_->buffer.push_back({address, size, value});
  } else {
    write_memory(address, size, value);
  }
  if (tracing_) trace(*current_, "store " + place(address) + " = " + std::to_string(value));
}

Word Machine::rmw(Rmw kind, void* address, std::size_t size, Word operand, Word expected) {
  step({Kind::kLocked, label_of(kind), bytes(address, size, true), {}, true});
  const Word before = read_memory(address, size);
  write_memory(address, size, apply(kind, before, operand, expected));
  const Word after = read_memory(address, size);  // wrapped to its size
  saw(address, size, after);
  if (tracing_) {
    trace(*current_, std::string(label_of(kind)) + " " + place(address) + ": " + std::to_string(before) + " -> " +
                         std::to_string(after));
  }
  return before;
}

void Machine::fence() {
  step({Kind::kFence, "fence", {}, {}, true});
  if (tracing_) trace(*current_, "fence");
}

void Machine::relax() {
  if (!spins_) {  // nobody else pays for remembering what was seen, which keeps apart states that are else the same
    spins_ = must_restart_ = true;
    stop();
  }
  step({Kind::kRelax, "cpu_relax", kEverything, {}, false});
  current_->seen.clear();
  current_->saw_more = false;
  if (tracing_) trace(*current_, "cpu_relax");
}

void Machine::wait(const char* label, Footprint touched, Predicate predicate, bool needs_empty_buffer) {
  step({Kind::kWait, label, touched, predicate, needs_empty_buffer});
  current_->saw_more = spins_;
  if (tracing_) trace(*current_, label);
}

void Machine::chosen(Word value) {
  if (!current_) choices_ = mix(choices_, value + 1);
  note("chooses", value);
}

// The trace -----------------------------------------------------------------------------------------------------------

std::string Machine::place(const void* address) {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  for (const auto& name : names_) {
    if (at < name.begin || at >= name.begin + name.size) continue;
    if (name.size == name.element_size) return name.name;
    return std::string(name.name) + "[" + std::to_string((at - name.begin) / name.element_size) + "]";
  }
  std::size_t i = 0;
  while (i < unnamed_.size() && unnamed_[i] != address) ++i;
  if (i == unnamed_.size()) unnamed_.push_back(address);
  return "@" + std::to_string(i);
}

void Machine::trace(const Thread& thread, const std::string& text, bool drain) {
  std::ostringstream line;
  line.width(4);
  line << steps_ << "  " << static_cast<char>((drain ? 'A' : 'a') + (&thread - threads_)) << "  ";
  line.width(10);
  line << std::left << thread.name << "  " << text << "\n";
  trace_ += line.str();
}

void Machine::note(const char* text, Word value) {
  if (tracing_ && current_) trace(*current_, std::string("  ") + text + " " + std::to_string(value));
}

// What atomics call ---------------------------------------------------------------------------------------------------

namespace {

// While a scenario is built, in a predicate, in the final check.
bool at_once() {
  return !g_machine || g_machine->at_once();
}

}  // namespace

Word atomic_load(const void* address, std::size_t size) {
  return at_once() ? read_memory(address, size) : g_machine->load(address, size);
}

void atomic_store(void* address, std::size_t size, Word value) {
  if (at_once()) return write_memory(address, size, value);
  g_machine->store(address, size, value);
}

Word atomic_rmw(Rmw kind, void* address, std::size_t size, Word operand, Word expected) {
  if (!at_once()) return g_machine->rmw(kind, address, size, operand, expected);
  const Word before = read_memory(address, size);
  write_memory(address, size, apply(kind, before, operand, expected));
  return before;
}

void fence() {
  if (!at_once()) g_machine->fence();
}

void relax() {
  if (!at_once()) g_machine->relax();
}

}  // namespace mpklink::model
