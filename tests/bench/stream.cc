// SPDX-License-Identifier: MIT
#include <sys/socket.h>

#include <exception>
#include <list>
#include <thread>
#include <vector>

#include "clients.h"
#include "failure.h"
#include "message.h"
#include "serve.h"

namespace bench {
namespace {

/// One connection, in a thread of its own.
class Stream {
 public:
  explicit Stream(const ClientOptions& options) : options_(options), connection_(connect_to(options.address)), bytes_(options.bytes) {}

  void start() { thread_ = std::thread(&Stream::run, this); }

  void join() {
    if (thread_.joinable()) thread_.join();
  }
  const Histogram& latency_ns() const { return latency_ns_; }
  void rethrow_error() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void run() {
    try {
      if (options_.receive) {
        read_all();
      } else {
        write_all();
      }
    } catch (...) {
      error_ = std::current_exception();
    }
  }

  // The end of one operation is the start of the next: one look at the clock for each.
  template <class Operation>
  void repeat(Operation operation) {
    std::uint64_t start_ns = now_ns();
    const std::uint64_t until_ns = start_ns + to_ns(options_.seconds);
    for (std::uint64_t i = 0; i < options_.max_operations && start_ns < until_ns; ++i) {
      operation();
      const std::uint64_t end_ns = now_ns();
      latency_ns_.add(end_ns - start_ns);
      start_ns = end_ns;
    }
  }

  void write_all() {
    std::uint64_t offset = 0;
    repeat([this, &offset] {
      send_all(connection_.get(), bytes_.at(offset), options_.bytes);
      offset += options_.bytes;
    });
    if (shutdown(connection_.get(), SHUT_WR) != 0) fail_errno("shutdown");
    unsigned char verdict = 0;
    receive_all(connection_.get(), &verdict, 1);
    if (verdict != kSinkContent) fail("the server has read other bytes than were written");
  }

  void read_all() {
    std::vector<unsigned char> buffer(options_.bytes);
    std::uint64_t offset = 0;
    repeat([this, &buffer, &offset] {
      receive_all(connection_.get(), buffer.data(), buffer.size());
      if (!bytes_.is_right(offset, buffer.data(), buffer.size())) fail("wrong bytes were read");
      offset += buffer.size();
    });
  }

  const ClientOptions& options_;
  Fd connection_;
  StreamBytes bytes_;
  Histogram latency_ns_;
  std::exception_ptr error_;
  std::thread thread_;
};

}  // namespace

void run_stream(const ClientOptions& options, Measurement* measurement) {
  std::list<Stream> streams;
  for (unsigned i = 0; i < options.streams; ++i) streams.emplace_back(options);
  measurement->start();
  for (Stream& stream : streams) stream.start();
  for (Stream& stream : streams) stream.join();
  measurement->stop();
  for (const Stream& stream : streams) measurement->add(stream.latency_ns());
  for (const Stream& stream : streams) stream.rethrow_error();
}

}  // namespace bench
