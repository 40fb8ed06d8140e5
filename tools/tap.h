// SPDX-License-Identifier: MIT
// The receiving side of taps: a socket that processes are asked to send their records to, and who of them does.
#pragma once

#include <poll.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "tools/conversation.h"
#include "tools/dump_filter.h"
#include "tools/status_reader.h"

namespace mpklink {

class Tap {
 public:
  /// What comes: from `source`, a number for each process, in its order. After kGone nothing comes from it.
  struct Sink {
    std::function<void(const TapMessage& message, std::uint64_t source, const std::string& process)> message;
    std::function<void(std::uint64_t source)> gone;
  };

  Tap(const DumpFilter& filter, Sink sink);
  /// Takes all requests back.
  ~Tap();
  Tap(const Tap&) = delete;
  Tap& operator=(const Tap&) = delete;

  /// Asks the processes that there are. The first time, what cannot be had is a Refusal; later it is complained of once.
  void ask_processes();
  /// What to wait for, and what to do then. Returns false when there was nothing.
  std::vector<pollfd> poll_set() const;
  bool receive();
  /// No process sends any more from now on; what it has sent may still be received.
  void withdraw();

  bool has_processes() const { return !asked_.empty(); }
  /// The only process that was asked for is no more, and all that it sent has been received.
  bool target_ended() const;
  std::uint64_t records() const { return records_; }
  /// Records that this socket did not take in time, in all processes.
  std::uint64_t dropped() const;

 private:
  struct Asked {
    OpenPage page;
    std::uint64_t dropped_before = 0;
  };
  struct Sender {
    int fd;
    pid_t pid;
    std::uint64_t source;
    std::string process;
  };

  void ask(OpenPage&& page);
  void accept_senders();
  bool is_asked(pid_t pid);
  bool receive_from(const Sender& sender, bool* open);
  void forget(pid_t pid);
  void complain_once(pid_t pid, const std::string& sentence);

  DumpFilter filter_;
  Sink sink_;
  StatusReader reader_;
  std::string name_;
  int listener_ = -1;
  std::uint64_t network_;
  bool started_ = false;
  std::map<pid_t, Asked> asked_;
  std::map<pid_t, std::string> complaints_;
  std::vector<Sender> senders_;
  std::uint64_t sources_ = 0, records_ = 0, dropped_by_gone_ = 0;
  std::string buffer_;
};

}  // namespace mpklink
