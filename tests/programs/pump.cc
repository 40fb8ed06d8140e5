// SPDX-License-Identifier: MIT
// A stream whose ends are killed, stopped and starved by the tests: it expects the other end to disappear at any byte, never fails
// for that, and says exactly what it got. The last lines are "RECEIVED <bytes>", "RESULT moved=<bytes> end=<done|EOF|ECONNRESET|EPIPE>" and EXIT-SUCCESS.
//
// --flow=up (client sends) | down (server sends) | echo (client sends, server sends it back)
// --bytes=N --chunk=N --warm=TRIPS --delay-us=N (between chunks)
// --progress=FILE: 8 bytes, the count of pattern bytes send() has accepted (sender) or recv() has given (receiver) so far
// --die-after-ops=N: kill -9 myself after N socket calls
// --epoll=1: a non-blocking socket and edge-triggered epoll (default: blocking calls)
// --revoke-at=N: after N bytes sent or received the stream has to leave its ring (SO_TIMESTAMP)
// --eat-at=N: then all the memory there is, until the kernel ends it
// --heir-at=N: then forks; the child goes on, and the parent is killed a little later
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include "testlib.h"

using namespace testlib;

namespace {

// Pattern bytes in either direction, warm-up included; never restarts.
constexpr uint64_t kUp = 71, kDown = 72;

struct Pump {
  const Options* options;
  int fd;
  long ops_left;
  volatile uint64_t* progress;
  uint64_t sent, received;
  bool is_client;
  const char* end;  // how it ended, nullptr while it goes on
  int epoll;        // -1: blocking calls
};

// EAGAIN was waited for: the call is to be made again.
bool waited(Pump* p, ssize_t n) {
  if (n >= 0 || errno != EAGAIN || p->epoll < 0) return false;
  epoll_event event;
  CHECK_EQ(epoll_wait(p->epoll, &event, 1, -1), 1);
  return true;
}

void eat_memory() {
  for (;;) {
    constexpr size_t kBite = 4 << 20;
    void* memory = mmap(nullptr, kBite, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    memset(memory, 1, kBite);
  }
}

void leave_to_heir() {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) return;
  sleep_ms(20);
  kill(getpid(), SIGKILL);
}

// What the options want to happen once so many bytes were moved.
void at_offset(Pump* p) {
  const auto moved = static_cast<long>(p->sent + p->received);
  const auto passed = [&](const char* name) {
    static const char* done[3];
    const long at = p->options->number(name, -1);
    if (at < 0 || moved < at) return false;
    for (const char*& one : done) {
      if (one == name) return false;
      if (one == nullptr) return one = name, true;
    }
    return false;
  };
  static const char kRevoke[] = "revoke-at", kEat[] = "eat-at", kHeir[] = "heir-at";
  const int on = 1;
  if (passed(kRevoke)) CHECK_EQ(setsockopt(p->fd, SOL_SOCKET, SO_TIMESTAMP, &on, sizeof on), 0);
  if (passed(kEat)) eat_memory();
  if (passed(kHeir)) leave_to_heir();
}

void count_op(Pump* p) {
  at_offset(p);
  if (p->ops_left > 0 && --p->ops_left == 0) kill(getpid(), SIGKILL);
}

void stop_by_errno(Pump* p) {
  CHECK(errno == ECONNRESET || errno == EPIPE);
  p->end = errno == EPIPE ? "EPIPE" : "ECONNRESET";
}

// Sends the next `length` bytes of my pattern. False when the peer is gone.
bool send_next(Pump* p, size_t length) {
  static thread_local char buffer[1 << 16];
  CHECK(length <= sizeof buffer);
  pattern_fill(buffer, length, p->is_client ? kUp : kDown, p->sent);
  for (size_t done = 0; done < length;) {
    const ssize_t n = send(p->fd, buffer + done, length - done, MSG_NOSIGNAL);
    if (waited(p, n)) continue;
    if (n < 0) {
      stop_by_errno(p);
      return false;
    }
    CHECK(n > 0);
    done += static_cast<size_t>(n);
    p->sent += static_cast<size_t>(n);
    if (p->progress != nullptr) *p->progress = p->sent;
    count_op(p);
  }
  return true;
}

// Receives up to `length` bytes of the peer's pattern; with `exactly`, all of them. False at the end.
bool recv_next(Pump* p, size_t length, bool exactly) {
  static thread_local char buffer[1 << 16];
  CHECK(length <= sizeof buffer);
  for (size_t done = 0; done < length;) {
    const ssize_t n = recv(p->fd, buffer, length - done, 0);
    if (waited(p, n)) continue;
    if (n < 0) {
      stop_by_errno(p);
      return false;
    }
    if (n == 0) {
      p->end = "EOF";
      return false;
    }
    pattern_check(buffer, static_cast<size_t>(n), p->is_client ? kDown : kUp, p->received);
    done += static_cast<size_t>(n);
    p->received += static_cast<size_t>(n);
    if (p->progress != nullptr && p->sent == 0) *p->progress = p->received;
    count_op(p);
    if (!exactly) break;
  }
  return true;
}

bool warm_up(Pump* p) {
  const long trips = p->options->number("warm", kWarmTrips);
  for (long i = 0; i < trips; i++) {
    const bool ok = p->is_client ? send_next(p, kWarmBytes) && recv_next(p, kWarmBytes, true)
                                 : recv_next(p, kWarmBytes, true) && send_next(p, kWarmBytes);
    if (!ok) return false;
  }
  return true;
}

void send_all_pattern(Pump* p, uint64_t bytes, size_t chunk, long delay_us, bool echoed) {
  for (uint64_t done = 0; done < bytes;) {
    const size_t length = bytes - done < chunk ? static_cast<size_t>(bytes - done) : chunk;
    if (!send_next(p, length)) return;
    if (echoed && !recv_next(p, length, true)) return;
    done += length;
    if (delay_us > 0) usleep(static_cast<useconds_t>(delay_us));
  }
  CHECK_EQ(shutdown(p->fd, SHUT_WR), 0);
  if (recv_next(p, 1, true)) CHECK(!"more than was sent");
  if (strcmp(p->end, "EOF") == 0) p->end = "done";
}

// Reads to the end; as echo, sends back as much as came (my own pattern, so that each direction is checked for itself).
void take_all(Pump* p, size_t chunk, long delay_us, bool echo) {
  for (;;) {
    const uint64_t before = p->received;
    if (!recv_next(p, chunk, false)) return;
    if (echo && !send_next(p, static_cast<size_t>(p->received - before))) return;
    if (delay_us > 0) usleep(static_cast<useconds_t>(delay_us));
  }
}

void run(Pump* p) {
  const Options& options = *p->options;
  const char* flow = options.text("flow", "up");
  const bool echo = strcmp(flow, "echo") == 0;
  const bool sender = p->is_client == (echo || strcmp(flow, "up") == 0);
  const auto bytes = static_cast<uint64_t>(options.number("bytes", 10000000));
  const auto chunk = static_cast<size_t>(options.number("chunk", 10000));
  const long delay_us = options.number("delay-us", 0);
  const char* progress = options.text("progress", nullptr);
  if (progress != nullptr) {
    const int file = open(progress, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(file >= 0);
    CHECK_EQ(ftruncate(file, 8), 0);
    void* memory = mmap(nullptr, 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    CHECK(memory != MAP_FAILED);
    close(file);
    p->progress = static_cast<volatile uint64_t*>(memory);
  }
  p->ops_left = options.number("die-after-ops", 0);
  no_delay(p->fd);
  p->epoll = -1;
  if (options.number("epoll", 0) != 0) {
    p->epoll = epoll_create1(EPOLL_CLOEXEC);
    CHECK(p->epoll >= 0);
    set_nonblocking(p->fd);
    epoll_event event = {};
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    CHECK_EQ(epoll_ctl(p->epoll, EPOLL_CTL_ADD, p->fd, &event), 0);
  }
  if (warm_up(p)) {
    if (sender) {
      send_all_pattern(p, bytes, chunk, delay_us, echo);
    } else {
      take_all(p, chunk, delay_us, echo);
    }
  }
  close(p->fd);
  printf("RECEIVED %llu\n", static_cast<unsigned long long>(p->received));
  printf("RESULT moved=%llu end=%s\n", static_cast<unsigned long long>(sender ? p->sent : p->received), p->end);
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  Pump pump = {};
  pump.options = &options;
  pump.is_client = options.is("client");
  if (pump.is_client) {
    pump.fd = connect_to("127.0.0.1", static_cast<int>(options.number("port", 0)), static_cast<int>(options.number("source-port", 0)));
    printf("CONNECTED\n");
    fflush(stdout);
  } else {
    CHECK(options.is("server"));
    const int listener = listen_on("127.0.0.1");
    announce(listener);
    pump.fd = accept_one(listener);
    close(listener);
  }
  run(&pump);
  return succeed();
}
