// SPDX-License-Identifier: MIT
// SIGINT, SIGTERM and SIGHUP as a wish to end: they are let in only where a command waits, so that no wish comes between a look and a wait.
// SIGPIPE is ignored; a write says EPIPE.
#pragma once

#include <poll.h>

#include <chrono>
#include <csignal>
#include <initializer_list>
#include <vector>

namespace mpklink {

class StopSignals {
 public:
  /// `others` interrupt a wait, and nothing more.
  explicit StopSignals(std::initializer_list<int> others = {}) {
    sigset_t set;
    sigemptyset(&set);
    for (int number : {SIGINT, SIGTERM, SIGHUP}) add(&set, number, [](int n) { wanted_ = n; });
    for (int number : others) add(&set, number, [](int n) { other_ = n; });
    sigprocmask(SIG_BLOCK, &set, &open_);
    signal(SIGPIPE, SIG_IGN);
  }
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  static bool wanted() { return wanted_ != 0; }
  /// The last of the other signals, once.
  static int take_other() {
    const int number = other_;
    other_ = 0;
    return number;
  }

  /// ppoll with the signals let in: what it returns, -1 when one came. A negative time is without end.
  int wait(std::vector<pollfd>* fds, std::chrono::nanoseconds time) const {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(time);
    const timespec limit{static_cast<time_t>(seconds.count()), static_cast<long>((time - seconds).count())};
    return ppoll(fds->data(), fds->size(), time.count() < 0 ? nullptr : &limit, &open_);
  }

 private:
  void add(sigset_t* set, int number, void (*handler)(int)) {
    struct sigaction action {};
    action.sa_handler = handler;
    sigaction(number, &action, nullptr);
    sigaddset(set, number);
  }

  static inline volatile std::sig_atomic_t wanted_ = 0, other_ = 0;
  sigset_t open_{};
};

}  // namespace mpklink
