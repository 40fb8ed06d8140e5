// SPDX-License-Identifier: MIT
// The status page without hooks: what a row says, when there is none, and whose it is after a fork.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>

#include "preload/eligibility.h"
#include "preload/fork.h"
#include "preload/status.h"

using namespace mpklink;

namespace {

// What tools of this version rely on.
static_assert(offsetof(StatusHeader, counters) == 104 && offsetof(StatusHeader, requests) == 768 && sizeof(StatusHeader) == 9088);
static_assert(offsetof(StatusRow, ports) == 48 && offsetof(StatusRow, since_ns) == 56 && offsetof(StatusRow, tx_bytes) == 64);
static_assert(offsetof(StatusRow, tcp_tx_bytes) == 96 && offsetof(StatusRow, upgrades) == 112);
static_assert(offsetof(Requests, tap_name) == 8 && offsetof(Requests, tap_port) == 72 && offsetof(Requests, off_ports) == 80);

sockaddr_storage v4(const char* text, std::uint16_t port) {
  sockaddr_storage address = {};
  auto& in = reinterpret_cast<sockaddr_in&>(address);
  in.sin_family = AF_INET;
  in.sin_port = htons(port);
  inet_pton(AF_INET, text, &in.sin_addr);
  return address;
}

sockaddr_storage v6(const char* text, std::uint16_t port) {
  sockaddr_storage address = {};
  auto& in6 = reinterpret_cast<sockaddr_in6&>(address);
  in6.sin6_family = AF_INET6;
  in6.sin6_port = htons(port);
  inet_pton(AF_INET6, text, &in6.sin6_addr);
  return address;
}

std::string text_of(const Atomic<std::uint64_t> (&address)[2]) {
  char text[INET6_ADDRSTRLEN] = "";
  const std::uint64_t words[2] = {address[0].load_relaxed(), address[1].load_relaxed()};
  inet_ntop(AF_INET6, words, text, sizeof text);
  return text;
}

const StatusRow& row_of(const Stream* s) { return reinterpret_cast<const StatusRow*>(shown_page() + 1)[s->index]; }
bool is(const StatusRow& row, RowMode mode) { return row.mode.load_relaxed() == static_cast<std::uint32_t>(mode); }

// Of a child of fork: its exit status.
template <class Work>
int in_child(Work work) {
  before_fork();
  const pid_t child = fork();
  if (child == 0) {
    after_fork_in_child();
    _exit(work() ? 0 : 1);
  }
  after_fork_in_parent();
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return status;
}

}  // namespace

TEST_CASE("a row says whose it is, and is free at the end") {
  initialise();
  Stream* s = make_stream(State::kCandidate);
  REQUIRE(s != nullptr);
  s->connector = true;
  s->tcp_sent.store_relaxed(7);  // sent before it was known to be on loopback
  show_stream(33, s, {v4("127.0.0.1", 1000), v4("127.0.0.9", 2000)});
  REQUIRE(shown_page() != nullptr);
  REQUIRE(shown_page()->magic == kStatusMagic);
  const StatusRow& row = row_of(s);
  CHECK(text_of(row.local_address) == "::ffff:127.0.0.1");
  CHECK(text_of(row.peer_address) == "::ffff:127.0.0.9");
  CHECK(row.ports.load_relaxed() == (1000u << 16 | 2000u));
  CHECK(row.connector.load_relaxed() == 1);
  CHECK(row.fd.load_relaxed() == 33);
  CHECK(is(row, RowMode::kCandidate));
  CHECK(row.sequence.load_relaxed() % 2 == 0);
  show_sent(s, 10);
  show_sent(s, 5);
  show_received(s, 3);
  show_tcp_sent(s, 4);
  CHECK(row.tx_bytes.load_relaxed() == 22);
  CHECK(row.tx_calls.load_relaxed() == 2);
  CHECK(row.rx_bytes.load_relaxed() == 3);
  CHECK(row.tcp_tx_bytes.load_relaxed() == 11);

  const std::uint64_t plain = shown_page()->counters.plain[static_cast<unsigned>(Reason::kAio)].load_relaxed();
  make_plain(s, Reason::kAio);
  CHECK(is(row, RowMode::kPlain));
  CHECK(row.reason.load_relaxed() == static_cast<std::uint32_t>(Reason::kAio) + 1);
  CHECK(shown_page()->counters.plain[static_cast<unsigned>(Reason::kAio)].load_relaxed() == plain + 1);

  const std::uint64_t ring = shown_page()->counters.ring_tx.load_relaxed(), tcp = shown_page()->counters.tcp_tx.load_relaxed();
  hide_stream(s);
  CHECK(is(row, RowMode::kFree));
  CHECK(row.sequence.load_relaxed() % 2 == 0);
  CHECK(shown_page()->counters.ring_tx.load_relaxed() == ring + 11);
  CHECK(shown_page()->counters.tcp_tx.load_relaxed() == tcp + 11);
  show_sent(s, 100);  // late, to nobody
  CHECK(row.tx_bytes.load_relaxed() == 22);

  show_stream(34, s, {v6("::1", 1), v6("::ffff:127.0.0.2", 65535)});
  CHECK(text_of(row.local_address) == "::1");
  CHECK(text_of(row.peer_address) == "::ffff:127.0.0.2");
  CHECK(row.ports.load_relaxed() == (1u << 16 | 65535u));
  CHECK(row.tx_calls.load_relaxed() == 0);
  hide_stream(s);
}

