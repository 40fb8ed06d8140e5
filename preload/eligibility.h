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

// Whether the stream's two ends are in this network namespace and nothing set on it needs the kernel. Fills *addresses.
bool eligible(int fd, const Stream* s, Addresses* addresses, Reason* reason);

// Whether the kernel's byte counters of both directions equal ours: nobody used the socket behind our back. Claimed stream.
bool counters_agree(int fd, const Stream* s, Reason* reason);

// `\0mpklink/<version>/<connector>-<acceptor>`, addresses as "ip:port" with v4-mapped ones as IPv4. Returns the length to
// give to bind and connect.
socklen_t rendezvous_name(const Addresses& addresses, bool we_connected, sockaddr_un* name);

}  // namespace mpklink
