// SPDX-License-Identifier: MIT
// `grpc_call`: unary calls of gRPC's synchronous C++ API, which are answered with what they carried. As `traffic`, it knows nothing of
// libmpklink.
#include <grpcpp/grpcpp.h>
#include <poll.h>

#include <exception>
#include <list>
#include <memory>
#include <thread>

#include "echo.grpc.pb.h"
#include "failure.h"
#include "message.h"
#include "program.h"

namespace {

using namespace bench;

constexpr int kNoLimit = -1;
constexpr std::uint64_t kMaxOperations = 1'000'000'000;

struct Options {
  std::string address = "tcp";
  std::size_t bytes = 64;
  double seconds = 0;
  unsigned service_seconds = 600;
  unsigned concurrency = 1;
  unsigned warmup_ms = 200;
  int cpu = -1;
};

Address parsed(const std::string& text) {
  Address address;
  parse_address(text, &address);  // CLI11 has seen that it is right
  return address;
}

/// What gRPC listens on. It takes no ipv4: there.
std::string name_to_listen_on(const Address& address) {
  return address.is_unix() ? "unix:" + address.path : fmt::format("127.0.0.1:{}", address.port);
}

// ---- server ----

class EchoService final : public Echo::Service {
  grpc::Status Unary(grpc::ServerContext*, const EchoMessage* request, EchoMessage* reply) override {
    reply->set_payload(request->payload());
    return grpc::Status::OK;
  }
};

void wait_for(const Fd& fd) {
  pollfd p = {fd.get(), POLLIN, 0};
  while (poll(&p, 1, -1) < 0 && errno == EINTR) {
  }
}

int serve(const Options& options) {
  const Fd end = end_of_service(options.service_seconds);
  Address address = parsed(options.address);
  EchoService service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(name_to_listen_on(address), grpc::InsecureServerCredentials(), &port);
  builder.SetMaxReceiveMessageSize(kNoLimit);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) fail("cannot listen on {}", options.address);
  if (!address.is_unix()) address.port = static_cast<std::uint16_t>(port);
  announce(address);
  wait_for(end);
  server->Shutdown(std::chrono::system_clock::now());  // calls that are in progress are cancelled
  server->Wait();
  return 0;
}

// ---- client ----

/// What gRPC calls. Without ipv4: it would ask the resolver of names.
std::string name_to_call(const Address& address) {
  return address.is_unix() ? "unix:" + address.path : fmt::format("ipv4:127.0.0.1:{}", address.port);
}

std::shared_ptr<grpc::Channel> connect(const Options& options) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // whatever http_proxy says: the loopback is what is measured
  arguments.SetMaxReceiveMessageSize(kNoLimit);
  return grpc::CreateCustomChannel(name_to_call(parsed(options.address)), grpc::InsecureChannelCredentials(), arguments);
}

/// One caller, in a thread of its own. All use the channel's one connection.
class Caller {
 public:
  Caller(const Options& options, const std::shared_ptr<grpc::Channel>& channel, std::uint64_t first_number)
      : stub_(Echo::NewStub(channel)), message_(options.bytes), number_(first_number) {}

  void start(double seconds) {
    latency_ns_ = Histogram();
    thread_ = std::thread(&Caller::run, this, seconds);
  }
  void join() { thread_.join(); }
  const Histogram& latency_ns() const { return latency_ns_; }
  void rethrow_error() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void run(double seconds) {
    try {
      call_until(now_ns() + to_ns(seconds));
    } catch (...) {
      error_ = std::current_exception();
    }
  }

  void call_until(std::uint64_t until_ns) {
    for (std::uint64_t i = 0; i < kMaxOperations; ++i) {
      message_.set_number(++number_);
      request_.set_payload(message_.data(), message_.size());
      const std::uint64_t start_ns = now_ns();
      if (start_ns >= until_ns) return;
      call();
      latency_ns_.add(now_ns() - start_ns);
      check();
    }
  }

  void call() {
    grpc::ClientContext context;
    const grpc::Status status = stub_->Unary(&context, request_, &reply_);
    if (!status.ok()) fail("the call failed: {} (gRPC status {})", status.error_message(), static_cast<int>(status.error_code()));
  }

  void check() const {
    const std::string& payload = reply_.payload();
    if (payload.size() != message_.size()) fail("{} bytes came back instead of {}", payload.size(), message_.size());
    message_.check(0, reinterpret_cast<const unsigned char*>(payload.data()), payload.size());
  }

  std::unique_ptr<Echo::Stub> stub_;
  Message message_;
  std::uint64_t number_;
  EchoMessage request_, reply_;
  Histogram latency_ns_;
  std::exception_ptr error_;
  std::thread thread_;
};

void run_all(std::list<Caller>* callers, double seconds) {
  for (Caller& caller : *callers) caller.start(seconds);
  for (Caller& caller : *callers) caller.join();
}

void measure(const Options& options, Measurement* measurement) {
  const std::shared_ptr<grpc::Channel> channel = connect(options);
  std::list<Caller> callers;
  for (std::uint64_t i = 0; i < options.concurrency; ++i) callers.emplace_back(options, channel, i << 32);
  run_all(&callers, options.warmup_ms / 1e3);
  for (const Caller& caller : callers) caller.rethrow_error();
  measurement->start();
  run_all(&callers, options.seconds);
  measurement->stop();
  for (const Caller& caller : callers) measurement->add(caller.latency_ns());
  for (const Caller& caller : callers) caller.rethrow_error();
}

int call(const Options& options) {
  limit_time(options.seconds);
  Measurement measurement("grpc", "sync", options.bytes);
  return run_measurement(&measurement, [&options](Measurement* m) { measure(options, m); });
}

// ---- the command line ----

void add_serve(CLI::App* app, Options* options) {
  CLI::App* command = app->add_subcommand("serve", "answer calls until SIGTERM");
  command->add_option("--address", options->address, "tcp, tcp:PORT or unix:PATH")->check(address_of_server())->type_name("ADDRESS");
  command->add_option("--seconds", options->service_seconds, "end by itself after this time")->check(CLI::Range(1u, kMaxServiceSeconds));
  add_cpu(command, &options->cpu);
}

void add_call(CLI::App* app, Options* options) {
  CLI::App* command = app->add_subcommand("call", "calls, one after the other");
  command->add_option("--address", options->address, "tcp:PORT or unix:PATH")->required()->check(address_to_call())->type_name("ADDRESS");
  command->add_option("--bytes", options->bytes, "size of a call's payload")->check(CLI::Range(std::size_t{1}, kMaxBytes));
  command->add_option("--seconds", options->seconds, "how long to measure")->required()->check(number_between(0.001, kMaxSeconds));
  command->add_option("--concurrency", options->concurrency, "callers, a thread for each, over one connection")->check(CLI::Range(1u, 256u));
  command->add_option("--warmup-ms", options->warmup_ms, "calls before the measurement")->check(CLI::Range(0u, 60000u));
  add_cpu(command, &options->cpu);
}

}  // namespace

// NOLINTNEXTLINE(bugprone-exception-escape): what may come, no memory, ends the program as it should.
int main(int argc, char** argv) {
  Options options;
  CLI::App app("Measures gRPC over loopback connections.", "grpc_call");
  add_serve(&app, &options);
  add_call(&app, &options);
  return run_program(&app, argc, argv, [&options](const CLI::App& command) {
    pin_to(options.cpu);
    return command.get_name() == "serve" ? serve(options) : call(options);
  });
}
