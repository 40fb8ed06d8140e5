// SPDX-License-Identifier: MIT
// What the programs have in common: their command lines, their time limits, how they end.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "measurement.h"
#include "sockets.h"

namespace bench {

inline constexpr std::size_t kMaxBytes = std::size_t{64} << 20;
inline constexpr double kMaxSeconds = 3600;
inline constexpr unsigned kMaxServiceSeconds = 86400;

/// Checks for options.
CLI::Validator address_of_server();  // where to listen
CLI::Validator address_to_call();    // where somebody listens
CLI::Validator number_between(double low, double high);
/// --cpu
void add_cpu(CLI::App* command, int* cpu);

/// Below 0: any.
void pin_to(int cpu);
/// Ends the process, with a sentence and code 1, when it is still there long after `seconds`. No call of a client's has a limit of its own:
/// that would change the calls that are measured.
void limit_time(double seconds);
/// Readable when a server is to end, be it by SIGTERM or SIGINT or because its time is over. Blocks these signals, for later threads, too.
Fd end_of_service(unsigned seconds);
/// PORT n or PATH p, on stdout.
void announce(const Address& address);

/// Runs `measure` and prints what came of it, also when it fails in the middle. The process' exit code.
int run_measurement(Measurement* measurement, const std::function<void(Measurement*)>& measure);
/// Parses, and runs `run` with the subcommand that was named. The process' exit code: 2 for a wrong command line, 1 after a Failure.
int run_program(CLI::App* app, int argc, char** argv, const std::function<int(const CLI::App&)>& run);

}  // namespace bench
