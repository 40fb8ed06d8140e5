// SPDX-License-Identifier: MIT
#include "preload/identity.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "preload/process.h"

namespace mpklink {
namespace {

// An IPv4 connection on an IPv6 socket (v4-mapped) is looked up as IPv4.
bool to_v4(const sockaddr_storage& a, std::uint32_t* address, std::uint16_t* port) {
  if (a.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(a);
    *address = in.sin_addr.s_addr;
    *port = in.sin_port;
    return true;
  }
  const auto& in6 = reinterpret_cast<const sockaddr_in6&>(a);
  *port = in6.sin6_port;
  if (!IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr)) return false;
  memcpy(address, in6.sin6_addr.s6_addr + 12, 4);
  return true;
}

struct Query {
  nlmsghdr header;
  inet_diag_req_v2 body;
};

void fill_id(const sockaddr_storage& source, const sockaddr_storage& destination, inet_diag_req_v2* body) {
  std::uint32_t from = 0, to = 0;
  body->id.idiag_cookie[0] = body->id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
  const bool v4 = to_v4(source, &from, &body->id.idiag_sport);
  if (to_v4(destination, &to, &body->id.idiag_dport) && v4) {
    body->sdiag_family = AF_INET;
    body->id.idiag_src[0] = from;
    body->id.idiag_dst[0] = to;
    return;
  }
  body->sdiag_family = AF_INET6;
  memcpy(body->id.idiag_src, &reinterpret_cast<const sockaddr_in6&>(source).sin6_addr, 16);
  memcpy(body->id.idiag_dst, &reinterpret_cast<const sockaddr_in6&>(destination).sin6_addr, 16);
}

// 1 found, 0 none, -1 no answer.
int exchange(int netlink, const Query& request, TcpEnd* out) {
  if (quiet().send(netlink, &request, sizeof request, 0) != sizeof request) return -1;
  alignas(nlmsghdr) char answer[2048];
  const ssize_t n = quiet().recv(netlink, answer, sizeof answer, MSG_DONTWAIT);  // netlink answers within send
  if (n < static_cast<ssize_t>(sizeof(nlmsghdr))) return -1;
  const auto* header = reinterpret_cast<const nlmsghdr*>(answer);
  if (header->nlmsg_type == NLMSG_ERROR) {
    const auto* error = static_cast<const nlmsgerr*>(NLMSG_DATA(header));
    return error->error == -ENOENT ? 0 : -1;
  }
  if (header->nlmsg_type != SOCK_DIAG_BY_FAMILY || header->nlmsg_len < NLMSG_LENGTH(sizeof(inet_diag_msg))) return -1;
  const auto* found = static_cast<const inet_diag_msg*>(NLMSG_DATA(header));
  out->uid = found->idiag_uid;
  out->orphan = found->idiag_inode == 0;
  return 1;
}

constexpr std::uint32_t kOverflowUid = 65534;  // /proc/sys/kernel/overflowuid, which nobody changes
constexpr std::uint32_t kAllUids = 4294967295u;

bool all_uids_mapped() {
  const int fd = quiet().open("/proc/self/uid_map", O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) return false;  // no /proc: in doubt
  char text[128] = "";
  const ssize_t n = quiet().read(fd, text, sizeof text - 1);
  quiet().close(fd);
  unsigned inside = 1, outside = 1, count = 0;
  return n > 0 && sscanf(text, "%u %u %u", &inside, &outside, &count) == 3 && inside == 0 && count == kAllUids;
}

}  // namespace

bool uid_is_somebody(std::uint32_t uid) {
  const ErrnoSaver keep;
  return uid != kOverflowUid || all_uids_mapped();
}

bool same_network(int a, int b) {
  const ErrnoSaver keep;
  std::uint64_t cookies[2] = {};
  const int sockets[2] = {a, b};
  for (int i = 0; i < 2; ++i) {
    socklen_t size = sizeof cookies[i];
    if (real().getsockopt(sockets[i], SOL_SOCKET, SO_NETNS_COOKIE, &cookies[i], &size) != 0) return false;
  }
  return cookies[0] == cookies[1];
}

int query_peer(int fd, const sockaddr_storage& local, const sockaddr_storage& peer, TcpEnd* out) {
  const ErrnoSaver keep;
  const int netlink = real().socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
  if (netlink < 0) return -1;
  if (!same_network(fd, netlink)) {
    quiet().close(netlink);
    return -1;
  }
  Query request = {};
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  request.header.nlmsg_flags = NLM_F_REQUEST;
  request.body.sdiag_protocol = IPPROTO_TCP;
  request.body.idiag_states = ~0u;
  fill_id(peer, local, &request.body);
  const int result = exchange(netlink, request, out);
  quiet().close(netlink);
  return result;
}

int peer_is_orphan(int fd) {
  sockaddr_storage local = {}, peer = {};
  socklen_t local_len = sizeof local, peer_len = sizeof peer;
  const ErrnoSaver keep;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&local), &local_len) != 0) return -1;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &peer_len) != 0) return 1;
  TcpEnd end = {};
  const int found = query_peer(fd, local, peer, &end);
  if (found < 0) return -1;
  return found == 0 || end.orphan ? 1 : 0;
}

}  // namespace mpklink
