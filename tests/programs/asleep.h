// SPDX-License-Identifier: MIT
// Acting at the very moment when a thread sleeps in the kernel, and signal handlers that count. The kernel is asked for the state
// of the thread, so that nothing depends on sleeping long enough.
#pragma once

#include <signal.h>

#include "testlib.h"

namespace testlib {

// R, S, D … of proc(5); X when there is no such thread. Works for threads of other processes.
inline char thread_state(pid_t tid) {
  char path[32], line[256];
  snprintf(path, sizeof path, "/proc/%d/stat", tid);
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 'X';
  const ssize_t n = read(file, line, sizeof line - 1);
  close(file);
  if (n <= 0) return 'X';
  line[n] = 0;
  const char* after_name = strrchr(line, ')');
  return after_name != nullptr ? after_name[2] : 'X';
}

// Until the thread has been found asleep several times in a row, or has ended; gives up after seconds (then the case itself fails or passes).
inline void await_asleep(pid_t tid) {
  const int64_t deadline = now_ms() + 3000;
  for (int asleep = 0; asleep < 8 && now_ms() < deadline;) {
    const char state = thread_state(tid);
    if (state == 'X') return;  // it has ended
    asleep = state == 'S' ? asleep + 1 : 0;
    sleep_ms(2);
  }
}

// Runs `act` in a thread of its own as soon as the thread that made this object sleeps. Joined at the end of the scope.
template <typename F>
class WhenAsleep {
 public:
  explicit WhenAsleep(F act) : act_(act), sleeper_(gettid()), thread_(start_thread(run, this)) {}
  ~WhenAsleep() { join_thread(thread_); }
  WhenAsleep(const WhenAsleep&) = delete;
  WhenAsleep& operator=(const WhenAsleep&) = delete;

 private:
  static void* run(void* argument) {
    auto* self = static_cast<WhenAsleep*>(argument);
    await_asleep(self->sleeper_);
    self->act_();
    return nullptr;
  }

  F act_;
  pid_t sleeper_;
  pthread_t thread_;
};

// ---- signals ----------------------------------------------------------------------------------------------------------

inline volatile sig_atomic_t g_signals = 0;

inline void count_signal(int) { g_signals = g_signals + 1; }

// From now on `signal_number` is counted in g_signals.
inline void count_signals(int signal_number, int flags = 0) {
  struct sigaction action = {};
  action.sa_handler = count_signal;
  action.sa_flags = flags;
  CHECK_EQ(sigaction(signal_number, &action, nullptr), 0);
  g_signals = 0;
}

// Blocks or unblocks one signal in this thread.
inline void mask_signal(int how, int signal_number) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal_number);
  CHECK_EQ(pthread_sigmask(how, &set, nullptr), 0);
}

inline bool signal_pending(int signal_number) {
  sigset_t pending;
  CHECK_EQ(sigpending(&pending), 0);
  return sigismember(&pending, signal_number) == 1;
}

}  // namespace testlib
