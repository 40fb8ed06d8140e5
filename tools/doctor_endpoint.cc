// SPDX-License-Identifier: MIT
// `mpklink doctor HOST:PORT`: who listens there, and how a wrapped client's connection to it fares. Nothing is ever
// sent to a service.
#include <fmt/format.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "preload/reasons.h"
#include "tools/doctor_checks.h"
#include "tools/doctor_child.h"
#include "tools/doctor_process.h"
#include "tools/doctor_sockets.h"
#include "tools/doctor_streams.h"
#include "tools/preload_env.h"
#include "tools/refusal.h"
#include "tools/text.h"

namespace mpklink {
namespace {

constexpr int kTimeoutMs = 8000;
constexpr std::size_t kMostListeners = 8;  // workers of one service that are told of one by one

bool endpoint_of(const sockaddr* address, std::uint16_t port, Endpoint* out) {
  if (address == nullptr) return false;
  *out = {};
  out->port = port;
  if (address->sa_family == AF_INET) {
    out->address[10] = out->address[11] = 0xff;
    memcpy(out->address.data() + 12, &reinterpret_cast<const sockaddr_in*>(address)->sin_addr, 4);
    return true;
  }
  if (address->sa_family != AF_INET6) return false;
  memcpy(out->address.data(), &reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr, 16);
  return true;
}

std::vector<Endpoint> resolve(const std::string& host, const std::string& port) {
  addrinfo hints{}, *list = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  const int error = getaddrinfo(host.c_str(), port.c_str(), &hints, &list);
  if (error != 0) {
    throw Refusal(kExitUnavailable,
                  fmt::format("{} cannot be resolved: {}; check the name, or give an address: 127.0.0.1:{}",
                              printable(host), gai_strerror(error), port));
  }
  std::vector<Endpoint> endpoints;
  for (const addrinfo* a = list; a != nullptr; a = a->ai_next) {
    Endpoint e;
    if (endpoint_of(a->ai_addr, static_cast<std::uint16_t>(atoi(port.c_str())), &e)) endpoints.push_back(e);
  }
  freeaddrinfo(list);
  if (endpoints.empty())
    throw Refusal(kExitUnavailable, fmt::format("{} has no IP address; give one: 127.0.0.1:{}", printable(host), port));
  return endpoints;
}

bool is_own(const Endpoint& endpoint) {
  if (is_loopback(endpoint) || is_wildcard(endpoint)) return true;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return false;
  bool own = false;
  for (const ifaddrs* i = list; i != nullptr; i = i->ifa_next) {
    Endpoint e;
    own = own || (endpoint_of(i->ifa_addr, endpoint.port, &e) && e == endpoint);
  }
  freeifaddrs(list);
  return own;
}

/// Who would get a connection to `endpoint`: an exact listener, or one on the wildcard (:: takes IPv4, too).
std::vector<TcpSocket> listeners_of(const Endpoint& endpoint) {
  std::vector<TcpSocket> exact, wild;
  for (const TcpSocket& s : sockets_of(getpid())) {
    if (!s.listening || s.local.port != endpoint.port) continue;
    if (s.local == endpoint) exact.push_back(s);
    if (is_wildcard(s.local)) wild.push_back(s);
  }
  return exact.empty() ? wild : exact;
}

Finding not_local(const std::string& host, const Endpoint& endpoint) {
  return {"listener",
          "address",
          Level::kFail,
          fmt::format("{} ({}) is not on this machine (or not in this network namespace): only connections whose both "
                      "ends are here share memory (not-local).",
                      printable(host), endpoint_text(endpoint)),
          "On the machine where the service runs: mpklink doctor localhost:" + std::to_string(endpoint.port),
          {{"address", endpoint_text(endpoint)}, {"local", false}}};
}

Findings check_listeners(const std::vector<TcpSocket>& listeners, const Endpoint& endpoint) {
  Findings findings;
  const auto owners = socket_owners();
  std::vector<pid_t> pids;
  for (const TcpSocket& s : listeners) {
    const auto found = owners.find(s.inode);
    if (found != owners.end()) pids.insert(pids.end(), found->second.begin(), found->second.end());
  }
  std::sort(pids.begin(), pids.end());
  pids.erase(std::unique(pids.begin(), pids.end()), pids.end());
  if (pids.empty()) {
    const std::string who =
        listeners.empty() ? "" : fmt::format(" It belongs to {}.", user_name(listeners.front().uid));
    findings.push_back(
        {"listener",
         "owner",
         Level::kNote,
         fmt::format("This user cannot see which process listens on {}.{}", endpoint_text(endpoint), who),
         fmt::format("sudo mpklink doctor {}", endpoint_text(endpoint)),
         {{"processes", std::int64_t{0}}}});
    return findings;
  }
  for (std::size_t i = 0; i < std::min(pids.size(), kMostListeners); ++i) {
    const ProcessFacts p = look_at(pids[i]);
    if (p.kind != ProcessFacts::Kind::kOpen) continue;
    findings.push_back(check_loaded(p, "listener"));
    if (p.library.path.empty()) continue;
    for (Finding& f : check_settings(p.environment, "listener")) {
      if (f.level != Level::kOk) findings.push_back(std::move(f));
    }
  }
  if (pids.size() > kMostListeners) {
    findings.push_back({"listener",
                        "more",
                        Level::kNote,
                        fmt::format("{} more processes listen there.", pids.size() - kMostListeners),
                        "",
                        {{"count", static_cast<std::int64_t>(pids.size() - kMostListeners)}}});
  }
  return findings;
}

/// Numeric, as the visitor takes it.
std::string visitor_role(const Endpoint& endpoint) {
  const std::string text = endpoint_text(endpoint);
  const std::size_t colon = text.rfind(':');
  const std::string host = text[0] == '[' ? text.substr(1, colon - 2) : text.substr(0, colon);
  return fmt::format("visitor:{}:{}", host, endpoint.port);
}

std::string library_or_refuse() {
  try {
    return find_library();
  } catch (const Refusal& refusal) {
    throw Refusal(kExitUnavailable, refusal.what());  // `run` has other exit codes than doctor
  }
}

Findings visit(const Endpoint& endpoint) {
  Child visitor(visitor_role(endpoint), with_library(library_or_refuse()));
  const std::string port = visitor.line(kTimeoutMs);
  if (port.empty()) {
    const std::string why = visitor.errors();
    throw Refusal(kExitUnavailable,
                  fmt::format("no connection to {} could be made{}{}; is the service up? To see who listens: ss -ltnp",
                              endpoint_text(endpoint), why.empty() ? "" : ": ", printable(why)));
  }
  Findings findings = check_visit(visitor.pid(), static_cast<std::uint16_t>(atoi(port.c_str())), endpoint);
  visitor.finish(kTimeoutMs);
  return findings;
}

}  // namespace

Findings check_endpoint(const std::string& host, const std::string& port) {
  const std::vector<Endpoint> endpoints = resolve(host, port);
  const auto own = std::find_if(endpoints.begin(), endpoints.end(), is_own);
  if (own == endpoints.end()) return {not_local(host, endpoints.front())};
  // localhost is ::1 and 127.0.0.1: that at which somebody listens.
  Endpoint chosen = *own;
  for (const Endpoint& e : endpoints) {
    if (is_own(e) && !listeners_of(e).empty()) {
      chosen = e;
      break;
    }
  }
  Findings findings = check_listeners(listeners_of(chosen), chosen);
  for (Finding& f : visit(chosen)) findings.push_back(std::move(f));
  return findings;
}

}  // namespace mpklink
