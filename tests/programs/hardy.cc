// SPDX-License-Identifier: MIT
// A program that outlives its peers: what hostile.cc attacks, and the honest stream that must not notice. Preloaded.
//
// hardy server --wait=threads|select-blocking|select|poll|epoll|epoll-et: echo, until SIGTERM. select-blocking asks select, then calls a
//   blocking recv, as old servers do. Whatever becomes of a connection ends that connection only.
// hardy steady --port=N --speak=echo|http|redis: asks and checks the answer, until its standard input ends; says its slowest round.
// hardy connect --port=N --honest-port=M: connects to N again and again, in two ways, and is steady on M meanwhile, until SIGTERM.
#include <signal.h>

#include "waiter.h"

using namespace testlib;

namespace {

constexpr size_t kMost = 65536;

void wait_for_sigterm() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  int number = 0;
  CHECK_EQ(sigwait(&set, &number), 0);
}

// ---- the server ---------------------------------------------------------------------------------------------------------

bool send_or_drop(int fd, const char* from, size_t n) {
  while (n > 0) {
    const ssize_t sent = send(fd, from, n, MSG_NOSIGNAL);
    if (sent <= 0) return false;
    from += sent;
    n -= static_cast<size_t>(sent);
  }
  return true;
}

void* serve_one(void* argument) {
  const int fd = static_cast<int>(reinterpret_cast<intptr_t>(argument));
  auto* buffer = static_cast<char*>(malloc(kMost));
  for (;;) {
    const ssize_t n = recv(fd, buffer, kMost, 0);
    if (n <= 0 || !send_or_drop(fd, buffer, static_cast<size_t>(n))) break;
  }
  close(fd);
  free(buffer);
  return nullptr;
}

void* serve_threads(void* argument) {
  const int listener = *static_cast<int*>(argument);
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 256 * 1024);
  pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
  for (;;) {
    const int fd = accept(listener, nullptr, nullptr);
    if (fd < 0) continue;
    pthread_t thread;
    if (pthread_create(&thread, &small, serve_one, reinterpret_cast<void*>(static_cast<intptr_t>(fd))) != 0) close(fd);
  }
}

// One echoing connection of the loop: what was read and is not sent yet.
struct Echo {
  size_t used;
  char buffer[kMost];
};

class Loop {
 public:
  Loop(int listener, const char* wait)
      : blocking_(strcmp(wait, "select-blocking") == 0), listener_(listener), waiter_(blocking_ ? "select" : wait) {
    set_nonblocking(listener);
    waiter_.add(listener, true, false);
  }

  void run() {
    Ready ready[64];
    for (;;) {
      const int n = waiter_.wait(ready, 64);
      for (int i = 0; i < n; i++) {
        const int fd = ready[i].fd;
        if (fd == listener_) {
          accept_all();
        } else if (!step(fd)) {
          waiter_.remove(fd);
          close(fd);
          delete echoes_[fd];
          echoes_[fd] = nullptr;
        }
      }
    }
  }

 private:
  void accept_all() {
    for (;;) {
      const int fd = accept4(listener_, nullptr, nullptr, (blocking_ ? 0 : SOCK_NONBLOCK) | SOCK_CLOEXEC);
      if (fd < 0) break;
      if (fd >= kMaxWatched || open_count() >= kMaxWatched - 1) {
        close(fd);
        continue;
      }
      no_delay(fd);
      echoes_[fd] = new Echo;
      echoes_[fd]->used = 0;
      waiter_.add(fd, true, false);
    }
    waiter_.want(listener_, true, false);
  }

  int open_count() const {
    int n = 0;
    for (const Echo* echo : echoes_) n += echo != nullptr;
    return n;
  }

  // False: it is over.
  bool step(int fd) {
    Echo& e = *echoes_[fd];
    for (;;) {
      if (e.used == 0) {
        const ssize_t n = recv(fd, e.buffer, sizeof e.buffer, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN)) return false;
        if (n < 0) break;
        e.used = static_cast<size_t>(n);
      }
      const ssize_t n = send(fd, e.buffer, e.used, MSG_NOSIGNAL | (blocking_ ? MSG_DONTWAIT : 0));
      if (n < 0 && errno != EAGAIN) return false;
      if (n > 0) {
        e.used -= static_cast<size_t>(n);
        memmove(e.buffer, e.buffer + n, e.used);
      }
      if (n < 0 || (!waiter_.edge() && e.used == 0)) break;
    }
    waiter_.want(fd, e.used == 0, e.used != 0);
    return true;
  }

  const bool blocking_;
  const int listener_;
  Waiter waiter_;
  Echo* echoes_[kMaxWatched] = {};
};

struct Server {
  int listener;
  const char* wait;
};

void* serve_loop(void* argument) {
  auto* server = static_cast<Server*>(argument);
  auto* loop = new Loop(server->listener, server->wait);
  loop->run();
  return nullptr;
}

