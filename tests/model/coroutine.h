// SPDX-License-Identifier: MIT
#pragma once

// A stack one can switch to, and look at. swapcontext() makes a system call each time, which would be most of the time
// of a checker that switches ten million times a second.

#include <sanitizer/asan_interface.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#if !defined(__x86_64__)
#error "the switch below is for x86-64, and so is the memory model that is checked"
#endif

namespace mpklink::model {

/// System V ABI: rdi = where to save our stack pointer, rsi = the other's.
[[gnu::naked, gnu::noinline]] inline void switch_stack(void**, void*) {
  asm volatile(
      "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n\t"
      "ret");
}

class Coroutine {
 public:
  using Word = std::uint64_t;

  /// The next transfer here runs `entry`, which must not return. What ran here before is forgotten, not unwound.
  void start(void (*entry)()) {
    if (!stack_) stack_.reset(new Word[kStackWords]());
    ASAN_UNPOISON_MEMORY_REGION(stack_.get(), kStackWords * sizeof(Word));
    const auto top = reinterpret_cast<std::uintptr_t>(stack_.get() + kStackWords) & ~std::uintptr_t{15};
    auto* frame = reinterpret_cast<Word*>(top) - 8;  // six registers, the entry, and no return address
    for (int i = 0; i < 8; ++i) frame[i] = 0;
    frame[6] = reinterpret_cast<Word>(entry);  // 16-byte aligned: the entry finds the stack as after a call
    stack_pointer_ = frame;
  }

  static void transfer(Coroutine& from, Coroutine& to) { switch_stack(&from.stack_pointer_, to.stack_pointer_); }

  /// While it is switched away from, the stack in use, with the saved registers on it, is all its local state. What
  /// deeper calls left below is zeroed, so that it turns up in frames to come as seldom as possible: dead values there
  /// make equal states look different, which costs time but hides nothing.
  template <class Mix>
  [[gnu::no_sanitize_address]] Word hash(Word hash, Mix mix) {
    auto* live = static_cast<Word*>(stack_pointer_);
    for (Word* dead = live - kDeadWords; dead < live; ++dead) *dead = 0;
    for (Word* end = stack_.get() + kStackWords; live < end; ++live) hash = mix(hash, *live);
    return hash;
  }

 private:
  static constexpr std::size_t kStackWords = 16 * 1024, kDeadWords = 128;
  std::unique_ptr<Word[]> stack_{};
  void* stack_pointer_ = nullptr;
};

}  // namespace mpklink::model
