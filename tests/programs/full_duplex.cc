// SPDX-License-Identifier: MIT
// Each end has a reader thread and a writer thread on the same socket and both directions are full all the time. Ends by half-close
// on both sides, each of which must be seen as end of file after the last byte.
//
// --connections=N --bytes=N (per connection and direction) --max-size=N --warm=0|1 (0: the upgrade happens under load)
#include "testlib.h"

using namespace testlib;

namespace {

struct Config {
  long connections;
  uint64_t bytes;
  size_t max_size;
  bool warm;
  int port, listener;
};

struct End {
  const Config* config;
  int fd;
  uint64_t tx_seed, rx_seed;
};

void* writer(void* argument) {
  auto* end = static_cast<End*>(argument);
  Random random(end->tx_seed);
  char* buffer = static_cast<char*>(malloc(end->config->max_size));
  for (uint64_t offset = 0; offset < end->config->bytes;) {
    size_t length = random.size(end->config->max_size);
    if (length > end->config->bytes - offset) length = end->config->bytes - offset;
    pattern_fill(buffer, length, end->tx_seed, offset);
    send_all(end->fd, buffer, length);
    offset += length;
  }
  CHECK_EQ(shutdown(end->fd, SHUT_WR), 0);
  free(buffer);
  return nullptr;
}

void* reader(void* argument) {
  auto* end = static_cast<End*>(argument);
  Random random(end->rx_seed * 77);
  char* buffer = static_cast<char*>(malloc(end->config->max_size));
  uint64_t offset = 0;
  for (;;) {
    const ssize_t n = read(end->fd, buffer, random.size(end->config->max_size));
    CHECK(n >= 0);
    if (n == 0) break;
    pattern_check(buffer, static_cast<size_t>(n), end->rx_seed, offset);
    offset += static_cast<size_t>(n);
  }
  CHECK_EQ(offset, end->config->bytes);
  free(buffer);
  return nullptr;
}

// Accepts or connects everything first, then lets all threads of this side loose.
void run_side(const Config& config, bool is_server) {
  auto* ends = new End[static_cast<size_t>(config.connections)];
  auto* threads = new pthread_t[static_cast<size_t>(config.connections) * 2];
  for (long i = 0; i < config.connections; i++) {
    const int fd = is_server ? accept_one(config.listener) : connect_to("127.0.0.1", config.port);
    const uint64_t side = is_server ? 1 : 0;
    ends[i] = {&config, fd, 2 * static_cast<uint64_t>(i) + 50 + side, 0};
    if (!config.warm) continue;
    if (is_server) {
      warm_server(fd);
    } else {
      warm_client(fd);
    }
  }
  for (long i = 0; i < config.connections; i++) {
    // Connections arrive in the order they were made (one client thread), so the i-th is the same at both ends.
    ends[i].rx_seed = is_server ? ends[i].tx_seed - 1 : ends[i].tx_seed + 1;
    threads[2 * i] = start_thread(writer, &ends[i]);
    threads[2 * i + 1] = start_thread(reader, &ends[i]);
  }
  for (long i = 0; i < config.connections * 2; i++) join_thread(threads[i]);
  for (long i = 0; i < config.connections; i++) CHECK_EQ(close(ends[i].fd), 0);
  if (is_server) close(config.listener);
  delete[] threads;
  delete[] ends;
}

void* server(void* argument) {
  run_side(*static_cast<Config*>(argument), true);
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  Config config = {};
  config.connections = options.number("connections", 2);
  config.bytes = static_cast<uint64_t>(options.number("bytes", 4 << 20));
  config.max_size = static_cast<size_t>(options.number("max-size", 65536));
  config.warm = options.number("warm", 1) != 0;
  config.port = static_cast<int>(options.number("port", 0));
  if (!options.is("client")) {
    config.listener = listen_on("127.0.0.1");
    config.port = port_of(config.listener);
    announce(config.listener);
  }
  if (options.is("server")) {
    run_side(config, true);
  } else if (options.is("client")) {
    run_side(config, false);
  } else {
    CHECK(options.is("both"));
    const pthread_t thread = start_thread(server, &config);
    run_side(config, false);
    join_thread(thread);
  }
  return succeed();
}
