// SPDX-License-Identifier: MIT
#include "serve.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "connection.h"
#include "failure.h"
#include "program.h"

namespace bench {
namespace {

constexpr int kMaxEvents = 256;
static_assert(POLLIN == EPOLLIN && POLLOUT == EPOLLOUT);

class Server {
 public:
  explicit Server(const ServeOptions& options) : options_(options), end_(end_of_service(options.seconds)) {
    listener_ = options.processes > 1 ? listen_beside_others(&options_.address) : listen_on(&options_.address);
    if (options_.mode != Mode::kBlocking) set_nonblocking(listener_.get());
  }
  ~Server() {
    if (options_.address.is_unix()) unlink(options_.address.path.c_str());
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  const Address& address() const { return options_.address; }

  void run() {
    switch (options_.mode) {
      case Mode::kBlocking:
        return run_blocking();
      case Mode::kPoll:
        return run_poll();
      case Mode::kEpoll:
        return run_epoll();
    }
  }

 private:
  void run_blocking();
  void run_poll();
  void run_epoll();

  void add_epoll(int fd, std::uint32_t events);
  void accept_epoll();
  void advance_epoll(int fd);
  /// Nothing when the client is gone already.
  std::unique_ptr<Connection> accept_connection(int flags);

  ServeOptions options_;
  Fd end_, listener_, epoll_;
  std::vector<std::unique_ptr<Connection>> by_fd_;  // run_epoll
};

std::unique_ptr<Connection> Server::accept_connection(int flags) {
  Fd fd = accept_from(listener_.get(), options_.address, flags);
  if (fd.get() < 0) return nullptr;
  return std::make_unique<Connection>(std::move(fd), options_);
}

// The threads are left to exit(): they may be asleep in a connection.
void Server::run_blocking() {
  std::array<pollfd, 2> set = {{{end_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}}};
  for (;;) {
    if (poll(set.data(), set.size(), -1) < 0 && errno != EINTR) fail_errno("poll");
    if (set[0].revents != 0) return;
    std::unique_ptr<Connection> connection = accept_connection(0);
    if (connection == nullptr) continue;
    std::thread([c = std::move(connection)] {
      while (c->advance()) {
      }
    }).detach();
  }
}

void Server::run_poll() {
  constexpr std::size_t kFirst = 2;
  std::vector<pollfd> set = {{end_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
  std::vector<std::unique_ptr<Connection>> connections;
  for (;;) {
    if (poll(set.data(), set.size(), -1) < 0 && errno != EINTR) fail_errno("poll");
    if (set[0].revents != 0) return;
    for (std::size_t i = 0; i < connections.size();) {
      pollfd& p = set[kFirst + i];
      if (p.revents != 0 && !connections[i]->advance()) {
        std::swap(connections[i], connections.back());
        connections.pop_back();
        p = set.back();
        set.pop_back();
        continue;
      }
      p.events = connections[i++]->wanted();
    }
    if (set[1].revents == 0) continue;
    if (std::unique_ptr<Connection> c = accept_connection(SOCK_NONBLOCK)) {
      set.push_back({c->fd(), c->wanted(), 0});
      connections.push_back(std::move(c));
    }
  }
}

void Server::add_epoll(int fd, std::uint32_t events) {
  epoll_event event = {};
  event.events = events;
  event.data.fd = fd;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) fail_errno("epoll_ctl");
}

void Server::accept_epoll() {
  std::unique_ptr<Connection> connection = accept_connection(SOCK_NONBLOCK);
  if (connection == nullptr) return;
  const int fd = connection->fd();
  add_epoll(fd, static_cast<std::uint32_t>(connection->wanted()));
  if (by_fd_.size() <= static_cast<std::size_t>(fd)) by_fd_.resize(static_cast<std::size_t>(fd) + 1);
  by_fd_[static_cast<std::size_t>(fd)] = std::move(connection);
}

void Server::advance_epoll(int fd) {
  std::unique_ptr<Connection>& connection = by_fd_[static_cast<std::size_t>(fd)];
  const short before = connection->wanted();
  if (!connection->advance()) {
    connection.reset();  // close takes it out of the set
    return;
  }
  if (connection->wanted() == before) return;
  epoll_event event = {};
  event.events = static_cast<std::uint32_t>(connection->wanted());
  event.data.fd = fd;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) != 0) fail_errno("epoll_ctl");
}

void Server::run_epoll() {
  epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  if (epoll_.get() < 0) fail_errno("epoll_create1");
  add_epoll(end_.get(), EPOLLIN);
  add_epoll(listener_.get(), EPOLLIN);
  std::array<epoll_event, kMaxEvents> events;
  for (;;) {
    const int n = epoll_wait(epoll_.get(), events.data(), kMaxEvents, -1);
    if (n < 0 && errno != EINTR) fail_errno("epoll_wait");
    for (int i = 0; i < n; ++i) {
      const int fd = events[static_cast<std::size_t>(i)].data.fd;
      if (fd == end_.get()) return;
      if (fd == listener_.get()) {
        accept_epoll();
      } else {
        advance_epoll(fd);
      }
    }
  }
}

// One of several. `ready` is closed once it can be called.
[[noreturn]] void serve_beside_others(const ServeOptions& options, pid_t parent, Fd ready) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) exit(1);
  Server server(options);
  ready = Fd();
  server.run();
  exit(0);
}

class Processes {
 public:
  Processes() = default;
  ~Processes() {
    for (const pid_t pid : pids_) kill(pid, SIGTERM);
    for (const pid_t pid : pids_) waitpid(pid, nullptr, 0);
  }
  Processes(const Processes&) = delete;
  Processes& operator=(const Processes&) = delete;

  /// Returns when all of them can be called.
  void start(const ServeOptions& options) {
    std::array<int, 2> ends = {};
    if (pipe2(ends.data(), O_CLOEXEC) != 0) fail_errno("pipe2");
    const Fd all_ready(ends[0]);
    Fd ready(ends[1]);
    const pid_t self = getpid();
    for (unsigned i = 0; i < options.processes; ++i) {
      const pid_t pid = fork();
      if (pid < 0) fail_errno("fork");
      if (pid == 0) serve_beside_others(options, self, std::move(ready));
      pids_.push_back(pid);
    }
    ready = Fd();
    char byte = 0;
    while (read(all_ready.get(), &byte, 1) < 0 && errno == EINTR) {
    }
  }

 private:
  std::vector<pid_t> pids_;
};

void serve_by_processes(ServeOptions options) {
  const Fd end = end_of_service(options.seconds);
  const Fd reserved = reserve_port(&options.address);
  Processes processes;
  processes.start(options);
  announce(options.address);
  pollfd p = {end.get(), POLLIN, 0};
  while (poll(&p, 1, -1) < 0 && errno == EINTR) {
  }
}

}  // namespace

void serve(const ServeOptions& options) {
  if (options.processes > 1) return serve_by_processes(options);
  Server server(options);
  announce(server.address());
  server.run();
}

}  // namespace bench
