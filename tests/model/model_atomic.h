// SPDX-License-Identifier: MIT
#pragma once

// The Atomic<T> of shm/atomic.h with every operation handed to the interleaving checker (checker.h). shm/atomic.h
// includes this file instead of its own definition when MPKLINK_MODEL is defined, so that the protocol headers are
// checked as they are shipped. Outside a virtual thread (building a scenario, a wait's predicate, the final check) the
// operations act on memory at once.

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace mpklink {

namespace model {

using Word = std::uint64_t;

enum class Rmw : std::uint8_t { kExchange, kOr, kAnd, kAdd, kCompareExchange };

Word atomic_load(const void* address, std::size_t size);
void atomic_store(void* address, std::size_t size, Word value);
/// Returns the value before. `expected` matters for kCompareExchange only, which writes `operand` when it matches.
Word atomic_rmw(Rmw rmw, void* address, std::size_t size, Word operand, Word expected = 0);
void fence();
void relax();

}  // namespace model

template <class T>
class Atomic {
  static_assert(std::is_integral_v<T> && std::is_unsigned_v<T>, "uint8/16/32/64 or bool");

 public:
  constexpr Atomic() = default;
  constexpr explicit Atomic(T value) : value_(value) {}
  Atomic(const Atomic&) = delete;
  Atomic& operator=(const Atomic&) = delete;

  // On x86-TSO a release store and a relaxed one differ for the compiler only, so they are one operation here.
  T load_relaxed() const { return load_acquire(); }
  T load_acquire() const { return static_cast<T>(model::atomic_load(&value_, sizeof(T))); }
  void store_relaxed(T value) { store_release(value); }
  void store_release(T value) { model::atomic_store(&value_, sizeof(T), value); }

  T exchange(T value) { return rmw(model::Rmw::kExchange, value); }
  T fetch_or(T value) { return rmw(model::Rmw::kOr, value); }
  T fetch_and(T value) { return rmw(model::Rmw::kAnd, value); }
  T fetch_add(T value) { return rmw(model::Rmw::kAdd, value); }
  bool compare_exchange(T& expected, T desired) {
    const T wanted = expected;
    expected = rmw(model::Rmw::kCompareExchange, desired, wanted);
    return expected == wanted;
  }

 private:
  T rmw(model::Rmw kind, T operand, T expected = 0) {
    return static_cast<T>(model::atomic_rmw(kind, &value_, sizeof(T), operand, expected));
  }

  T value_{};
};

static_assert(sizeof(Atomic<std::uint32_t>) == sizeof(std::uint32_t));
static_assert(sizeof(Atomic<bool>) == sizeof(bool));

inline void thread_fence_seq_cst() {
  model::fence();
}
inline void cpu_relax() {
  model::relax();
}

}  // namespace mpklink
