// SPDX-License-Identifier: MIT
// Echo with non-blocking sockets and an event loop on either end, one loop over any way of waiting.
//
// --wait=select|pselect|poll|ppoll|epoll|epoll-et|epoll-oneshot --connections=N --bytes=N (per connection and direction) --max-size=N
// `NAME both` runs the loops in two threads, `NAME one-thread` both ends in one loop of one thread.
#include "waiter.h"

using namespace testlib;

namespace {

constexpr size_t kServerBuffer = 32768;

struct Config {
  const char* wait;
  long connections, max_size;
  uint64_t bytes;
  int port, listener;
};

// The echoing end of a connection: a buffer between recv and send.
class EchoEnd {
 public:
  explicit EchoEnd(int fd) : fd_(fd) {}
  int fd() const { return fd_; }
  bool wants_read() const { return !eof_ && used_ < kServerBuffer; }
  bool wants_write() const { return used_ > 0; }

  // Moves what can be moved; with `drain` until the kernel says EAGAIN both ways. False: the connection is finished.
  bool step(bool drain) {
    bool moved;
    do {
      moved = false;
      if (wants_read()) moved |= read_some();
      if (wants_write()) moved |= write_some();
    } while (drain && moved);
    return !(eof_ && used_ == 0);
  }

 private:
  bool read_some() {
    const ssize_t n = recv(fd_, buffer_ + used_, kServerBuffer - used_, 0);
    if (n < 0) {
      CHECK_EQ(errno, EAGAIN);
      return false;
    }
    if (n == 0) eof_ = true;
    used_ += static_cast<size_t>(n);
    return n > 0;
  }

  bool write_some() {
    const ssize_t n = send(fd_, buffer_, used_, MSG_NOSIGNAL);
    if (n < 0) {
      CHECK_EQ(errno, EAGAIN);
      return false;
    }
    CHECK(n > 0);
    used_ -= static_cast<size_t>(n);
    memmove(buffer_, buffer_ + n, used_);
    return true;
  }

  int fd_;
  bool eof_ = false;
  size_t used_ = 0;
  char buffer_[kServerBuffer];
};

// The asking end: sends `bytes` in random pieces as fast as it can, checks what comes back, half-closes, waits for the end.
class AskEnd {
 public:
  AskEnd(int fd, uint64_t seed, const Config& config)
      : fd_(fd), seed_(seed), random_(seed), bytes_(config.bytes), max_size_(static_cast<size_t>(config.max_size)) {}
  int fd() const { return fd_; }
  bool wants_read() const { return true; }
  // The first exchanges are small and one at a time: that is where the upgrade happens.
  bool starting() const { return sent_ < 4000; }
  bool wants_write() const { return sent_ < bytes_ && !(starting() && sent_ != received_); }

  bool step(bool drain) {
    bool moved;
    do {
      moved = false;
      if (wants_write()) moved |= write_some();
      moved |= read_some();
    } while (drain && moved);
    return !done_;
  }

 private:
  bool write_some() {
    char buffer[65536];
    size_t length = random_.size(starting() ? 200 : max_size_);
    if (length > bytes_ - sent_) length = bytes_ - sent_;
    pattern_fill(buffer, length, seed_, sent_);
    const ssize_t n = send(fd_, buffer, length, MSG_NOSIGNAL);
    if (n < 0) {
      CHECK_EQ(errno, EAGAIN);
      return false;
    }
    CHECK(n > 0);
    sent_ += static_cast<size_t>(n);
    if (sent_ == bytes_) CHECK_EQ(shutdown(fd_, SHUT_WR), 0);
    return true;
  }

  bool read_some() {
    char buffer[65536];
    const ssize_t n = recv(fd_, buffer, random_.size(max_size_), 0);
    if (n < 0) {
      CHECK_EQ(errno, EAGAIN);
      return false;
    }
    if (n == 0) {
      CHECK_EQ(received_, bytes_);
      done_ = true;
      return false;
    }
    pattern_check(buffer, static_cast<size_t>(n), seed_, received_);
    received_ += static_cast<size_t>(n);
    CHECK(received_ <= sent_);
    return true;
  }

