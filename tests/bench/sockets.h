// SPDX-License-Identifier: MIT
// TCP on 127.0.0.1 or Unix stream sockets, by one kind of address.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace bench {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd();

  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

/// tcp, tcp:PORT or unix:PATH.
struct Address {
  std::string path;  // empty: TCP
  std::uint16_t port = 0;

  bool is_unix() const { return !path.empty(); }
};

/// What is wrong with `text` as an address, empty if nothing is; then `address` holds it. Port 0 is one that the kernel chooses.
std::string parse_address(const std::string& text, Address* address);

/// A listening socket; `address` gets the port. Does not replace a file that is there.
Fd listen_on(Address* address);
/// The same on a port that others listen on, too; the kernel deals connections out among them.
Fd listen_beside_others(Address* address);
/// A port for that, kept as long as the descriptor is open.
Fd reserve_port(Address* address);
/// A connection that waits in line, or nothing when it is gone already. `flags`: SOCK_NONBLOCK or 0.
Fd accept_from(int listener, const Address& address, int flags);
Fd connect_to(const Address& address);
void set_nonblocking(int fd);

// On blocking sockets. A connection that ends before all bytes are moved is a Failure.
void send_all(int fd, const unsigned char* data, std::size_t size);
void receive_all(int fd, unsigned char* to, std::size_t size);

/// What a call on a non-blocking socket moved, 0 if it has to wait. The end of the connection is a Failure.
std::size_t send_some(int fd, const unsigned char* data, std::size_t size);
std::size_t receive_some(int fd, unsigned char* to, std::size_t size);

}  // namespace bench
