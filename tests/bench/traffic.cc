// SPDX-License-Identifier: MIT
// `traffic`: a server and clients to measure with, which know nothing of libmpklink. The server prints where it listens; each client prints
// one line of JSON. bytes_per_second is what goes one way: an echo moves as much back.
#include <fmt/format.h>
#include <signal.h>
#include <sys/resource.h>

#include <map>
#include <string>

#include "clients.h"
#include "program.h"
#include "serve.h"

namespace {

using namespace bench;

constexpr std::size_t kEchoBytes = 64, kStreamBytes = 65536;

const std::map<std::string, Mode> kModes = {{"blocking", Mode::kBlocking}, {"poll", Mode::kPoll}, {"epoll", Mode::kEpoll}};
const std::map<std::string, Kind> kKinds = {{"echo", Kind::kEcho}, {"sink", Kind::kSink}, {"source", Kind::kSource}};

struct Request {
  ServeOptions serve;
  ClientOptions client;
  std::string mode = "blocking", kind, address = "tcp";
  int cpu = -1;
};

// Of the process: `many`, and the server it calls, have a descriptor for each connection.
void allow_many_descriptors() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// ---- the command line ----

template <class Map>
CLI::Validator one_of(const Map& map) {
  const auto check = [&map](std::string& text) -> std::string {
    if (map.count(text) != 0) return {};
    std::string names;
    for (const auto& entry : map) names += (names.empty() ? "" : ", ") + entry.first;
    return fmt::format("expected one of {}, not '{}'", names, text);
  };
  return {check, ""};
}

void add_mode(CLI::App* command, Request* request) {
  command->add_option("--mode", request->mode, "how to wait: blocking, poll or epoll")->check(one_of(kModes))->type_name("MODE");
}

void add_serve(CLI::App* app, Request* request) {
  CLI::App* serve = app->add_subcommand("serve", "answer clients until SIGTERM");
  ServeOptions& options = request->serve;
  serve->add_option("KIND", request->kind, "echo, sink or source")->required()->check(one_of(kKinds))->type_name("");
  serve->add_option("--address", request->address, "tcp, tcp:PORT or unix:PATH")->check(address_of_server())->type_name("ADDRESS");
  add_mode(serve, request);
  add_cpu(serve, &request->cpu);
  serve->add_option("--bytes", options.bytes, "size of a message (echo, 64), or of the buffer (sink, source: 65536)")
      ->check(CLI::Range(std::size_t{1}, kMaxBytes));
  serve->add_option("--processes", options.processes, "so many that share a port (TCP), which the kernel deals connections out to")
      ->check(CLI::Range(1u, 1000u));
  serve->add_option("--seconds", options.seconds, "end by itself after this time")->check(CLI::Range(1u, kMaxServiceSeconds));
}

CLI::App* add_client(CLI::App* app, const char* name, const char* help, Request* request) {
  CLI::App* command = app->add_subcommand(name, help);
  ClientOptions& options = request->client;
  command->add_option("--address", request->address, "tcp:PORT or unix:PATH")->required()->check(address_to_call())->type_name("ADDRESS");
  command->add_option("--seconds", options.seconds, "how long to measure")->check(number_between(0.001, kMaxSeconds));
  command->add_option("--bytes", options.bytes, "size of a message")->check(CLI::Range(std::size_t{1}, kMaxBytes));
  command->add_option("--max-operations", options.max_operations, "end after as many (of each connection), at the latest")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 50));
  add_cpu(command, &request->cpu);
  return command;
}

void add_pingpong(CLI::App* app, Request* request) {
  CLI::App* command = add_client(app, "pingpong", "messages that are answered, one after the other", request);
  add_mode(command, request);
  command->add_option("--warmup-ms", request->client.warmup_ms, "messages before the measurement")->check(CLI::Range(0u, 60000u));
  command->add_option("--rate", request->client.rate, "messages per second at fixed times; latency counts from those")
      ->check(number_between(0.1, 1e7));
  command->get_option("--seconds")->required();
}

void add_stream(CLI::App* app, Request* request) {
  CLI::App* command = add_client(app, "stream", "write as fast as a sink takes it", request);
  command->add_option("--streams", request->client.streams, "connections, a thread for each")->check(CLI::Range(1u, 1024u));
  command->add_flag("--receive", request->client.receive, "read from a source instead");
  command->get_option("--seconds")->required();
}

void add_many(CLI::App* app, Request* request) {
  CLI::App* command = add_client(app, "many", "many connections, some of them busy", request);
  ClientOptions& options = request->client;
  command->add_option("--connections", options.connections, "all of them")->required()->check(CLI::Range(1u, 1'000'000u));
  command->add_option("--requests-first", options.requests_first, "messages that each exchanges before the measurement")
      ->check(CLI::Range(0u, 1'000'000u));
  CLI::Option* busy = command->add_option("--busy", options.busy, "those that exchange messages")->check(CLI::Range(1u, 1'000'000u));
  CLI::Option* hold = command->add_flag("--hold-only", options.hold_only, "print READY and be quiet until stdin is closed");
  command->final_callback([&options, command, busy, hold] {
    if (hold->count() != 0) return;
    if (busy->count() == 0) throw CLI::RequiredError("--busy");
    if (command->get_option("--seconds")->count() == 0) throw CLI::RequiredError("--seconds");
    if (options.busy > options.connections) throw CLI::ValidationError("--busy", "more than there are connections");
  });
}

// ---- what is asked for ----

void finish_options(const CLI::App& command, Request* request) {
  const Mode mode = kModes.at(request->mode);
  request->serve.mode = request->client.mode = mode;
  parse_address(request->address, &request->serve.address);
  request->client.address = request->serve.address;
  if (command.get_name() != "serve") return;
  if (request->serve.processes > 1 && request->serve.address.is_unix()) {
    throw CLI::ValidationError("--processes", "a Unix socket has one listener");
  }
  request->serve.kind = kKinds.at(request->kind);
  if (request->serve.bytes == 0) request->serve.bytes = request->serve.kind == Kind::kEcho ? kEchoBytes : kStreamBytes;
}

void measure(const std::string& name, const ClientOptions& options, Measurement* measurement) {
  if (name == "pingpong") return run_pingpong(options, measurement);
  if (name == "stream") return run_stream(options, measurement);
  if (name == "churn") return run_churn(options, measurement);
  run_many(options, measurement);
}

int run(const CLI::App& command, Request* request) {
  finish_options(command, request);
  signal(SIGPIPE, SIG_IGN);
  pin_to(request->cpu);
  allow_many_descriptors();
  const std::string& name = command.get_name();
  const ClientOptions& options = request->client;
  if (name == "serve") {
    serve(request->serve);
    return 0;
  }
  limit_time(options.hold_only ? kHoldSeconds : options.seconds);
  if (options.hold_only) {
    run_hold(options);
    return 0;
  }
  Measurement measurement(name, name == "many" ? "epoll" : request->mode, options.bytes);
  return run_measurement(&measurement, [&](Measurement* m) { measure(name, options, m); });
}

}  // namespace

// NOLINTNEXTLINE(bugprone-exception-escape): what may come, no memory, ends the program as it should.
int main(int argc, char** argv) {
  Request request;
  CLI::App app("Measures loopback connections.", "traffic");
  add_serve(&app, &request);
  add_pingpong(&app, &request);
  add_stream(&app, &request);
  add_client(&app, "churn", "connect, one message and its answer, close", &request)->get_option("--seconds")->required();
  add_many(&app, &request);
  return run_program(&app, argc, argv, [&request](const CLI::App& command) { return run(command, &request); });
}
