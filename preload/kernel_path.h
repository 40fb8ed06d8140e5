// SPDX-License-Identifier: MIT
// Data calls on a stream the kernel still carries: done by the kernel, counted, and followed by the next upgrade step.
#pragma once
#include <sys/types.h>

#include "preload/hook_scope.h"
#include "preload/on_unwind.h"
#include "preload/status.h"

namespace mpklink {

inline void end_kernel_call(void* stream) {
  auto* s = static_cast<Stream*>(stream);
  s->kernel_calls.fetch_add(~std::uint32_t{0});
  unpin(s);
}

enum class Flow { kIn, kOut };

// By the stream itself, while it has no channel.
inline void count_tcp_sent(Stream* s, std::uint64_t n) {
  s->tcp_sent.fetch_add(n);
  show_tcp_sent(s, n);
}
inline void count_tcp_received(Stream* s, std::uint64_t n) {
  s->tcp_received.fetch_add(n);
  show_tcp_received(s, n);
}

// An answer received: usually the peer's thread has been through an operation since the one before, and so through its upgrade step.
inline void note_turn(Stream* s, Flow flow) {
  const bool in = flow == Flow::kIn;
  if (in && !s->last_was_in) s->turns = s->turns + 1;
  s->last_was_in = in;
}

// Runs `call` (a kernel data call on fd) as an operation of candidate `s`. False: the stream became managed meanwhile.
template <class Call>
bool kernel_operation(int fd, Stream* s, Flow flow, bool counts, ssize_t* result, Call call) {
  ssize_t n = -1;
  {
    Undisturbed undisturbed;  // whoever jumps out of here leaves a call counted for ever
    if (!hold(fd, s)) return false;
    s->kernel_calls.fetch_add(1);  // SYNC: kernel_calls, before the look at the state
    const State state = state_of(s);
    if (state != State::kCandidate && state != State::kPlain) {
      end_kernel_call(s);
      return false;
    }
    {
      const OnUnwind owed(end_kernel_call, s);
      undisturbed.allow();
      n = call();
      undisturbed.again();
      if (n > 0 && counts) (flow == Flow::kIn ? count_tcp_received : count_tcp_sent)(s, static_cast<std::uint64_t>(n));
    }
    const ErrnoSaver keep;
    end_kernel_call(s);
  }
  if (n > 0) {
    note_turn(s, flow);
    after_operation(fd, s);
  }
  *result = n;
  return true;
}

}  // namespace mpklink
