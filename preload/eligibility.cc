// SPDX-License-Identifier: MIT
#include "preload/eligibility.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <string.h>

#include "preload/log.h"

namespace mpklink {
namespace {

// IPv4 or IPv6 address with v4-mapped ones as IPv4, so that the two ends of one connection spell it alike.
struct Endpoint {
  int family;
  unsigned char bytes[16];
  std::uint16_t port;
};

bool endpoint_of(const sockaddr_storage& a, Endpoint* out) {
  *out = {};
  if (a.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(a);
    out->family = AF_INET;
    memcpy(out->bytes, &in.sin_addr, 4);
    out->port = ntohs(in.sin_port);
    return true;
  }
  if (a.ss_family != AF_INET6) return false;
  const auto& in6 = reinterpret_cast<const sockaddr_in6&>(a);
  const bool v4 = IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr);
  out->family = v4 ? AF_INET : AF_INET6;
  memcpy(out->bytes, in6.sin6_addr.s6_addr + (v4 ? 12 : 0), v4 ? 4 : 16);
  out->port = ntohs(in6.sin6_port);
  return true;
}

bool is_loopback(const Endpoint& e) {
  if (e.family == AF_INET) return e.bytes[0] == 127;
  return memcmp(e.bytes, &in6addr_loopback, 16) == 0;
}

bool same_address(const Endpoint& a, const Endpoint& b) {
  return a.family == b.family && memcmp(a.bytes, b.bytes, sizeof a.bytes) == 0;
}

int option(int fd, int level, int name) {
  int value = 0;
  socklen_t size = sizeof value;
  return real().getsockopt(fd, level, name, &value, &size) == 0 ? value : 0;
}

}  // namespace

bool options_allow(int fd, Reason* reason) {
  if (option(fd, SOL_SOCKET, SO_TIMESTAMP) != 0 || option(fd, SOL_SOCKET, SO_TIMESTAMPNS) != 0 ||
      option(fd, SOL_SOCKET, SO_TIMESTAMPING) != 0) {
    return *reason = Reason::kControl, false;
  }
  const int flags = real().fcntl(fd, F_GETFL);
  if (flags >= 0 && (flags & O_ASYNC)) return *reason = Reason::kAsync, false;
  return true;
}

namespace {

struct Text {
  char* at;
  std::size_t left;
};

void append(Text* text, const Endpoint& e) {
  char address[INET6_ADDRSTRLEN] = "";
  ::inet_ntop(e.family, e.bytes, address, sizeof address);
  const auto end = fmt::format_to_n(text->at, text->left, FMT_COMPILE("{}:{}"), static_cast<const char*>(address), e.port);
  const std::size_t used = end.size < text->left ? end.size : text->left;
  text->at += used;
  text->left -= used;
}

// TCP_INFO and the unread bytes of one moment: asked until no bytes came between two looks at the latter.
bool consistent_info(int fd, tcp_info* info, int* unread) {
  constexpr int kTries = 16;
  if (real().ioctl(fd, FIONREAD, unread) != 0) return false;
  for (int i = 0; i < kTries; ++i) {
    socklen_t size = sizeof *info;
    int after = 0;
    if (real().getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &size) != 0) return false;
    if (size < offsetof(tcp_info, tcpi_bytes_retrans) + sizeof info->tcpi_bytes_retrans) return false;
    if (real().ioctl(fd, FIONREAD, &after) != 0) return false;
    if (after == *unread) return true;
    *unread = after;
  }
  return false;
}

}  // namespace

bool addresses_of(int fd, Addresses* addresses) {
  *addresses = {};
  socklen_t local_size = sizeof addresses->local, peer_size = sizeof addresses->peer;
  return ::getsockname(fd, reinterpret_cast<sockaddr*>(&addresses->local), &local_size) == 0 &&
         ::getpeername(fd, reinterpret_cast<sockaddr*>(&addresses->peer), &peer_size) == 0;
}

bool may_be_loopback(const sockaddr_storage& address) {
  Endpoint e;
  static constexpr unsigned char kAny[16] = {};
  return endpoint_of(address, &e) && (is_loopback(e) || memcmp(e.bytes, kAny, sizeof kAny) == 0);
}

std::uint16_t server_port(const Stream* s, const Addresses& addresses) {
  Endpoint server;
  return endpoint_of(s->connector ? addresses.peer : addresses.local, &server) ? server.port : 0;
}

bool eligible(const Stream* s, const Addresses& addresses, Reason* reason) {
  *reason = Reason::kNotLocal;
  Endpoint local, peer;
  if (!endpoint_of(addresses.local, &local) || !endpoint_of(addresses.peer, &peer)) return false;
  if (!same_address(local, peer) && !(is_loopback(local) && is_loopback(peer))) return false;
  *reason = Reason::kPorts;
  return process().settings.port_allowed(s->connector ? peer.port : local.port);
}

// TCP_INFO's counters are exact to the byte on Linux 4.19 and later.
bool kernel_bytes(int fd, KernelBytes* bytes) {
  tcp_info info = {};
  int unread = 0;
  if (!consistent_info(fd, &info, &unread)) return false;
  constexpr unsigned kBeforeFin = 1u << 1 | 1u << 4 | 1u << 5;  // TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2
  bytes->sent = info.tcpi_bytes_sent - info.tcpi_bytes_retrans + info.tcpi_notsent_bytes;
  bytes->received = info.tcpi_bytes_received - static_cast<std::uint64_t>(unread);
  bytes->fin = (kBeforeFin >> info.tcpi_state & 1) == 0;
  return true;
}

bool counters_agree(int fd, const Stream* s, Reason* reason) {
  KernelBytes kernel = {};
  *reason = Reason::kUncounted;
  if (!kernel_bytes(fd, &kernel)) return false;
  const std::uint64_t our_sent = s->tcp_sent.load_acquire();
  const std::uint64_t our_received = s->tcp_received.load_acquire();
  const bool agree = kernel.sent == our_sent && (kernel.received == our_received || kernel.received == our_received + 1);
  if (!agree) {
    log(LogLevel::kInfo, FMT_COMPILE("fd {}: the kernel counts {} sent, {} received; we {} and {}"), fd, kernel.sent, kernel.received,
        our_sent, our_received);
  }
  return agree;
}

socklen_t rendezvous_name(const Addresses& addresses, bool we_connected, sockaddr_un* name) {
  Endpoint local, peer;
  endpoint_of(addresses.local, &local);
  endpoint_of(addresses.peer, &peer);
  *name = {};
  name->sun_family = AF_UNIX;
  // The leading zero byte makes it an abstract name: its scope is the network namespace, as loopback's.
  Text text = {name->sun_path + 1, sizeof name->sun_path - 1};
  // The same in all versions for ever: two that do not understand each other meet, and say so.
  const auto head = fmt::format_to_n(text.at, text.left, FMT_COMPILE("mpklink/"));
  text.at += head.size;
  text.left -= head.size;
  append(&text, we_connected ? local : peer);
  if (text.left > 0) {
    *text.at++ = '-';
    --text.left;
  }
  append(&text, we_connected ? peer : local);
  return static_cast<socklen_t>(text.at - reinterpret_cast<char*>(name));
}

}  // namespace mpklink
