// SPDX-License-Identifier: MIT
// Two processes, a parent and its forked child, use one end of a stream at the same time; either may be killed at any step.
//
// `heirs server` is that end. --flow=up: the client sends records and both take them; --flow=down: both send records and the client
// takes them. A record is 64 bytes: who sends, its number among the sender's, filler. --records=N (of each sender)
// --late-ms=N: the client begins so much later
// --stop-parent=SPEC --stop-child=SPEC: what MPKLINK_STOP_AT is in that process from the fork on (shm/stop_point.h)
// The last lines: "RECORDS <of the parent> <of the child>" (client, down), "LONGEST_US <longest send or recv of a survivor>", EXIT-SUCCESS.
// A process of the server that ends well says "DONE parent" or "DONE child".
#include <signal.h>
#include <sys/wait.h>

#include "testlib.h"

using namespace testlib;

namespace {

struct Record {
  uint32_t who, number;
  uint8_t filler[56];
};

int64_t now_us() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t{t.tv_sec} * 1000000 + t.tv_nsec / 1000;
}

void send_records(int fd, uint32_t who, long count, int64_t* longest) {
  for (long i = 0; i < count; i++) {
    Record record = {who, static_cast<uint32_t>(i), {}};
    pattern_fill(record.filler, sizeof record.filler, who, static_cast<uint64_t>(i) * sizeof record.filler);
    const int64_t start = now_us();
    send_all(fd, &record, sizeof record);
    if (who == 2 && i % 16 == 0) usleep(100);  // two readers: no record may be cut by a full segment
    if (now_us() - start > *longest) *longest = now_us() - start;
  }
}

// Whole records only, in order as far as this process sees them. Their count until the end.
long take_records(int fd, bool all, uint32_t* next, int64_t* longest) {
  long count = 0;
  for (;; count++) {
    Record record;
    const int64_t start = now_us();
    const ssize_t n = recv(fd, &record, sizeof record, MSG_WAITALL);
    if (now_us() - start > *longest) *longest = now_us() - start;
    if (n == 0) return count;
    CHECK_EQ(n, sizeof record);
    CHECK(record.who < 3);
    if (all) CHECK_EQ(record.number, next[record.who]);
    CHECK(record.number >= next[record.who]);
    pattern_check(record.filler, sizeof record.filler, record.who, uint64_t{record.number} * sizeof record.filler);
    next[record.who] = record.number + 1;
  }
}

void serve(int fd, const Options& options, bool up, long records) {
  warm_server(fd);
  const pid_t child = fork();
  CHECK(child >= 0);
  const uint32_t who = child == 0 ? 1 : 0;
  if (const char* stop = options.text(who == 1 ? "stop-child" : "stop-parent", nullptr)) setenv("MPKLINK_STOP_AT", stop, 1);
  int64_t longest = 0;
  uint32_t next[3] = {};
  if (up) {
    take_records(fd, false, next, &longest);
  } else {
    send_records(fd, who, records, &longest);
  }
  printf("DONE %s\nLONGEST_US %lld\n", who == 1 ? "child" : "parent", static_cast<long long>(longest));
  fflush(stdout);
  if (child == 0) _exit(0);
  int status = 0;
  CHECK_EQ(waitpid(child, &status, 0), child);
  close(fd);
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const bool up = strcmp(options.text("flow", "down"), "up") == 0;
  const long records = options.number("records", 2000);
  if (options.is("client")) {
    const int fd = connect_to("127.0.0.1", static_cast<int>(options.number("port", 0)));
    no_delay(fd);
    warm_client(fd);
    sleep_ms(options.number("late-ms", 0));
    int64_t longest = 0;
    uint32_t next[3] = {};
    if (up) {
      send_records(fd, 2, records, &longest);
      CHECK_EQ(shutdown(fd, SHUT_WR), 0);
      expect_eof(fd);
    } else {
      take_records(fd, true, next, &longest);
    }
    printf("RECORDS %u %u\n", next[0], next[1]);
    close(fd);
  } else {
    const int listener = listen_on("127.0.0.1");
    announce(listener);
    const int fd = accept_one(listener);
    close(listener);
    no_delay(fd);
    serve(fd, options, up, records);
    close(fd);
  }
  return succeed();
}
