// SPDX-License-Identifier: MIT
// Which connections may be upgraded, and what they are called.
#pragma once
#include <sys/socket.h>
#include <sys/un.h>

#include "preload/stream.h"

namespace mpklink {

struct Addresses {
  sockaddr_storage local, peer;
};

// False: it is not connected any more.
bool addresses_of(int fd, Addresses* addresses);

// What an address alone says, also one that connect() takes for loopback (0.0.0.0 and ::).
bool may_be_loopback(const sockaddr_storage& address);

// The server's of the two ports.
std::uint16_t server_port(const Stream* s, const Addresses& addresses);

// Whether the stream's two ends are on this machine and its port is wanted.
bool eligible(const Stream* s, const Addresses& addresses, Reason* reason);
// Whether nothing that was set on the socket before we knew it needs the kernel. What is set later, hooks see.
bool options_allow(int fd, Reason* reason);

// What the kernel has counted: bytes it took to send, and bytes that were received from it, where a FIN that came counts as one.
struct KernelBytes {
  std::uint64_t sent, received;
  bool fin;  // it came
};
// False: the kernel does not say.
bool kernel_bytes(int fd, KernelBytes* bytes);
// Whether the kernel's byte counters of both directions equal ours: nobody used the socket behind our back. Claimed stream.
bool counters_agree(int fd, const Stream* s, Reason* reason);

// `\0mpklink/<connector>-<acceptor>`, addresses as "ip:port" with v4-mapped ones as IPv4. Returns the length to
// give to bind and connect.
socklen_t rendezvous_name(const Addresses& addresses, bool we_connected, sockaddr_un* name);

}  // namespace mpklink
