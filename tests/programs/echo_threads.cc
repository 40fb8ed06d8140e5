// SPDX-License-Identifier: MIT
// Echo with blocking threads: the server has one thread per connection, the client one per connection too. Messages are
// length-prefixed and of random size, and the server reads the whole message before it answers, so any buffer size works.
//
// --connections=N --rounds=N --max-size=BYTES --host=ADDRESS (where the client connects) --listen=ADDRESS --source-port=N
// --pause-at=N: the client prints "PAUSED" after N rounds and goes on when its standard input has a line.
#include "testlib.h"

using namespace testlib;

namespace {

struct Config {
  long connections, rounds, max_size, pause_at;
  int port, source_port, listener;
  const char* host;
};

struct Connection {
  const Config* config;
  int fd;
  uint64_t seed;
};

void* serve(void* argument) {
  auto* c = static_cast<Connection*>(argument);
  char* buffer = static_cast<char*>(malloc(static_cast<size_t>(c->config->max_size)));
  for (;;) {
    uint32_t length;
    const ssize_t n = recv(c->fd, &length, sizeof length, MSG_WAITALL);
    if (n == 0) break;
    CHECK_EQ(n, sizeof length);
    CHECK(length <= static_cast<uint32_t>(c->config->max_size));
    recv_all(c->fd, buffer, length);
    send_all(c->fd, buffer, length);
  }
  close(c->fd);
  free(buffer);
  return nullptr;
}

void* server(void* argument) {
  auto* config = static_cast<Config*>(argument);
  auto* connections = new Connection[static_cast<size_t>(config->connections)];
  auto* threads = new pthread_t[static_cast<size_t>(config->connections)];
  for (long i = 0; i < config->connections; i++) {
    connections[i] = {config, accept_one(config->listener), 0};
    no_delay(connections[i].fd);
    threads[i] = start_thread(serve, &connections[i]);
  }
  for (long i = 0; i < config->connections; i++) join_thread(threads[i]);
  close(config->listener);
  delete[] threads;
  delete[] connections;
  return nullptr;
}

void pause_for_input() {
  printf("PAUSED\n");
  fflush(stdout);
  char line[16];
  CHECK(fgets(line, sizeof line, stdin) != nullptr);
}

void* client(void* argument) {
  auto* c = static_cast<Connection*>(argument);
  const Config& config = *c->config;
  const auto max = static_cast<size_t>(config.max_size);
  c->fd = connect_to(config.host, config.port, config.source_port);
  no_delay(c->fd);
  Random random(c->seed);
  char* buffer = static_cast<char*>(malloc(max + sizeof(uint32_t)));
  uint64_t offset = 0;
  for (long round = 0; round < config.rounds; round++) {
    if (round == config.pause_at) pause_for_input();
    const auto length = static_cast<uint32_t>(random.size(max));
    memcpy(buffer, &length, sizeof length);
    pattern_fill(buffer + sizeof length, length, c->seed, offset);
    send_all(c->fd, buffer, sizeof length + length);
    recv_all(c->fd, buffer, length);
    pattern_check(buffer, length, c->seed, offset);
    offset += length;
  }
  CHECK_EQ(shutdown(c->fd, SHUT_WR), 0);
  expect_eof(c->fd);
  close(c->fd);
  free(buffer);
  return nullptr;
}

void all_clients(const Config& config) {
  auto* connections = new Connection[static_cast<size_t>(config.connections)];
  auto* threads = new pthread_t[static_cast<size_t>(config.connections)];
  for (long i = 0; i < config.connections; i++) {
    connections[i] = {&config, -1, static_cast<uint64_t>(i) + 100};
    threads[i] = start_thread(client, &connections[i]);
  }
  for (long i = 0; i < config.connections; i++) join_thread(threads[i]);
  delete[] threads;
  delete[] connections;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  Config config = {};
  config.connections = options.number("connections", 4);
  config.rounds = options.number("rounds", 200);
  config.max_size = options.number("max-size", 65536);
  config.pause_at = options.number("pause-at", -1);
  config.port = static_cast<int>(options.number("port", 0));
  config.source_port = static_cast<int>(options.number("source-port", 0));
  config.host = options.text("host", "127.0.0.1");
  if (!options.is("client")) {
    config.listener = listen_on(options.text("listen", "127.0.0.1"), config.port);
    config.port = port_of(config.listener);
    announce(config.listener);
  }
  if (options.is("server")) {
    server(&config);
  } else if (options.is("client")) {
    all_clients(config);
  } else {
    CHECK(options.is("both"));
    const pthread_t thread = start_thread(server, &config);
    all_clients(config);
    join_thread(thread);
  }
  return succeed();
}
