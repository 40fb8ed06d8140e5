// SPDX-License-Identifier: MIT
// Which TCP sockets there are in a network namespace, and which processes have them open.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tools/status_page.h"

namespace mpklink {

bool is_loopback(const Endpoint& endpoint);
bool is_wildcard(const Endpoint& endpoint);

struct TcpSocket {
  Endpoint local, peer;
  bool listening = false;
  uid_t uid = 0;
  std::uint64_t inode = 0;
};

/// Those of the network namespace of `pid`; empty when /proc/PID/net is closed to us.
std::vector<TcpSocket> sockets_of(pid_t pid);

/// inode → the processes that have the socket open, as far as we may look into them.
std::map<std::uint64_t, std::vector<pid_t>> socket_owners();

}  // namespace mpklink
