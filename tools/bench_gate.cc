// SPDX-License-Identifier: MIT
// `mpklink-bench gate`: what the guard costs on this machine, in nanoseconds and TSC cycles per operation: medians over rounds, of loops
// around the very functions that the library uses (shm/guard.cc).
#include <fcntl.h>
#include <fmt/format.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "shm/guard.h"
#include "shm/pkey.h"
#include "shm/pkru.h"

namespace {

using namespace mpklink;

constexpr std::size_t kPageBytes = 4096;
constexpr int kLoadBytes = 64;

int no_secret_memory(unsigned) { return -1; }

const SystemCalls kCalls = {
    ::memfd_create, no_secret_memory, ::ftruncate, ::fchmod, ::fstat, ::fstatfs,
    [](int fd, int seals) { return ::fcntl(fd, F_ADD_SEALS, seals); },
    [](int fd) { return ::fcntl(fd, F_GET_SEALS); },
    ::mmap, ::munmap, ::mprotect, ::madvise,
};

Guard g_guard, g_off;  // static: their tables are large
unsigned char* g_memory;

struct Result {
  const char* name;
  const char* what;
  double ns;
  double cycles;
};

struct Settings {
  int rounds = 200;
  int iterations = 10000;
  bool json = false;
};

std::uint64_t now_ns() {
  timespec t = {};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1000000000u + static_cast<std::uint64_t>(t.tv_nsec);
}

double median(std::vector<double>* values) {
  const auto middle = values->begin() + static_cast<std::ptrdiff_t>(values->size() / 2);
  std::nth_element(values->begin(), middle, values->end());
  return *middle;
}

// `operation` inlined into the loop; the loop itself is a cycle or two of each figure.
template <class Operation>
Result measure(const Settings& settings, const char* name, const char* what, Operation operation) {
  std::vector<double> ns, cycles;
  for (int round = 0; round < settings.rounds; ++round) {
    const std::uint64_t start_ns = now_ns();
    const std::uint64_t start = __rdtsc();
    for (int i = 0; i < settings.iterations; ++i) operation();
    const std::uint64_t end = __rdtsc();
    const std::uint64_t end_ns = now_ns();
    ns.push_back(static_cast<double>(end_ns - start_ns) / settings.iterations);
    cycles.push_back(static_cast<double>(end - start) / settings.iterations);
  }
  return {name, what, median(&ns), median(&cycles)};
}

// A message of 64 bytes, so that a compiler does not see that nobody wants it.
void load() {
  unsigned char data[kLoadBytes];
  memcpy(data, g_memory, sizeof data);
  asm volatile("" : : "r"(data) : "memory");
}

std::vector<Result> measure_all(const Settings& s) {
  const std::uint32_t pkru = read_pkru();
  return {
      measure(s, "loop", "nothing", [] { asm volatile(""); }),
      measure(s, "rdpkru", "RDPKRU", [] { asm volatile("" : : "r"(read_pkru())); }),
      measure(s, "wrpkru", "WRPKRU, the value that is there", [pkru] { write_pkru(pkru); }),
      measure(s, "gate_off", "open and close, guard off (its count)", [] { const OpenGate gate(g_off, kCalls); }),
      measure(s, "gate", "open and close", [] { const OpenGate gate(g_guard, kCalls); }),
      measure(s, "gate_load", "open, load 64 bytes, close",
              [] {
                const OpenGate gate(g_guard, kCalls);
                load();
              }),
  };
}

// A page behind the guard. False: no key, or no memory.
bool prepare() {
  const int key = cpu_has_ospke() ? allocate_pkey() : -1;
  if (key < 0) return false;
  g_guard.set_mode(GuardMode::kPkey, key);
  g_off.set_mode(GuardMode::kOff, 0);
  const int fd = ::memfd_create("mpklink-bench", MFD_CLOEXEC);
  if (fd < 0 || ::ftruncate(fd, kPageBytes) != 0 || !g_guard.range().reserve(kCalls, kPageBytes, 16)) return false;
  g_memory = g_guard.map(kCalls, 0, fd, kPageBytes);
  ::close(fd);
  return g_memory != nullptr;
}

int gate(const Settings& settings) {
  if (!prepare()) {
    fmt::print("{}\n", settings.json ? "{\"pku\":false}" : "no protection keys on this machine: there is nothing to measure");
    return 0;
  }
  const std::vector<Result> results = measure_all(settings);
  if (!settings.json) {
    fmt::print("{:>9} {:>9}   median of {} rounds of {}\n", "ns", "cycles", settings.rounds, settings.iterations);
    for (const Result& r : results) fmt::print("{:9.2f} {:9.1f}   {}\n", r.ns, r.cycles, r.what);
    return 0;
  }
  std::string list;
  for (const Result& r : results) {
    list += fmt::format("{}{{\"name\":\"{}\",\"ns\":{:.3f},\"cycles\":{:.2f}}}", list.empty() ? "" : ",", r.name, r.ns, r.cycles);
  }
  fmt::print("{{\"pku\":true,\"rounds\":{},\"iterations\":{},\"results\":[{}]}}\n", settings.rounds, settings.iterations, list);
  return 0;
}

}  // namespace

// NOLINTNEXTLINE(bugprone-exception-escape): what may come, no memory, ends the tool as it should.
int main(int argc, char** argv) {
  Settings settings;
  CLI::App app("Measures pieces of libmpklink on this machine.", "mpklink-bench");
  app.require_subcommand(1);
  CLI::App* command = app.add_subcommand("gate", "what opening and closing guarded memory costs");
  command->add_option("--rounds", settings.rounds, "rounds, whose median counts")->check(CLI::Range(1, 100000));
  command->add_option("--iterations", settings.iterations, "operations a round")->check(CLI::Range(1, 100000000));
  command->add_flag("--json", settings.json, "one line of JSON");
  CLI11_PARSE(app, argc, argv);
  return gate(settings);
}
