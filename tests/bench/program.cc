// SPDX-License-Identifier: MIT
#include "program.h"

#include <sched.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>

#include "failure.h"

namespace bench {
namespace {

// What connecting, warming up and the last operation may take above the seconds asked for.
constexpr unsigned kPatienceSeconds = 30;

void complain(const char* sentence) { fputs(fmt::format("{}: {}\n", program_invocation_short_name, sentence).c_str(), stderr); }

void on_alarm(int) {
  constexpr char kSentence[] = "no end in the time allowed: the server does not answer\n";
  if (write(STDERR_FILENO, kSentence, sizeof kSentence - 1) < 0) _exit(1);
  _exit(1);
}

CLI::Validator address_check(bool needs_port) {
  const auto check = [needs_port](std::string& text) -> std::string {
    Address address;
    std::string problem = parse_address(text, &address);
    if (!problem.empty() || !needs_port || address.is_unix() || address.port != 0) return problem;
    return fmt::format("'{}' has no port", text);
  };
  return {check, ""};
}

}  // namespace

CLI::Validator address_of_server() { return address_check(false); }
CLI::Validator address_to_call() { return address_check(true); }

// CLI::Range takes what is not a number for one in between.
CLI::Validator number_between(double low, double high) {
  const auto check = [low, high](std::string& text) -> std::string {
    double value = 0;
    const bool good = CLI::detail::lexical_cast(text, value) && value >= low && value <= high;
    return good ? std::string() : fmt::format("expected a number from {} to {}, not '{}'", low, high, text);
  };
  return {check, ""};
}

void add_cpu(CLI::App* command, int* cpu) {
  command->add_option("--cpu", *cpu, "run on this CPU only")->check(CLI::Range(0, CPU_SETSIZE - 1));
}

void pin_to(int cpu) {
  if (cpu < 0) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<std::size_t>(cpu), &set);
  if (sched_setaffinity(0, sizeof set, &set) != 0) fail("cannot run on CPU {}: {}", cpu, strerrordesc_np(errno));
}

void limit_time(double seconds) {
  signal(SIGALRM, on_alarm);
  alarm(static_cast<unsigned>(std::ceil(seconds)) + kPatienceSeconds);
}

Fd end_of_service(unsigned seconds) {
  sigset_t signals;
  sigemptyset(&signals);
  for (int number : {SIGTERM, SIGINT, SIGALRM}) sigaddset(&signals, number);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  Fd fd(signalfd(-1, &signals, SFD_CLOEXEC));
  if (fd.get() < 0) fail_errno("signalfd");
  alarm(seconds);
  return fd;
}

void announce(const Address& address) {
  if (address.is_unix()) {
    fmt::print("PATH {}\n", address.path);
  } else {
    fmt::print("PORT {}\n", address.port);
  }
  fflush(stdout);
}

int run_measurement(Measurement* measurement, const std::function<void(Measurement*)>& measure) {
  int code = 0;
  try {
    measure(measurement);
  } catch (const Failure& failure) {
    complain(failure.what());
    code = 1;
    measurement->add_error();
    measurement->stop();
  }
  if (measurement->started()) fmt::print("{}\n", measurement->json());
  return code;
}

int run_program(CLI::App* app, int argc, char** argv, const std::function<int(const CLI::App&)>& run) {
  app->require_subcommand(1);
  try {
    app->parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app->exit(e) == 0 ? 0 : 2;
  }
  try {
    return run(*app->get_subcommands().front());
  } catch (const Failure& failure) {
    complain(failure.what());
    return 1;
  }
}

}  // namespace bench
