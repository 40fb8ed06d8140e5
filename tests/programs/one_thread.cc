// SPDX-License-Identifier: MIT
// Both ends of several connections in one single thread with plain blocking calls: send on one end, then receive on the other.
// A program may do that as long as what it sends fits the buffers, so --max-size must not exceed the ring.
//
// --connections=N --rounds=N --max-size=BYTES
#include "testlib.h"

using namespace testlib;

int main(int argc, char** argv) {
  const Options options(argc, argv);
  CHECK(options.is("both"));
  const auto connections = static_cast<size_t>(options.number("connections", 3));
  const long rounds = options.number("rounds", 500);
  const auto max_size = static_cast<size_t>(options.number("max-size", 2048));
  CHECK(connections <= 64);

  const int listener = listen_on("127.0.0.1");
  announce(listener);
  struct Pair {
    int ends[2];
    uint64_t offset[2];
  } pairs[64] = {};
  for (size_t i = 0; i < connections; i++) {
    pairs[i].ends[0] = connect_to("127.0.0.1", port_of(listener));
    pairs[i].ends[1] = accept_one(listener);
    no_delay(pairs[i].ends[0]);
    no_delay(pairs[i].ends[1]);
  }
  Random random(42);
  for (long round = 0; round < rounds; round++) {
    for (size_t i = 0; i < connections; i++) {
      for (size_t from = 0; from < 2; from++) {
        Pair& p = pairs[i];
        const size_t length = random.size(max_size);
        send_pattern(p.ends[from], i * 2 + from, p.offset[from], length);
        recv_pattern(p.ends[1 - from], i * 2 + from, p.offset[from], length);
        p.offset[from] += length;
      }
    }
  }
  for (size_t i = 0; i < connections; i++) {
    close(pairs[i].ends[0]);
    expect_eof(pairs[i].ends[1]);
    close(pairs[i].ends[1]);
  }
  close(listener);
  return succeed();
}
