// SPDX-License-Identifier: MIT
#include <time.h>

#include <algorithm>
#include <vector>

#include "clients.h"
#include "message.h"
#include "waiter.h"

namespace bench {
namespace {

// A sleep ends some ten microseconds late; the rest of the time until a message is due is spent looking at the clock.
constexpr std::uint64_t kSpinNs = 100'000;

void wait_until(std::uint64_t due_ns) {
  if (due_ns > now_ns() + kSpinNs) {
    const std::uint64_t wake_ns = due_ns - kSpinNs;
    const timespec wake = {static_cast<time_t>(wake_ns / 1'000'000'000), static_cast<long>(wake_ns % 1'000'000'000)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, nullptr);
  }
  while (now_ns() < due_ns) __builtin_ia32_pause();
}

class PingPong {
 public:
  PingPong(const ClientOptions& options)
      : connection_(connect_to(options.address)), waiter_(options.mode, connection_.get()), message_(options.bytes), answer_(options.bytes) {}

  /// Sends the next message at once; when its answer was there.
  std::uint64_t exchange() {
    message_.set_number(++number_);
    waiter_.send(message_.data(), message_.size());
    waiter_.receive(answer_.data(), answer_.size());
    const std::uint64_t end_ns = now_ns();
    message_.check(0, answer_.data(), answer_.size());
    return end_ns;
  }

 private:
  Fd connection_;
  Waiter waiter_;
  Message message_;
  std::vector<unsigned char> answer_;
  std::uint64_t number_ = 0;
};

void warm_up(const ClientOptions& options, PingPong* pingpong) {
  const std::uint64_t until_ns = now_ns() + options.warmup_ms * std::uint64_t{1'000'000};
  for (std::uint64_t i = 0; i < options.max_operations && now_ns() < until_ns; ++i) pingpong->exchange();
}

void run_closed_loop(const ClientOptions& options, PingPong* pingpong, Measurement* measurement) {
  std::uint64_t start_ns = now_ns();
  const std::uint64_t until_ns = start_ns + to_ns(options.seconds);
  for (std::uint64_t i = 0; i < options.max_operations && start_ns < until_ns; ++i) {
    const std::uint64_t end_ns = pingpong->exchange();
    measurement->add(end_ns - start_ns);
    start_ns = now_ns();  // the look at the answer is not part of the next message's latency
  }
}

// A message that is due before the last one is answered is sent right after that, and has waited since it was due: a stall counts for
// all the messages that fall into it. Those that are still unsent at the end are missing, and seen by operations_per_second.
void run_open_loop(const ClientOptions& options, PingPong* pingpong, Measurement* measurement) {
  const std::uint64_t start_ns = now_ns();
  const std::uint64_t until_ns = start_ns + to_ns(options.seconds);
  for (std::uint64_t i = 0; i < options.max_operations; ++i) {
    const std::uint64_t due_ns = start_ns + to_ns(static_cast<double>(i) / options.rate);
    if (std::max(due_ns, now_ns()) >= until_ns) return;
    wait_until(due_ns);
    measurement->add(pingpong->exchange() - due_ns);
  }
}

}  // namespace

void run_pingpong(const ClientOptions& options, Measurement* measurement) {
  PingPong pingpong(options);
  warm_up(options, &pingpong);
  measurement->start();
  if (options.rate > 0) {
    run_open_loop(options, &pingpong, measurement);
  } else {
    run_closed_loop(options, &pingpong, measurement);
  }
  measurement->stop();
}

}  // namespace bench
