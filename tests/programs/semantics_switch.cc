// SPDX-License-Identifier: MIT
// The moment of an upgrade: bytes that are there lie in two places, TCP and the ring, and must look like one queue. Each case
// works on a connection of its own, from its first byte on, so that the switch is somewhere among its trips. `NAME list` prints the cases.
#include <poll.h>

#include "case_main.h"

using namespace testlib;

namespace {

constexpr int kTripsAcross = 40;
constexpr size_t kHalf = 50, kTrip = 2 * kHalf;
constexpr uint64_t kKey = 91;

int second_accept(int fd) {
  const int listener = listen_on("127.0.0.1");
  const int port = port_of(listener);
  send_all(fd, &port, sizeof port);
  const int second = accept_one(listener);
  close(listener);
  no_delay(second);
  return second;
}

int second_connect(int fd) {
  int port = 0;
  recv_all(fd, &port, sizeof port);
  const int second = connect_to("127.0.0.1", port);
  no_delay(second);
  return second;
}

// Two messages each trip; the other end is told when both are sent.
void in_halves(int fd, const Sync& sync) {
  const int second = second_connect(fd);
  char answer;
  for (uint64_t at = 0; at < kTripsAcross * kTrip; at += kTrip) {
    send_pattern(second, kKey, at, kHalf);
    send_pattern(second, kKey, at + kHalf, kHalf);
    sync.post();
    recv_all(second, &answer, 1);
  }
  close(second);
  close(fd);
}

template <class Look>
void look_at_trips(int fd, const Sync& sync, Look look) {
  const int second = second_accept(fd);
  for (uint64_t at = 0; at < kTripsAcross * kTrip; at += kTrip) {
    sync.wait();
    look(second, at);
    recv_pattern(second, kKey, at, kTrip);
    send_all(second, "x", 1);
  }
  expect_eof(second);
  close(second);
  close(fd);
}

void peek_all(int fd, const Sync& sync) {
  look_at_trips(fd, sync, [](int second, uint64_t at) {
    char buffer[kTrip];
    CHECK_EQ(recv(second, buffer, sizeof buffer, MSG_PEEK | MSG_WAITALL), sizeof buffer);
    pattern_check(buffer, sizeof buffer, kKey, at);
  });
}

void low_water(int fd, const Sync& sync) {
  look_at_trips(fd, sync, [](int second, uint64_t) {
    const int mark = kTrip;
    CHECK_EQ(setsockopt(second, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof mark), 0);
    struct pollfd p = {second, POLLIN, 0};
    CHECK_EQ(poll(&p, 1, 5000), 1);
    CHECK(p.revents == POLLIN);
  });
}

const Case kCases[] = {{"peek_all", peek_all, in_halves}, {"low_water", low_water, in_halves}};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
