// SPDX-License-Identifier: MIT
#include "tools/doctor_sockets.h"

#include <dirent.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstring>
#include <sstream>

#include "tools/doctor_proc.h"

namespace mpklink {
namespace {

constexpr std::uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
constexpr int kListen = 0x0A;  // TCP_LISTEN

/// "0100007F:1F90": words of 32 bits as the machine has them, then the port.
bool parse_endpoint(const std::string& text, Endpoint* out) {
  const std::size_t colon = text.find(':');
  if (colon != 8 && colon != 32) return false;
  *out = {};
  const std::size_t skip = colon == 8 ? 12 : 0;
  if (skip != 0) memcpy(out->address.data(), kMapped, sizeof kMapped);
  for (std::size_t word = 0; word * 8 < colon; ++word) {
    const auto value = static_cast<std::uint32_t>(strtoul(text.substr(word * 8, 8).c_str(), nullptr, 16));
    memcpy(out->address.data() + skip + word * 4, &value, sizeof value);
  }
  out->port = static_cast<std::uint16_t>(strtoul(text.c_str() + colon + 1, nullptr, 16));
  return true;
}

/// A line of /proc/net/tcp (proc(5)): number, local, peer, state, queues, timer, retransmits, uid, timeout, inode.
bool parse_socket(const std::string& line, TcpSocket* out) {
  std::istringstream fields(line);
  std::string number, local, peer, state, queues, timer, retransmits, timeout;
  fields >> number >> local >> peer >> state >> queues >> timer >> retransmits >> out->uid >> timeout >> out->inode;
  out->listening = strtol(state.c_str(), nullptr, 16) == kListen;
  return fields && parse_endpoint(local, &out->local) && parse_endpoint(peer, &out->peer);
}

}  // namespace

bool is_loopback(const Endpoint& endpoint) {
  if (is_ipv4(endpoint.address)) return endpoint.address[12] == 127;
  return memcmp(endpoint.address.data(), &in6addr_loopback, 16) == 0;
}

bool is_wildcard(const Endpoint& endpoint) {
  const std::size_t from = is_ipv4(endpoint.address) ? 12 : 0;
  return std::all_of(endpoint.address.begin() + from, endpoint.address.end(),
                     [](std::uint8_t byte) { return byte == 0; });
}

std::vector<TcpSocket> sockets_of(pid_t pid) {
  std::vector<TcpSocket> sockets;
  for (const char* table : {"net/tcp", "net/tcp6"}) {
    std::istringstream lines(read_whole(proc_path(pid, table)));
    std::string line;
    std::getline(lines, line);  // the titles
    while (std::getline(lines, line)) {
      TcpSocket socket;
      if (parse_socket(line, &socket)) sockets.push_back(socket);
    }
  }
  return sockets;
}

std::map<std::uint64_t, std::vector<pid_t>> socket_owners() {
  std::map<std::uint64_t, std::vector<pid_t>> owners;
  for (const pid_t pid : all_pids()) {
    const std::string path = proc_path(pid, "fd");
    DIR* dir = opendir(path.c_str());
    if (dir == nullptr) continue;
    while (const dirent* entry = readdir(dir)) {
      unsigned long long inode = 0;
      if (sscanf(read_link(path + "/" + entry->d_name).c_str(), "socket:[%llu]", &inode) != 1) continue;
      std::vector<pid_t>& pids = owners[inode];
      if (pids.empty() || pids.back() != pid) pids.push_back(pid);
    }
    closedir(dir);
  }
  return owners;
}

}  // namespace mpklink
