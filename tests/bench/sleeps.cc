// SPDX-License-Identifier: MIT
// What it costs to sleep until another process has news, and to be woken: round trips of two processes that wait in one of four ways, each
// pinned to a CPU, with or without a third that only computes on the first. Why the library sleeps and spins as it does (preload/spin.h).
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>

#include "failure.h"
#include "program.h"

namespace bench {
namespace {

using Clock = std::chrono::steady_clock;

enum class Way { kBell, kFutex, kYield, kSpin };
constexpr const char* kWays[] = {"eventfd and ppoll", "futex", "sched_yield", "spin"};

struct alignas(64) Word {
  std::atomic<std::uint32_t> news;
};

struct Options {
  int cpus[2] = {0, 1};
  bool competitor = false;
  double seconds = 0.5;
};

/// One end: what it waits for, and how it wakes the other.
class End {
 public:
  End(Way way, Word* words, const int* bells, int socket, int side) : way_(way), words_(words), bells_(bells), socket_(socket), side_(side) {}

  void wake_other() const {
    Word& word = words_[1 - side_];
    word.news.fetch_add(1);
    if (way_ == Way::kFutex) syscall(SYS_futex, &word.news, FUTEX_WAKE, 1, nullptr, nullptr, 0);
    const std::uint64_t one = 1;
    if (way_ == Way::kBell && write(bells_[1 - side_], &one, sizeof one) != sizeof one) fail_errno("write");
  }

  void wait() {
    while (words_[side_].news.load() == seen_) sleep();
    ++seen_;
  }

 private:
  void sleep() const {
    switch (way_) {
      case Way::kBell: return sleep_on_bell();
      case Way::kFutex: syscall(SYS_futex, &words_[side_].news, FUTEX_WAIT, seen_, nullptr, nullptr, 0); return;
      case Way::kYield: sched_yield(); return;
      case Way::kSpin: return;
    }
  }
  /// As preload/wait.cc: the socket tells of the peer's end.
  void sleep_on_bell() const {
    pollfd set[2] = {{socket_, POLLIN | POLLRDHUP, 0}, {bells_[side_], POLLIN, 0}};
    ppoll(set, 2, nullptr, nullptr);
    std::uint64_t count = 0;
    const iovec part = {&count, sizeof count};
    if (preadv2(bells_[side_], &part, 1, -1, RWF_NOWAIT) < 0 && errno != EAGAIN) fail_errno("preadv2");
  }

  Way way_;
  Word* words_;
  const int* bells_;
  int socket_;
  int side_;
  std::uint32_t seen_ = 0;
};

/// A child that ends with us.
template <class Run>
pid_t start(int cpu, Run run) {
  const pid_t child = fork();
  if (child < 0) fail_errno("fork");
  if (child != 0) return child;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  pin_to(cpu);
  for (;;) run();
}

void end(pid_t child) {
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

double round_trip_us(Way way, const Options& options) {
  void* memory = mmap(nullptr, 2 * sizeof(Word), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail_errno("mmap");
  auto* words = static_cast<Word*>(memory);
  const Fd bells[2] = {Fd(eventfd(0, EFD_CLOEXEC)), Fd(eventfd(0, EFD_CLOEXEC))};
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0) fail_errno("socketpair");
  const Fd ours(sockets[0]), theirs(sockets[1]);
  const int numbers[2] = {bells[0].get(), bells[1].get()};
  End peer(way, words, numbers, theirs.get(), 1);
  const pid_t child = start(options.cpus[1], [&] {
    peer.wait();
    peer.wake_other();
  });
  End self(way, words, numbers, ours.get(), 0);
  std::uint64_t trips = 0;
  const Clock::time_point begin = Clock::now();
  const auto until = begin + std::chrono::duration<double>(options.seconds);
  Clock::time_point now = begin;
  for (; now < until; now = Clock::now()) {
    self.wake_other();
    self.wait();
    ++trips;
  }
  end(child);
  munmap(memory, 2 * sizeof(Word));
  return std::chrono::duration<double, std::micro>(now - begin).count() / static_cast<double>(trips);
}

int measure(const Options& options) {
  pin_to(options.cpus[0]);
  pid_t competitor = -1;
  if (options.competitor) competitor = start(options.cpus[0], [] {});
  const bool one_cpu = options.cpus[0] == options.cpus[1];
  for (const Way way : {Way::kBell, Way::kFutex, Way::kYield, Way::kSpin}) {
    if (way == Way::kSpin && one_cpu) continue;  // whole slices of the scheduler's
    fmt::print("{:<18} {:9.2f} us a round trip\n", kWays[static_cast<int>(way)], round_trip_us(way, options));
    fflush(stdout);
  }
  if (competitor >= 0) end(competitor);
  return 0;
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  using namespace bench;
  CLI::App app("What it costs to sleep until another process has news.");
  Options options;
  CLI::App* run = app.add_subcommand("run", "measure");
  run->add_option("--cpu", options.cpus[0], "of the one end")->check(number_between(0, CPU_SETSIZE - 1));
  run->add_option("--other-cpu", options.cpus[1], "of the other end")->check(number_between(0, CPU_SETSIZE - 1));
  run->add_flag("--competitor", options.competitor, "a process that computes on the first CPU");
  run->add_option("--seconds", options.seconds, "for each way")->check(number_between(0.01, 60));
  return run_program(&app, argc, argv, [&](const CLI::App&) { return measure(options); });
}