// ---- the steady client --------------------------------------------------------------------------------------------------

struct Steady {
  int port;
  const char* speak;
  volatile bool stop;
  uint64_t rounds;
  int64_t worst_ms;
};

// One question, and its answer checked. `offset`: of the echo's pattern.
void ask_echo(int fd, uint64_t* offset) {
  const size_t length = 1 + (*offset * 7919) % 3000;
  send_pattern(fd, 77, *offset, length);
  recv_pattern(fd, 77, *offset, length);
  *offset += length;
}

void ask_text(int fd, const char* question, const char* last) {
  char answer[1024] = "";
  size_t used = 0;
  const size_t wanted = strlen(last);
  send_all(fd, question, strlen(question));
  do {
    CHECK(used < sizeof answer - 1);
    const ssize_t n = recv(fd, answer + used, sizeof answer - 1 - used, 0);
    CHECK(n > 0);
    used += static_cast<size_t>(n);
  } while (used < wanted || memcmp(answer + used - wanted, last, wanted) != 0);
}

void* be_steady(void* argument) {
  auto* steady = static_cast<Steady*>(argument);
  const int fd = connect_to("127.0.0.1", steady->port);
  no_delay(fd);
  uint64_t offset = 0;
  while (!steady->stop) {
    const int64_t start = now_ms();
    if (strcmp(steady->speak, "http") == 0) {
      ask_text(fd, "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n", "\r\n\r\nhello\n");
    } else if (strcmp(steady->speak, "redis") == 0) {
      ask_text(fd, "PING\r\n", "+PONG\r\n");
    } else {
      ask_echo(fd, &offset);
    }
    const int64_t took = now_ms() - start;
    if (took > steady->worst_ms) steady->worst_ms = took;
    steady->rounds++;
    if (steady->rounds % 16 == 0) sleep_ms(1);  // also asleep now and then
  }
  close(fd);
  return nullptr;
}

void say_steady(const Steady& steady) {
  printf("STEADY rounds=%llu worst_ms=%lld\n", static_cast<unsigned long long>(steady.rounds), static_cast<long long>(steady.worst_ms));
}

// ---- the client of a hostile server -------------------------------------------------------------------------------------

struct Victim {
  int port;
  bool polls;  // before it receives, and does not block there
};

bool exchange(int fd, const Victim& victim, Random* random) {
  char out[4096], in[4096];
  const size_t length = random->size(sizeof out);
  pattern_fill(out, length, 5, 0);
  if (!send_or_drop(fd, out, length)) return false;
  for (size_t got = 0; got < length;) {
    struct pollfd p = {fd, POLLIN, 0};
    if (victim.polls && poll(&p, 1, 200) != 1) return false;
    const ssize_t n = recv(fd, in, length - got, victim.polls ? MSG_DONTWAIT : 0);
    if (n < 0 && victim.polls && errno == EAGAIN) continue;
    if (n <= 0) return false;
    got += static_cast<size_t>(n);
  }
  return true;
}

void* be_victim(void* argument) {
  const Victim victim = *static_cast<Victim*>(argument);
  Random random(9);
  const struct timeval timeout = {0, 200000};
  for (;;) {
    Address a = make_address("127.0.0.1", victim.port);
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout), 0);
    CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout), 0);
    if (connect(fd, a.get(), a.length) == 0) {
      no_delay(fd);
      while (exchange(fd, victim, &random)) {
      }
    } else {
      sleep_ms(20);
    }
    close(fd);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  sigset_t term;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  CHECK_EQ(pthread_sigmask(SIG_BLOCK, &term, nullptr), 0);
  Steady steady = {static_cast<int>(options.number("port", 0)), options.text("speak", "echo"), false, 0, 0};
  if (options.is("steady")) {
    const pthread_t thread = start_thread(be_steady, &steady);
    char line[16];
    while (fgets(line, sizeof line, stdin) != nullptr) {
    }
    steady.stop = true;
    join_thread(thread);
    say_steady(steady);
  } else if (options.is("connect")) {
    static Victim victims[] = {{steady.port, false}, {steady.port, true}};
    steady.port = static_cast<int>(options.number("honest-port", 0));
    const pthread_t thread = start_thread(be_steady, &steady);
    for (Victim& victim : victims) start_thread(be_victim, &victim);
    wait_for_sigterm();
    steady.stop = true;
    join_thread(thread);
    say_steady(steady);
  } else {
    static Server server = {listen_on("127.0.0.1", 0, 4096), options.text("wait", "threads")};
    announce(server.listener);
    start_thread(strcmp(server.wait, "threads") == 0 ? serve_threads : serve_loop, strcmp(server.wait, "threads") == 0 ? static_cast<void*>(&server.listener) : static_cast<void*>(&server));
    wait_for_sigterm();
  }
  printf("EXIT-SUCCESS\n");
  fflush(stdout);
  exit(0);  // other threads still run
}
