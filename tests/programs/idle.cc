// SPDX-License-Identifier: MIT
// Upgraded streams on which nothing happens, for the tests that look at a process from outside. One thread per process.
//
// Both ends warm up --connections streams, print "FD n" (the number the next open() gets) and "IDLE", then sleep in
// --wait=recv|poll|select|epoll|epoll-et until the client's standard input ends. (recv: the client waits for its input with read.)
#include "waiter.h"

using namespace testlib;

namespace {

void report() {
  const int file = open("/dev/null", O_RDONLY | O_CLOEXEC);
  CHECK(file >= 0);
  printf("FD %d\nIDLE\n", file);
  fflush(stdout);
  close(file);
}

// Sleeps until `extra` (a pipe, or -1) or one of the streams has something.
void sleep_on(const char* wait, const int* streams, long count, int extra) {
  if (strcmp(wait, "recv") == 0) {
    char byte;
    if (extra >= 0) {
      while (read(extra, &byte, 1) > 0) {
      }
    } else {
      expect_eof(streams[0]);
    }
    return;
  }
  Waiter waiter(wait);
  waiter.expect_eintr();
  for (long i = 0; i < count; i++) waiter.add(streams[i], true, false);
  if (extra >= 0) waiter.add(extra, true, false);
  Ready ready[8];
  for (;;) {
    const int n = waiter.wait(ready, 8);
    for (int i = 0; i < n; i++) {
      if (ready[i].readable) return;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const bool is_client = options.is("client");
  const long count = options.number("connections", 1);
  int streams[kMaxWatched];
  CHECK(count < kMaxWatched);
  int listener = -1;
  if (!is_client) {
    listener = listen_on("127.0.0.1");
    announce(listener);
  }
  for (long i = 0; i < count; i++) {
    streams[i] = is_client ? connect_to("127.0.0.1", static_cast<int>(options.number("port", 0))) : accept_one(listener);
    no_delay(streams[i]);
    if (is_client) {
      warm_client(streams[i]);
    } else {
      warm_server(streams[i]);
    }
  }
  // And once more when all of them exist, so that the streams are used side by side.
  for (long i = 0; i < count; i++) {
    if (is_client) {
      warm_client(streams[i]);
    } else {
      warm_server(streams[i]);
    }
  }
  report();
  sleep_on(options.text("wait", "poll"), streams, count, is_client ? 0 : -1);
  for (long i = 0; i < count; i++) close(streams[i]);
  return succeed();
}
