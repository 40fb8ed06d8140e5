// SPDX-License-Identifier: MIT
// A small HTTP/1.1 server of one page, in one thread. Who connects is a stranger: requests, their number and their time are bounded.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "tools/stop_signals.h"

namespace mpklink {

/// "ADDR:PORT", "[::1]:PORT" or "PORT", which is on 127.0.0.1; throws a UsageError.
struct ListenAddress {
  std::string host;
  int port = 0;
};
ListenAddress parse_listen_address(const std::string& text);

class MetricsServer {
 public:
  /// Listens, or throws a Refusal. `page` makes the body of /metrics.
  MetricsServer(const ListenAddress& address, std::function<std::string()> page);
  ~MetricsServer();
  MetricsServer(const MetricsServer&) = delete;
  MetricsServer& operator=(const MetricsServer&) = delete;

  /// "127.0.0.1:9465": with the port that was given for port 0.
  std::string address() const;
  /// Until a signal asks for its end.
  void serve(const StopSignals& signals);

 private:
  using Clock = std::chrono::steady_clock;
  struct Connection {
    int fd;
    Clock::time_point deadline;
    std::string request, response;
    bool answered = false;  // what stands in `response` is to be written, and no more is read
  };

  void accept_all();
  /// Goes on with a connection; false: it is done.
  bool advance(Connection* connection, short events);
  bool read_request(Connection* connection);
  bool write_response(Connection* connection);
  std::string respond(const std::string& request) const;

  std::function<std::string()> page_;
  int listener_ = -1;
  std::vector<Connection> connections_;
};

}  // namespace mpklink
