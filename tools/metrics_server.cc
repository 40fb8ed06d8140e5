// SPDX-License-Identifier: MIT
#include "tools/metrics_server.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <utility>

#include "tools/command_support.h"

namespace mpklink {
namespace {

constexpr std::size_t kMostConnections = 32, kLongestRequest = 8192;
constexpr std::chrono::seconds kPatience{5};  // with one connection, altogether
constexpr std::chrono::hours kNoLimit{1};

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

SocketAddress socket_address(const ListenAddress& address) {
  SocketAddress result;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&result.storage);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&result.storage);
  const auto port = htons(static_cast<std::uint16_t>(address.port));
  if (inet_pton(AF_INET, address.host.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = port;
    result.length = sizeof *v4;
  } else if (inet_pton(AF_INET6, address.host.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = port;
    result.length = sizeof *v6;
  }
  return result;
}

std::string shown(const ListenAddress& address) {
  return fmt::format(fmt::runtime(address.host.find(':') == std::string::npos ? "{}:{}" : "[{}]:{}"), address.host, address.port);
}

[[noreturn]] void refuse(const ListenAddress& address, int error) {
  const char* next = error == EADDRINUSE  ? "another program has it; choose another port"
                     : error == EACCES    ? "choose a port from 1024 on"
                     : error == EADDRNOTAVAIL ? "it is no address of this machine; choose 127.0.0.1 or ::1"
                                              : "choose another address";
  throw Refusal(kExitUnavailable, fmt::format("cannot listen on {}: {}; {}", shown(address), strerror(error), next));
}

std::string response(const char* status, const char* type, const std::string& body, bool with_body) {
  return fmt::format("HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}", status, type, body.size(),
                     with_body ? body : "");
}

}  // namespace

ListenAddress parse_listen_address(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  ListenAddress address{"127.0.0.1", 0};
  if (colon != std::string::npos) address.host = text.substr(0, colon);
  if (address.host.size() > 2 && address.host.front() == '[' && address.host.back() == ']') address.host = address.host.substr(1, address.host.size() - 2);
  const std::string port = text.substr(colon == std::string::npos ? 0 : colon + 1);
  const bool number = !port.empty() && port.size() <= 5 && port.find_first_not_of("0123456789") == std::string::npos;
  address.port = number ? atoi(port.c_str()) : -1;
  if (address.port < 0 || address.port > 65535 || socket_address(address).length == 0) {
    throw UsageError(fmt::format("'{}' is no address to listen on; write 127.0.0.1:9465, [::1]:9465 or 9465", printable(text)));
  }
  return address;
}

MetricsServer::MetricsServer(const ListenAddress& address, std::function<std::string()> page) : page_(std::move(page)) {
  const SocketAddress at = socket_address(address);
  listener_ = socket(at.get()->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const int on = 1;
  if (listener_ < 0) refuse(address, errno);
  setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener_, at.get(), at.length) == 0 && listen(listener_, SOMAXCONN) == 0) return;
  const int error = errno;
  close(listener_);
  refuse(address, error);
}

MetricsServer::~MetricsServer() {
  for (const Connection& connection : connections_) close(connection.fd);
  close(listener_);
}

std::string MetricsServer::address() const {
  SocketAddress at;
  at.length = sizeof at.storage;
  getsockname(listener_, reinterpret_cast<sockaddr*>(&at.storage), &at.length);
  char text[INET6_ADDRSTRLEN] = "";
  if (at.get()->sa_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(&at.storage);
    return shown({inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text), ntohs(v4->sin_port)});
  }
  const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&at.storage);
  return shown({inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text), ntohs(v6->sin6_port)});
}

void MetricsServer::serve(const StopSignals& signals) {
  while (!StopSignals::wanted()) {
    std::vector<pollfd> fds;
    Clock::time_point until = Clock::now() + kNoLimit;
    for (const Connection& connection : connections_) {
      fds.push_back({connection.fd, static_cast<short>(connection.answered ? POLLOUT : POLLIN), 0});
      until = std::min(until, connection.deadline);
    }
    // Who comes while there are too many waits in the listener's queue.
    fds.push_back({connections_.size() < kMostConnections ? listener_ : -1, POLLIN, 0});
    if (signals.wait(&fds, std::max<Clock::duration>(until - Clock::now(), Clock::duration::zero())) < 0) continue;
    for (std::size_t i = connections_.size(); i-- > 0;) {
      if (advance(&connections_[i], fds[i].revents)) continue;
      close(connections_[i].fd);
      connections_.erase(connections_.begin() + static_cast<std::ptrdiff_t>(i));
    }
    accept_all();
  }
}

void MetricsServer::accept_all() {
  while (connections_.size() < kMostConnections) {
    const int fd = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    connections_.push_back({fd, Clock::now() + kPatience, {}, {}, false});
  }
}

bool MetricsServer::advance(Connection* connection, short events) {
  if (Clock::now() >= connection->deadline) return false;
  if (events == 0) return true;
  if (!connection->answered && !read_request(connection)) return false;
  return !connection->answered || write_response(connection);
}

bool MetricsServer::read_request(Connection* connection) {
  char bytes[2048];
  const ssize_t length = recv(connection->fd, bytes, sizeof bytes, 0);
  if (length < 0) return errno == EAGAIN || errno == EINTR;
  if (length == 0) return false;
  connection->request.append(bytes, static_cast<std::size_t>(length));
  const bool whole = connection->request.find("\r\n\r\n") != std::string::npos;
  const bool too_long = connection->request.size() > kLongestRequest;
  if (!whole && !too_long) return true;
  connection->response = too_long ? response("431 Request Header Fields Too Large", "text/plain", "too long\n", true) : respond(connection->request);
  connection->answered = true;
  return true;
}

bool MetricsServer::write_response(Connection* connection) {
  const ssize_t length = send(connection->fd, connection->response.data(), connection->response.size(), MSG_NOSIGNAL);
  if (length < 0) return errno == EAGAIN || errno == EINTR;
  connection->response.erase(0, static_cast<std::size_t>(length));
  if (!connection->response.empty()) return true;
  shutdown(connection->fd, SHUT_WR);
  return false;
}

std::string MetricsServer::respond(const std::string& request) const {
  std::istringstream line(request.substr(0, request.find("\r\n")));
  std::string method, target, version, more;
  line >> method >> target >> version;
  if (version.rfind("HTTP/1.", 0) != 0 || line >> more) return response("400 Bad Request", "text/plain", "this is no HTTP/1.1\n", true);
  const bool get = method == "GET";
  if (!get && method != "HEAD") return response("405 Method Not Allowed\r\nAllow: GET, HEAD", "text/plain", "GET only\n", true);
  target = target.substr(0, target.find('?'));
  if (target == "/") return response("200 OK", "text/html", "<a href=\"/metrics\">metrics of libmpklink</a>\n", get);
  if (target != "/metrics") return response("404 Not Found", "text/plain", "see /metrics\n", get);
  return response("200 OK", "text/plain; version=0.0.4; charset=utf-8", page_(), get);
}

}  // namespace mpklink
