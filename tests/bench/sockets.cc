// SPDX-License-Identifier: MIT
#include "sockets.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>

#include "failure.h"

namespace bench {
namespace {

/// The kernel's form of an address, of either family.
struct KernelAddress {
  union {
    sockaddr any;
    sockaddr_in tcp;
    sockaddr_un local;
  };
  socklen_t size;
};

KernelAddress kernel_address(const Address& address) {
  KernelAddress k;
  if (address.is_unix()) {
    k.local = {};
    k.local.sun_family = AF_UNIX;
    memcpy(k.local.sun_path, address.path.c_str(), address.path.size() + 1);  // parse_address has looked at its length
    k.size = sizeof k.local;
  } else {
    k.tcp = {};
    k.tcp.sin_family = AF_INET;
    k.tcp.sin_port = htons(address.port);
    k.tcp.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    k.size = sizeof k.tcp;
  }
  return k;
}

std::string name(const Address& address) { return address.is_unix() ? "unix:" + address.path : fmt::format("tcp:{}", address.port); }

Fd new_socket(const Address& address) {
  Fd fd(socket(address.is_unix() ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (fd.get() < 0) fail_errno("socket");
  return fd;
}

void set_no_delay(int fd) {
  const int on = 1;
  if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0) fail_errno("setsockopt(TCP_NODELAY)");
}

// `address` gets the port.
void bind_to(int fd, Address* address) {
  KernelAddress k = kernel_address(*address);
  if (bind(fd, &k.any, k.size) != 0) fail("cannot bind {}: {}", name(*address), strerrordesc_np(errno));
  if (address->is_unix()) return;
  if (getsockname(fd, &k.any, &k.size) != 0) fail_errno("getsockname");
  address->port = ntohs(k.tcp.sin_port);
}

bool must_wait() { return errno == EAGAIN || errno == EINTR; }

// EINTR is not the end of a blocking call either: a tracer can cause it.
std::size_t moved(ssize_t n, const char* what) {
  if (n < 0 && must_wait()) return 0;
  if (n < 0) fail_errno(what);
  return static_cast<std::size_t>(n);
}

}  // namespace

Fd::~Fd() {
  if (fd_ >= 0) close(fd_);
}

std::string parse_address(const std::string& text, Address* address) {
  *address = {};
  if (text == "tcp") return {};
  if (text.rfind("unix:", 0) == 0) {
    address->path = text.substr(5);
    if (address->path.empty()) return "unix: needs a path";
    return address->path.size() < sizeof(sockaddr_un::sun_path) ? "" : "the path of a Unix socket has at most 107 bytes";
  }
  const char* first = text.data() + 4;
  const char* last = text.data() + text.size();
  if (text.rfind("tcp:", 0) == 0) {
    const auto [end, error] = std::from_chars(first, last, address->port);
    if (error == std::errc() && end == last) return {};
  }
  return fmt::format("expected tcp:PORT or unix:PATH, not '{}'", text);
}

Fd listen_on(Address* address) {
  Fd fd = new_socket(*address);
  bind_to(fd.get(), address);
  if (listen(fd.get(), SOMAXCONN) != 0) fail_errno("listen");
  return fd;
}

Fd reserve_port(Address* address) {
  Fd fd = new_socket(*address);
  const int on = 1;
  if (setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) != 0) fail_errno("setsockopt(SO_REUSEPORT)");
  bind_to(fd.get(), address);
  return fd;
}

Fd listen_beside_others(Address* address) {
  Fd fd = reserve_port(address);
  if (listen(fd.get(), SOMAXCONN) != 0) fail_errno("listen");
  return fd;
}

Fd accept_from(int listener, const Address& address, int flags) {
  Fd fd(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | flags));
  if (fd.get() < 0 && !must_wait() && errno != ECONNABORTED) fail_errno("accept");
  if (fd.get() >= 0 && !address.is_unix()) set_no_delay(fd.get());
  return fd;
}

Fd connect_to(const Address& address) {
  Fd fd = new_socket(address);
  if (!address.is_unix()) set_no_delay(fd.get());
  const KernelAddress k = kernel_address(address);
  if (connect(fd.get(), &k.any, k.size) != 0) fail("cannot connect to {}: {}", name(address), strerrordesc_np(errno));
  return fd;
}

void set_nonblocking(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) fail_errno("fcntl(O_NONBLOCK)");
}

std::size_t send_some(int fd, const unsigned char* data, std::size_t size) { return moved(send(fd, data, size, 0), "send"); }

std::size_t receive_some(int fd, unsigned char* to, std::size_t size) {
  const ssize_t n = recv(fd, to, size, 0);
  if (n == 0) fail("the peer has closed the connection in the middle of an operation");
  return moved(n, "receive");
}

void send_all(int fd, const unsigned char* data, std::size_t size) {
  for (std::size_t done = 0; done < size;) done += send_some(fd, data + done, size - done);
}

void receive_all(int fd, unsigned char* to, std::size_t size) {
  for (std::size_t done = 0; done < size;) done += receive_some(fd, to + done, size - done);
}

}  // namespace bench
