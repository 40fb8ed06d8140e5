// SPDX-License-Identifier: MIT
#include "tools/doctor_peer.h"

#include <fmt/format.h>

#include <algorithm>

#include "tools/text.h"

namespace mpklink {

std::string Peer::title() const {
  return fmt::format("{} (pid {})", program.empty() ? "?" : printable(program), pid);
}

Neighbourhood::Neighbourhood() : processes_(StatusReader().read()) {
  for (const ProcessStatus& p : processes_) {
    if (!p.content) continue;
    for (const StreamInfo& row : p.content->streams) rows_[{p.process.pid, {row.local, row.peer}}] = &row;
  }
}

const ProcessStatus* Neighbourhood::status_of(pid_t pid) const {
  const auto found = std::find_if(processes_.begin(), processes_.end(),
                                  [pid](const ProcessStatus& p) { return p.process.pid == pid; });
  return found == processes_.end() ? nullptr : &*found;
}

std::vector<pid_t> Neighbourhood::owners_of(pid_t pid, const Ends& ends, uid_t* uid) const {
  if (sockets_.count(pid) == 0) {
    for (const TcpSocket& s : sockets_of(pid)) sockets_[pid].emplace(Ends{s.local, s.peer}, s);
  }
  const auto socket = sockets_[pid].find(ends);
  if (socket == sockets_[pid].end()) return {};
  *uid = socket->second.uid;
  if (!owners_) owners_ = socket_owners();
  const auto owners = owners_->find(socket->second.inode);
  return socket->second.inode == 0 || owners == owners_->end() ? std::vector<pid_t>() : owners->second;
}

/// What is the same for all connections of two processes.
Peer Neighbourhood::look_at_peer(pid_t pid, pid_t peer_pid) const {
  const auto seen = peers_.find({pid, peer_pid});
  if (seen != peers_.end()) return seen->second;
  const ProcessFacts process = look_at(peer_pid);
  Peer peer;
  peer.pid = peer_pid;
  peer.program = process.name;
  peer.known = process.kind == ProcessFacts::Kind::kOpen;
  peer.has_library = !process.library.path.empty();
  peer.version = process.version;
  peer.other_namespaces = different_namespaces(pid, peer_pid);
  if (const ProcessStatus* status = status_of(peer_pid); status != nullptr && status->content) {
    peer.version = {status->content->library_version, status->content->layout_version};
  }
  return peers_[{pid, peer_pid}] = peer;
}

Peer Neighbourhood::peer_of(pid_t pid, const StreamInfo& stream) const {
  const Ends ends = {stream.peer, stream.local};
  uid_t uid = kNobodys;
  const std::vector<pid_t> owners = owners_of(pid, ends, &uid);
  // Of several that have it since a fork, one that uses it.
  const auto user = std::find_if(owners.begin(), owners.end(), [&](pid_t p) { return rows_.count({p, ends}) != 0; });
  Peer peer;
  if (!owners.empty()) peer = look_at_peer(pid, user != owners.end() ? *user : owners.front());
  if (user != owners.end()) peer.row = *rows_.at({*user, ends});
  peer.uid = uid;
  return peer;
}

Explanation explain_peer(const Peer& peer, const ProcessFacts& process) {
  if (peer.pid == 0 && peer.uid == kNobodys) return {"The other end is gone, or not in this network namespace.", ""};
  if (peer.pid == 0) {
    return {fmt::format("The other end belongs to {}; this user cannot see which process it is.", user_name(peer.uid)),
            fmt::format("sudo mpklink doctor {}", process.pid)};
  }
  const ProcessFacts other = look_at(peer.pid);
  if (!peer.has_library) {
    const Explanation why = explain_not_loaded(other);
    return {fmt::format("The other end is {}. {}", peer.title(), why.sentence), why.remedy, "peer-absent"};
  }
  std::string about = fmt::format("The other end is {}, which has the library", peer.title());
  if (settings_of(other.environment).disabled) {
    return {about + ", switched off by MPKLINK_DISABLE.",
            "Take MPKLINK_DISABLE from its environment. " + restart_advice(other), "peer-absent"};
  }
  const bool versions_known = peer.version.layout != 0 && process.version.layout != 0;
  if (versions_known && peer.version.layout != process.version.layout) {
    const bool other_is_older = peer.version.layout < process.version.layout;
    const ProcessFacts& older = other_is_older ? other : process;
    return {fmt::format("{}, in version {} (memory layout {}); this end has version {} (memory layout {}).", about,
                        peer.version.text, peer.version.layout, process.version.text, process.version.layout),
            restart_advice(older), "peer-version"};
  }
  about += ".";
  if (other.uid != process.uid)
    about += fmt::format(" It runs as {}, this end as {}.", user_name(other.uid), user_name(process.uid));
  return {about, ""};
}

Explanation explain_port(const StreamInfo& stream, const Peer& peer, const ProcessFacts& process) {
  const std::uint16_t port = stream.connector ? stream.peer.port : stream.local.port;
  const auto explain = [port](const ProcessFacts& end) {
    return Explanation{fmt::format("MPKLINK_PORTS={} of {} does not allow port {}.",
                                   printable(end.variable("MPKLINK_PORTS")), end.title(), port),
                       "Change MPKLINK_PORTS there. " + restart_advice(end), "ports"};
  };
  if (!settings_of(process.environment).port_allowed(port)) return explain(process);
  if (!peer.known || !peer.has_library) return {};
  const ProcessFacts other = look_at(peer.pid);
  return settings_of(other.environment).port_allowed(port) ? Explanation() : explain(other);
}

}  // namespace mpklink