TEST_CASE("a stream beyond the rows is counted, once") {
  initialise();
  Stream* s = make_stream(State::kCandidate);
  const std::uint32_t index = s->index;
  show_process();
  REQUIRE(shown_page() != nullptr);
  const std::uint32_t missing = shown_page()->rows_missing.load_relaxed();
  s->index = kStatusRows;
  for (int i = 0; i < 3; ++i) show_stream(3, s, {v4("127.0.0.1", 1), v4("127.0.0.1", 2)});
  CHECK(shown_page()->rows_missing.load_relaxed() == missing + 1);
  CHECK(s->row.load_relaxed() == &g_no_row);
  s->index = index;
}

TEST_CASE("a forked child has nothing of its parent's page, and makes its own") {
  initialise();
  Stream* s = make_stream(State::kCandidate);
  show_stream(5, s, {v4("127.0.0.1", 10), v4("127.0.0.1", 20)});
  const StatusHeader* const page = shown_page();
  REQUIRE(page != nullptr);
  show_sent(s, 5);
  CHECK(in_child([&] {
          if (shown_page() != nullptr || page->magic != 0) return false;  // other memory is in its place
          show_sent(s, 100);                                           // an operation that was under way
          if (s->row.load_relaxed() != &g_inherited_row) return false;
          show_stream(5, s, {v4("127.0.0.1", 10), v4("127.0.0.1", 20)});
          show_sent(s, 1);
          const StatusHeader* const own = shown_page();
          return own != nullptr && own->pid.load_relaxed() == static_cast<std::uint32_t>(getpid()) && row_of(s).tx_bytes.load_relaxed() == 1;
        }) == 0);
  CHECK(row_of(s).tx_bytes.load_relaxed() == 5);
  hide_stream(s);
}

TEST_CASE("without a descriptor or memory nothing is shown, and nothing else changes") {
  initialise();
  for (const bool memory : {false, true}) {
    CHECK(in_child([&] {
            RealCalls& r = real_for_test();
            if (memory) {
              r.sys.mmap = [](void*, size_t, int, int, int, off_t) { return MAP_FAILED; };
            } else {
              r.sys.memfd_create = [](const char*, unsigned) { return errno = EMFILE, -1; };
            }
            errno = 77;
            Stream* s = make_stream(State::kCandidate);
            show_stream(5, s, {v4("127.0.0.1", 10), v4("127.0.0.1", 20)});
            show_sent(s, 1);
            make_plain(s, Reason::kAio);
            hide_stream(s);
            return shown_page() == nullptr && errno == 77;
          }) == 0);
  }
}