  int fd_;
  uint64_t seed_;
  Random random_;
  uint64_t bytes_, sent_ = 0, received_ = 0;
  size_t max_size_;
  bool done_ = false;
};

// The descriptors of one loop: a listener, echoing ends and asking ends.
class Loop {
 public:
  explicit Loop(const Config& config) : config_(config), waiter_(config.wait) {}

  void serve(int listener) {
    listener_ = listener;
    set_nonblocking(listener);
    waiter_.add(listener, true, false);
    open_ += config_.connections;
  }

  void ask() {
    for (long i = 0; i < config_.connections; i++) {
      const int fd = connect_to("127.0.0.1", config_.port);
      set_nonblocking(fd);
      no_delay(fd);
      CHECK(fd < kMaxWatched);
      askers_[fd] = new AskEnd(fd, static_cast<uint64_t>(i) + 1, config_);
      waiter_.add(fd, true, true);
      open_++;
    }
  }

  void run() {
    Ready ready[16];
    while (open_ > 0) {
      const int n = waiter_.wait(ready, 16);
      for (int i = 0; i < n; i++) {
        const int fd = ready[i].fd;
        if (fd == listener_) {
          accept_all();
        } else if (askers_[fd] != nullptr) {
          handle(askers_[fd]);
        } else {
          CHECK(echoers_[fd] != nullptr);
          handle(echoers_[fd]);
        }
      }
    }
    if (listener_ >= 0) close(listener_);
  }

 private:
  void accept_all() {
    for (;;) {
      const int fd = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0) {
        CHECK_EQ(errno, EAGAIN);
        break;
      }
      CHECK(fd < kMaxWatched);
      no_delay(fd);
      echoers_[fd] = new EchoEnd(fd);
      waiter_.add(fd, true, false);
    }
    waiter_.want(listener_, true, false);
  }

  template <typename End>
  void handle(End*& end) {
    const int fd = end->fd();
    if (end->step(waiter_.edge())) {
      waiter_.want(fd, end->wants_read(), end->wants_write());
      return;
    }
    waiter_.remove(fd);
    delete end;
    end = nullptr;
    CHECK_EQ(close(fd), 0);
    open_--;
  }

  const Config& config_;
  Waiter waiter_;
  int listener_ = -1;
  long open_ = 0;
  EchoEnd* echoers_[kMaxWatched] = {};
  AskEnd* askers_[kMaxWatched] = {};
};

void* server(void* argument) {
  auto* config = static_cast<Config*>(argument);
  auto* loop = new Loop(*config);
  loop->serve(config->listener);
  loop->run();
  delete loop;
  return nullptr;
}

void client(const Config& config) {
  auto* loop = new Loop(config);
  loop->ask();
  loop->run();
  delete loop;
}

void one_thread(const Config& config) {
  auto* loop = new Loop(config);
  loop->serve(config.listener);
  loop->ask();
  loop->run();
  delete loop;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  Config config = {};
  config.wait = options.text("wait", "epoll");
  config.connections = options.number("connections", 8);
  config.bytes = static_cast<uint64_t>(options.number("bytes", 300000));
  config.max_size = options.number("max-size", 30000);
  config.port = static_cast<int>(options.number("port", 0));
  CHECK(config.max_size <= 65536);
  if (!options.is("client")) {
    config.listener = listen_on("127.0.0.1");
    config.port = port_of(config.listener);
    announce(config.listener);
  }
  if (options.is("server")) {
    server(&config);
  } else if (options.is("client")) {
    client(config);
  } else if (options.is("one-thread")) {
    one_thread(config);
  } else {
    CHECK(options.is("both"));
    const pthread_t thread = start_thread(server, &config);
    client(config);
    join_thread(thread);
  }
  return succeed();
}
