// SPDX-License-Identifier: MIT
#include <vector>

#include "clients.h"
#include "message.h"

namespace bench {
namespace {

void one_connection(const Address& address, const Message& message, std::vector<unsigned char>* answer) {
  const Fd connection = connect_to(address);
  send_all(connection.get(), message.data(), message.size());
  receive_all(connection.get(), answer->data(), answer->size());
}

}  // namespace

void run_churn(const ClientOptions& options, Measurement* measurement) {
  Message message(options.bytes);
  std::vector<unsigned char> answer(options.bytes);
  measurement->start();
  std::uint64_t start_ns = now_ns();
  const std::uint64_t until_ns = start_ns + to_ns(options.seconds);
  for (std::uint64_t i = 0; i < options.max_operations && start_ns < until_ns; ++i) {
    message.set_number(i);
    one_connection(options.address, message, &answer);
    measurement->add(now_ns() - start_ns);
    message.check(0, answer.data(), answer.size());
    start_ns = now_ns();
  }
  measurement->stop();
}

}  // namespace bench
