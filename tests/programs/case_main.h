// SPDX-License-Identifier: MIT
// The main() of the semantics_* programs: a table of cases, each a function for either end of one warmed-up TCP connection.
//
// `NAME server --case=X` serves one connection, `NAME client --case=X --port=n` is the other end, `NAME both --case=X` runs the
// two in two threads of one process, `NAME list` prints the names, `NAME missing --case=X` why this machine cannot run it. The
// ends agree on the order of things over a Unix socket (post/wait), so that nothing but the case itself touches the stream and
// nothing depends on sleeping long enough.
#pragma once

#include <stddef.h>

#include "testlib.h"

namespace testlib {

// One end of the side channel.
class Sync {
 public:
  explicit Sync(int fd) : fd_(fd) {}
  void post() const {
    const char byte = 's';
    CHECK_EQ(write(fd_, &byte, 1), 1);
  }
  void wait() const {
    char byte;
    ssize_t n;
    do n = read(fd_, &byte, 1);
    while (n < 0 && errno == EINTR);
    CHECK_EQ(n, 1);
  }
  // Both ends have come here.
  void meet() const {
    post();
    wait();
  }
  int fd() const { return fd_; }

 private:
  int fd_;
};

struct Case {
  const char* name;
  void (*server)(int fd, const Sync& sync);
  void (*client)(int fd, const Sync& sync);
  const char* (*missing)() = nullptr;  // why this machine cannot run it; null: it can
};

struct CaseRun {
  const Case* which;
  int port;
  int listener;
  int sync_listener;
};

inline Address sync_address(int port) {
  Address a;
  auto* un = reinterpret_cast<struct sockaddr_un*>(&a.storage);
  un->sun_family = AF_UNIX;
  const int n = snprintf(un->sun_path + 1, sizeof un->sun_path - 1, "test-case-sync-%d", port);
  a.length = static_cast<socklen_t>(offsetof(struct sockaddr_un, sun_path) + 1 + static_cast<size_t>(n));
  return a;
}

inline void* run_server(void* argument) {
  const auto* run = static_cast<CaseRun*>(argument);
  const int fd = accept_one(run->listener);
  const int sync_fd = accept_one(run->sync_listener);
  close(run->listener);
  close(run->sync_listener);
  no_delay(fd);
  warm_server(fd);
  run->which->server(fd, Sync(sync_fd));
  return nullptr;
}

inline void* run_client(void* argument) {
  const auto* run = static_cast<CaseRun*>(argument);
  const int fd = connect_to("127.0.0.1", run->port);
  Address a = sync_address(run->port);
  const int sync_fd = socket(AF_UNIX, SOCK_STREAM, 0);
  CHECK(sync_fd >= 0);
  CHECK_EQ(connect(sync_fd, a.get(), a.length), 0);
  no_delay(fd);
  warm_client(fd);
  run->which->client(fd, Sync(sync_fd));
  return nullptr;
}

inline void open_listeners(CaseRun* run) {
  run->listener = listen_on("127.0.0.1");
  run->port = port_of(run->listener);
  Address a = sync_address(run->port);
  run->sync_listener = socket(AF_UNIX, SOCK_STREAM, 0);
  CHECK(run->sync_listener >= 0);
  CHECK_EQ(bind(run->sync_listener, a.get(), a.length), 0);
  CHECK_EQ(listen(run->sync_listener, 1), 0);
  announce(run->listener);
}

template <size_t N>
int case_main(int argc, char** argv, const Case (&cases)[N]) {
  const Options options(argc, argv);
  if (options.is("list")) {
    for (const Case& c : cases) printf("%s\n", c.name);
    return 0;
  }
  CaseRun run = {};
  for (const Case& c : cases)
    if (strcmp(c.name, options.text("case", "")) == 0) run.which = &c;
  if (run.which == nullptr) {
    fprintf(stderr, "no such case: %s\n", options.text("case", "(none)"));
    return 2;
  }
  if (options.is("missing")) {
    const char* reason = run.which->missing != nullptr ? run.which->missing() : nullptr;
    if (reason != nullptr) printf("%s\n", reason);
    return 0;
  }
  if (options.is("server")) {
    open_listeners(&run);
    run_server(&run);
  } else if (options.is("client")) {
    run.port = static_cast<int>(options.number("port", 0));
    run_client(&run);
  } else {
    CHECK(options.is("both"));
    open_listeners(&run);
    const pthread_t server = start_thread(run_server, &run);
    run_client(&run);
    join_thread(server);
  }
  return succeed();
}

}  // namespace testlib
