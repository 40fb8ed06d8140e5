// SPDX-License-Identifier: MIT
// The ends of doctor's own connections: plain programs that know nothing of the library.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "tools/doctor_checks.h"

namespace mpklink {
namespace {

constexpr std::size_t kMost = 4096;  // bytes of a message: below the smallest ring that anybody sets
constexpr int kVerified = 200;       // messages of all sizes
constexpr int kMeasured = 1000;      // round trips of 64 bytes
constexpr std::size_t kMeasuredBytes = 64;

int fail(const char* what) {
  perror(what);
  return 1;
}

bool write_all(int fd, const char* bytes, std::size_t length) {
  while (length > 0) {
    const ssize_t n = send(fd, bytes, length, MSG_NOSIGNAL);
    if (n <= 0) return false;
    bytes += n;
    length -= static_cast<std::size_t>(n);
  }
  return true;
}

bool read_all(int fd, char* bytes, std::size_t length) {
  while (length > 0) {
    const ssize_t n = recv(fd, bytes, length, 0);
    if (n <= 0) return false;
    bytes += n;
    length -= static_cast<std::size_t>(n);
  }
  return true;
}

void set_no_delay(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/// Sends back whatever comes.
int serve() {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0 || bind(listener, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(listener, 1) != 0)
    return fail("listen");
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
  printf("%u\n", ntohs(address.sin_port));
  fflush(stdout);
  const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  if (fd < 0) return fail("accept");
  set_no_delay(fd);
  char buffer[kMost];
  for (ssize_t n = 0; (n = recv(fd, buffer, sizeof buffer, 0)) != 0;) {
    if (n < 0 || !write_all(fd, buffer, static_cast<std::size_t>(n))) return fail("echo");
  }
  return 0;
}

/// One message there and back. False: it did not come back, or not as it was.
bool round_trip(int fd, std::size_t length, unsigned seed) {
  char sent[kMost], received[kMost];
  for (std::size_t i = 0; i < length; ++i) sent[i] = static_cast<char>(seed * 131 + i * 7 + (i >> 8));
  return write_all(fd, sent, length) && read_all(fd, received, length) && memcmp(sent, received, length) == 0;
}

int ask(const char* port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<std::uint16_t>(atoi(port)));
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return fail("connect");
  set_no_delay(fd);
  for (unsigned i = 0; i < kVerified; ++i) {
    if (!round_trip(fd, 1 + i * 997 % kMost, i)) return fail("what was sent did not come back");
  }
  std::vector<std::int64_t> times;
  for (unsigned i = 0; i < kMeasured; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    if (!round_trip(fd, kMeasuredBytes, i)) return fail("what was sent did not come back");
    times.push_back(std::chrono::nanoseconds(std::chrono::steady_clock::now() - begin).count());
  }
  std::nth_element(times.begin(), times.begin() + kMeasured / 2, times.end());
  printf("%lld\n", static_cast<long long>(times[kMeasured / 2]));
  return 0;
}

/// Connects, looks whether there is something to read (which takes nothing away), waits, and goes. Sends nothing.
int visit(const std::string& where) {
  const std::size_t colon = where.rfind(':');
  addrinfo hints{}, *found = nullptr;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  if (getaddrinfo(where.substr(0, colon).c_str(), where.substr(colon + 1).c_str(), &hints, &found) != 0) return 2;
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen) != 0) return fail("connect");
  sockaddr_storage local{};
  socklen_t size = sizeof local;
  char byte = 0;
  for (int i = 0; i < 8; ++i) {
    (void)!recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    usleep(20000);
  }
  getsockname(fd, reinterpret_cast<sockaddr*>(&local), &size);
  // The port is at the same place for both families.
  printf("%u\n", ntohs(reinterpret_cast<const sockaddr_in&>(local).sin_port));
  fflush(stdout);
  while (read(STDIN_FILENO, &byte, 1) > 0) {
  }
  // A close with unread bytes would be a reset, which services log.
  shutdown(fd, SHUT_WR);
  char rest[kMost];
  while (recv(fd, rest, sizeof rest, MSG_DONTWAIT) > 0) {
  }
  return 0;
}

}  // namespace

int run_end(const std::string& role) {
  if (role == "server") return serve();
  if (role.rfind("client:", 0) == 0) return ask(role.c_str() + strlen("client:"));
  if (role.rfind("visitor:", 0) == 0) return visit(role.substr(strlen("visitor:")));
  return 2;
}

}  // namespace mpklink
