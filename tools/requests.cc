// SPDX-License-Identifier: MIT
#include "tools/requests.h"

#include <fmt/format.h>
#include <sys/file.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "tools/command_support.h"

namespace mpklink {
namespace {

constexpr int kLockTries = 100, kLockPause_us = 10000;
constexpr char kTapPrefix[] = "mpklink-tap/";

class Turn {
 public:
  explicit Turn(const OpenPage& page) : fd_(page.fd) {
    for (int i = 0; i < kLockTries; ++i) {
      if (flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
      usleep(kLockPause_us);
    }
    throw Refusal(kExitUnavailable, fmt::format("another command keeps {} busy; try again when it has ended", process_text(page.process)));
  }
  ~Turn() { flock(fd_, LOCK_UN); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  int fd_;
};

// ---- ports ----

void set_port(Requests* requests, int port, bool off) {
  Atomic<std::uint64_t>& word = requests->off_ports[port / 64];
  const std::uint64_t bit = std::uint64_t{1} << (port % 64);
  if (off) {
    word.fetch_or(bit);
  } else {
    word.fetch_and(~bit);
  }
}

bool any_port(const Requests& requests) {
  // relaxed: only tools write it, and they take turns
  return std::any_of(std::begin(requests.off_ports), std::end(requests.off_ports), [](const auto& word) { return word.load_relaxed() != 0; });
}

void clear_ports(Requests* requests) {
  for (auto& word : requests->off_ports) word.store_relaxed(0);  // relaxed: `wanted` is changed behind it by a locked instruction
}

// ---- taps ----

std::string tap_name(const Requests& requests) {
  // relaxed: only tools write it, and they take turns
  char bytes[sizeof requests.tap_name];
  for (std::size_t i = 0; i < std::size(requests.tap_name); ++i) {
    const std::uint64_t word = requests.tap_name[i].load_relaxed();
    memcpy(bytes + 8 * i, &word, 8);
  }
  return {bytes, std::min<std::size_t>(requests.tap_length.load_relaxed(), sizeof bytes)};
}

void set_tap_name(Requests* requests, const std::string& name) {
  // relaxed: kRequestTap is set behind it by a locked instruction
  for (std::size_t i = 0; i < std::size(requests->tap_name); ++i) {
    std::uint64_t word = 0;
    if (name.size() > 8 * i) memcpy(&word, name.data() + 8 * i, std::min<std::size_t>(8, name.size() - 8 * i));
    requests->tap_name[i].store_relaxed(word);
  }
  requests->tap_length.store_relaxed(static_cast<std::uint32_t>(name.size()));
}

/// Of a dump that was killed the name stands there still, but no socket has it.
bool socket_exists(const std::string& name) {
  std::ifstream sockets("/proc/net/unix");
  const std::string end = " @" + name;
  for (std::string line; std::getline(sockets, line);) {
    if (line.size() >= end.size() && line.compare(line.size() - end.size(), end.size(), end) == 0) return true;
  }
  return false;
}

pid_t owner_of(const std::string& name) {
  return name.rfind(kTapPrefix, 0) == 0 ? atoi(name.c_str() + strlen(kTapPrefix)) : -1;
}

}  // namespace

void ask_off(OpenPage* page, const std::vector<int>& ports) {
  const Turn turn(*page);
  Requests& requests = page->page->requests();
  const std::uint32_t wanted = requests.wanted.load_relaxed();  // relaxed: only tools write it, and they take turns
  if (ports.empty()) {
    requests.wanted.fetch_or(kRequestOff);
    requests.wanted.fetch_and(~std::uint32_t{kRequestOffPorts});
    clear_ports(&requests);
    return;
  }
  if ((wanted & kRequestOff) != 0 && (wanted & kRequestOffPorts) == 0) return;  // all are off, these among them
  for (int port : ports) set_port(&requests, port, true);
  requests.wanted.fetch_or(kRequestOff | kRequestOffPorts);
}

void ask_on(OpenPage* page, const std::vector<int>& ports) {
  const Turn turn(*page);
  Requests& requests = page->page->requests();
  const std::uint32_t wanted = requests.wanted.load_relaxed();  // relaxed: only tools write it, and they take turns
  if (!ports.empty() && (wanted & kRequestOff) != 0 && (wanted & kRequestOffPorts) == 0) {
    const std::string pid = fmt::format("{}", page->process.pid);
    throw Refusal(kExitUnavailable, fmt::format("all streams of {} are off, not only some ports; say mpklink on --pid {}, then mpklink off --pid {} --port N "
                                                "for the ports that are to stay off", process_text(page->process), pid, pid));
  }
  for (int port : ports) set_port(&requests, port, false);
  if (ports.empty()) clear_ports(&requests);
  if (!any_port(requests)) requests.wanted.fetch_and(~std::uint32_t{kRequestOff | kRequestOffPorts});
}

std::string new_tap_name() {
  std::uint64_t random[2] = {};
  if (getrandom(random, sizeof random, 0) != sizeof random) throw Refusal(kExitUnavailable, "the kernel gives no random numbers; try again");
  return fmt::format("{}{}/{:016x}{:016x}", kTapPrefix, getpid(), random[0], random[1]);
}

pid_t ask_tap(OpenPage* page, const std::string& name, int port) {
  const Turn turn(*page);
  Requests& requests = page->page->requests();
  const bool asked = (requests.wanted.load_relaxed() & kRequestTap) != 0;  // relaxed: see above
  const std::string before = tap_name(requests);
  if (asked && before == name) return 0;
  if (asked && socket_exists(before)) return owner_of(before);
  requests.wanted.fetch_and(~std::uint32_t{kRequestTap});
  set_tap_name(&requests, name);
  requests.tap_port.store_relaxed(static_cast<std::uint64_t>(port));  // relaxed: kRequestTap is set behind it by a locked instruction
  requests.wanted.fetch_or(kRequestTap);
  return 0;
}

void withdraw_tap(OpenPage* page, const std::string& name) {
  const Turn turn(*page);
  Requests& requests = page->page->requests();
  if (tap_name(requests) == name) requests.wanted.fetch_and(~std::uint32_t{kRequestTap});
}

}  // namespace mpklink
