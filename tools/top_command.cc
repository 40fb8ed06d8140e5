// SPDX-License-Identifier: MIT
// `mpklink top`: streams and processes by what they do per second; on a terminal as a screen, otherwise one table after the other.
#include <CLI/CLI.hpp>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tools/command_support.h"
#include "tools/commands.h"
#include "tools/screen.h"
#include "tools/stop_signals.h"
#include "tools/stream_options.h"
#include "tools/top_view.h"

namespace mpklink {
namespace {

using Clock = std::chrono::steady_clock;

struct TopRequest {
  std::vector<int> pids;
  StreamFilter filter;
  double delay_s = 2;
  std::uint64_t iterations = 0;  // 0: without end
  bool batch = false, json = false;
};

std::string time_of_day() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  return fmt::format("{:%H:%M:%S}", local);
}

double time_s() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

class Top {
 public:
  explicit Top(const TopRequest& request)
      : request_(request), signals_({SIGWINCH, SIGTSTP, SIGCONT}), delay_(std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(request.delay_s))) {}

  void run() {
    take_look();
    if (!request_.batch && !request_.json && stdout_is_terminal()) {
      Screen screen;
      on_screen(&screen);
    } else {
      one_after_the_other();
    }
  }

 private:
  void take_look() {
    before_ = std::move(now_);
    now_ = {Clock::now(), reader_.read(request_.pids)};
  }

  /// A rate needs two looks: the first table comes after the first interval.
  void one_after_the_other() {
    for (std::uint64_t i = 0; request_.iterations == 0 || i < request_.iterations; ++i) {
      if (!wait_until(now_.time + delay_, false)) return;
      take_look();
      const Rates rates = rates_between(before_, now_, request_.filter);
      emit(request_.json ? top_json(rates, time_s()) : top_text(rates, time_of_day(), 0, terminal_width()) + "\n");
    }
  }

  void on_screen(Screen* screen) {
    draw(screen);
    for (std::uint64_t i = 1; request_.iterations == 0 || i < request_.iterations; ++i) {
      while (Clock::now() < now_.time + delay_) {
        if (!wait_until(now_.time + delay_, true)) return;
        const int signal = StopSignals::take_other();
        if (signal == SIGTSTP) screen->stop();
        if (signal != 0) draw(screen);
      }
      take_look();
      draw(screen);
    }
  }

  void draw(Screen* screen) {
    const Rates rates = rates_between(before_, now_, request_.filter);
    screen->show(top_text(rates, time_of_day() + "  q quits", screen->rows(), terminal_width()));
  }

  /// False: the end is wanted. With keys it may return early.
  bool wait_until(Clock::time_point time, bool keys) {
    while (!StopSignals::wanted() && Clock::now() < time) {
      std::vector<pollfd> fds = {{keys && !keys_ended_ ? STDIN_FILENO : -1, POLLIN, 0}};
      signals_.wait(&fds, std::max<Clock::duration>(time - Clock::now(), Clock::duration::zero()));
      if (fds[0].revents != 0 && key_is_quit()) return false;
      if (keys) break;
      if (StopSignals::take_other() == SIGTSTP) raise(SIGSTOP);  // on a screen: on_screen()
    }
    return !StopSignals::wanted();
  }

  bool key_is_quit() {
    char keys[64];
    const ssize_t length = read(STDIN_FILENO, keys, sizeof keys);
    if (length <= 0) keys_ended_ = true;
    for (ssize_t i = 0; i < length; ++i) {
      if (keys[i] == 'q' || keys[i] == 'Q') return true;
    }
    return false;
  }

  const TopRequest& request_;
  StopSignals signals_;
  Clock::duration delay_;
  StatusReader reader_;
  Look before_, now_;
  bool keys_ended_ = false;
};

}  // namespace

void add_top(CLI::App* app) {
  auto request = std::make_shared<TopRequest>();
  CLI::App* command = app->add_subcommand("top", "streams and processes by what they do per second");
  add_stream_filter(command, &request->pids, &request->filter);
  command->add_option("-d,--delay", request->delay_s, "seconds between two looks (2)")->check(CLI::Range(0.05, 86400.0))->type_name("SECONDS");
  command->add_option("-n,--iterations", request->iterations, "end after so many")->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 62))->type_name("N");
  command->add_flag("-b,--batch", request->batch, "one table after the other, also on a terminal");
  add_json_flag(command, &request->json);
  add_examples(command,
               {{"mpklink top", "q quits"},
                {"mpklink top -d 1 --port 6379", "one service, every second"},
                {"mpklink top -b -n 1", "once, over two seconds, for a script"},
                {"mpklink top --json | jq -c '.streams[0]'", "a line of JSON for each look"}},
               "The busiest come first. Bells are wake-ups of the other end, a system call each; sleeps are waits in the kernel, spin hits waits that "
               "were over before one was needed. Without a terminal it prints tables.");
  command->callback([request] { Top(*request).run(); });
}

}  // namespace mpklink
