// SPDX-License-Identifier: MIT
// The only file that names std::atomic. Every operation says its order in its name; every acquire/release in the tree
// names its partner in a "SYNC:" comment. With MPKLINK_MODEL the same names come from the interleaving checker, so the
// protocol headers are explored unchanged (tests/model).
#pragma once
#ifdef MPKLINK_MODEL
#include "tests/model/model_atomic.h"
#else
#include <atomic>
#include <cstdint>

namespace mpklink {

// A lock-free word that may live in memory shared with another process. Read-modify-writes are sequentially consistent.
template <class T>
class Atomic {
 public:
  constexpr Atomic() = default;
  constexpr explicit Atomic(T value) : value_(value) {}
  Atomic(const Atomic&) = delete;
  Atomic& operator=(const Atomic&) = delete;

  T load_relaxed() const { return value_.load(std::memory_order_relaxed); }
  T load_acquire() const { return value_.load(std::memory_order_acquire); }
  void store_relaxed(T v) { value_.store(v, std::memory_order_relaxed); }
  void store_release(T v) { value_.store(v, std::memory_order_release); }
  T exchange(T v) { return value_.exchange(v, std::memory_order_seq_cst); }
  T fetch_or(T v) { return value_.fetch_or(v, std::memory_order_seq_cst); }
  T fetch_and(T v) { return value_.fetch_and(v, std::memory_order_seq_cst); }
  T fetch_add(T v) { return value_.fetch_add(v, std::memory_order_seq_cst); }
  bool compare_exchange(T& expected, T desired) {
    return value_.compare_exchange_strong(expected, desired, std::memory_order_seq_cst);
  }

 private:
  std::atomic<T> value_{};
  static_assert(std::atomic<T>::is_always_lock_free, "shared words must not need a lock");
  // NOLINTNEXTLINE(bugprone-sizeof-expression): T may be a pointer, and means it
  static_assert(sizeof(std::atomic<T>) == sizeof(T), "shared words must have the size of the plain type");
};

// A plain-looking word that is written under a lock and also read without it, as a hint: whoever acts on it looks again under the
// lock. Relaxed, so that the hint is a whole value, never a torn or a remembered one, and costs nothing.
template <class T>
class Hint {
 public:
  constexpr Hint() = default;
  Hint(const Hint& other) : value_(static_cast<T>(other)) {}
  Hint& operator=(const Hint& other) {
    *this = static_cast<T>(other);
    return *this;
  }
  Hint& operator=(T value) {
    value_.store_relaxed(value);  // relaxed: see above
    return *this;
  }
  operator T() const { return value_.load_relaxed(); }    // relaxed: see above
  T operator->() const { return value_.load_relaxed(); }  // relaxed: see above

 private:
  Atomic<T> value_;
};

#if defined(__SANITIZE_THREAD__)
#define MPKLINK_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MPKLINK_TSAN 1
#endif
#endif
#ifdef MPKLINK_TSAN
// ThreadSanitizer has no fences. A locked instruction is one on x86, whatever its address; on a word of its own, and not on one that
// all threads share, it orders nothing in the sanitizer's eyes, so no race is hidden by it. Nothing here rests on a fence for more
// than "my store before my load": data always changes hands by an acquire and a release.
inline void thread_fence_seq_cst() {
  std::atomic<std::uint32_t> own{0};
  own.exchange(1, std::memory_order_seq_cst);
}
#else
inline void thread_fence_seq_cst() { std::atomic_thread_fence(std::memory_order_seq_cst); }
#endif
inline void cpu_relax() { __builtin_ia32_pause(); }

}  // namespace mpklink
#endif
