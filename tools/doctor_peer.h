// SPDX-License-Identifier: MIT
// Who is at the other end of a connection on this machine.
#pragma once
#include <map>
#include <optional>
#include <vector>

#include "tools/doctor_process.h"
#include "tools/doctor_sockets.h"
#include "tools/status_reader.h"

namespace mpklink {

constexpr uid_t kNobodys = static_cast<uid_t>(-1);

struct Peer {
  bool known = false;  // we know which process it is, and may look into it
  pid_t pid = 0;       // 0: we do not know
  std::string program;
  uid_t uid = kNobodys;  // of its socket; kNobodys: there is none (it has ended, or is elsewhere)
  bool has_library = false;
  LibraryVersion version;
  std::string other_namespaces;   // those that it does not share with this end
  std::optional<StreamInfo> row;  // how that end sees the connection
  std::string title() const;
};

/// The processes around, looked at once. Who has a socket is the kernel's word; what a process says of it on its status
/// page comes second.
class Neighbourhood {
 public:
  Neighbourhood();
  Neighbourhood(const Neighbourhood&) = delete;
  Neighbourhood& operator=(const Neighbourhood&) = delete;

  const ProcessStatus* status_of(pid_t pid) const;
  /// The other end of a stream of `pid`.
  Peer peer_of(pid_t pid, const StreamInfo& stream) const;

 private:
  using Ends = std::pair<Endpoint, Endpoint>;  // local, peer
  /// The processes that have the other end's socket, and its owner.
  std::vector<pid_t> owners_of(pid_t pid, const Ends& ends, uid_t* uid) const;

  Peer look_at_peer(pid_t pid, pid_t peer) const;

  std::vector<ProcessStatus> processes_;
  std::map<std::pair<pid_t, Ends>, const StreamInfo*> rows_;
  // What costs a walk through all of /proc is asked when somebody needs it first.
  mutable std::optional<std::map<std::uint64_t, std::vector<pid_t>>> owners_;
  mutable std::map<pid_t, std::map<Ends, TcpSocket>> sockets_;
  mutable std::map<std::pair<pid_t, pid_t>, Peer> peers_;  // of thousands of connections there are few
};

/// What there is to say of the other end of a connection that `process` has, and what to do where it keeps connections
/// on TCP.
Explanation explain_peer(const Peer& peer, const ProcessFacts& process);

/// Do the settings of one of the ends exclude the port? What there is to say then.
Explanation explain_port(const StreamInfo& stream, const Peer& peer, const ProcessFacts& process);

}  // namespace mpklink
