// SPDX-License-Identifier: MIT
// Who is at the other end of a TCP connection, as the kernel tells it (sock_diag(7), works unprivileged).
#pragma once
#include <sys/socket.h>

#include <cstdint>

namespace mpklink {

struct TcpEnd {
  std::uint32_t uid;
  bool orphan;  // no process has it open any more
  bool shut;    // both ways
};

// Whether two sockets belong to one network namespace, which a thread may have left since it made one of them (setns(2)): the same
// addresses name another connection there. Where the kernel does not say (before Linux 5.14): no.
bool same_network(int a, int b);

// The other end of `fd`: the socket whose local address is `peer` and whose peer is `local`. 1: found; 0: there is no such socket;
// -1: the kernel does not answer (no sock_diag, or this thread is in another network namespace).
int query_peer(int fd, const sockaddr_storage& local, const sockaddr_storage& peer, TcpEnd* out);

// Whether `uid` names one user here. The overflow uid stands for every user that our user namespace does not map; only where
// all are mapped (the initial namespace) is it the user nobody (user_namespaces(7)).
bool uid_is_somebody(std::uint32_t uid);

// The peer socket of the connected TCP socket `fd`. Means nothing once this end has shut down sending too: the kernel then forgets
// sockets that are still open.
enum class PeerSocket {
  kUnknown,  // the kernel does not answer (no sock_diag)
  kOpen,
  kShut,    // both ways: by shutdown(2), or it is being closed: the kernel sends a close's FIN before it takes the socket from its process
            // (net/ipv4/tcp.c, __tcp_close: tcp_send_fin, then sock_orphan)
  kOrphan,  // gone, or open in no process
};
PeerSocket peer_socket(int fd);

}  // namespace mpklink
