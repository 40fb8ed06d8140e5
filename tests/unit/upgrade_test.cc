// SPDX-License-Identifier: MIT
// The upgrade with both ends in this process, driven through the core (no hook, no preload), and with every kernel call of
// the originals' table failing in turn: whatever fails, the bytes arrive and nothing is left behind.
#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <sys/wait.h>

#include <catch2/catch.hpp>
#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "preload/data_path.h"
#include "preload/eligibility.h"
#include "preload/fd_table.h"
#include "preload/stream.h"

using namespace mpklink;

namespace {

// The N-th call from now on fails with g_errno.
int g_countdown = 0;
int g_errno = 0;
bool fail_now() { return g_countdown > 0 && --g_countdown == 0 && (errno = g_errno, true); }

RealCalls g_saved;

void inject_failures() {
  RealCalls& r = real_for_test();
  g_saved = r;
  r.socket = [](int a, int b, int c) noexcept { return fail_now() ? -1 : g_saved.socket(a, b, c); };
  r.quiet.connect = [](int a, const sockaddr* b, socklen_t c) { return fail_now() ? -1 : g_saved.quiet.connect(a, b, c); };
  r.quiet.accept4 = [](int a, sockaddr* b, socklen_t* c, int d) { return fail_now() ? -1 : g_saved.quiet.accept4(a, b, c, d); };
  r.quiet.sendmsg = [](int a, const msghdr* b, int c) {
    int domain = 0;
    socklen_t size = sizeof domain;
    getsockopt(a, SOL_SOCKET, SO_DOMAIN, &domain, &size);
    return domain == AF_UNIX && fail_now() ? ssize_t{-1} : g_saved.quiet.sendmsg(a, b, c);
  };
  r.eventfd = [](unsigned a, int b) noexcept { return fail_now() ? -1 : g_saved.eventfd(a, b); };
  r.getsockopt = [](int a, int b, int c, void* d, socklen_t* e) noexcept {
    return fail_now() ? -1 : g_saved.getsockopt(a, b, c, d, e);
  };
  r.sys.memfd_create = [](const char* a, unsigned b) { return fail_now() ? -1 : g_saved.sys.memfd_create(a, b); };
  r.sys.ftruncate = [](int a, off_t b) { return fail_now() ? -1 : g_saved.sys.ftruncate(a, b); };
  r.sys.add_seals = [](int a, int b) { return fail_now() ? -1 : g_saved.sys.add_seals(a, b); };
  r.sys.fstat = [](int a, struct stat* b) { return fail_now() ? -1 : g_saved.sys.fstat(a, b); };
  r.sys.mmap = [](void* a, size_t b, int c, int d, int e, off_t f) {
    return fail_now() ? MAP_FAILED : g_saved.sys.mmap(a, b, c, d, e, f);
  };
}

struct Ends {
  int connector = -1;
  int acceptor = -1;
};

void track(int fd, bool connector) {
  Stream* s = make_stream(State::kCandidate);
  REQUIRE(s != nullptr);
  s->connector = connector;
  enter_stream(fd, s);
}

Ends connect_ends() {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  REQUIRE(bind(listener, reinterpret_cast<sockaddr*>(&address), size) == 0);
  REQUIRE(listen(listener, 1) == 0);
  REQUIRE(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  Ends ends;
  ends.connector = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  REQUIRE(connect(ends.connector, reinterpret_cast<sockaddr*>(&address), size) == 0);
  ends.acceptor = accept(listener, nullptr, nullptr);
  close(listener);
  track(ends.connector, true);
  track(ends.acceptor, false);
  return ends;
}

void close_end(int fd) {
  forget_fd(fd);
  close(fd);
}

void put(int fd, const std::string& text) {
  const iovec part = {const_cast<char*>(text.data()), text.size()};
  REQUIRE(send_any(fd, &part, 1, 0, [&] { return ::send(fd, text.data(), text.size(), 0); }) ==
          static_cast<ssize_t>(text.size()));
}

std::string take(int fd, std::size_t n) {
  std::string text(n, '?');
  std::size_t got = 0;
  while (got < n) {
    const iovec part = {&text[got], n - got};
    const ssize_t r = receive_any(fd, &part, 1, 0, [&] { return ::recv(fd, &text[got], n - got, 0); });
    REQUIRE(r > 0);
    got += static_cast<std::size_t>(r);
  }
  return text;
}

// Rounds of a message each way. Returns whether the connection ended up on the ring.
bool exchange_messages(const Ends& ends, int rounds) {
  for (int i = 0; i < rounds; ++i) {
    const std::string question = "question " + std::to_string(i) + std::string(static_cast<std::size_t>(i) % 300, 'q');
    put(ends.connector, question);
    REQUIRE(take(ends.acceptor, question.size()) == question);
    const std::string answer = "answer " + std::to_string(i) + std::string(static_cast<std::size_t>(i) * 7 % 500, 'a');
    put(ends.acceptor, answer);
    REQUIRE(take(ends.connector, answer.size()) == answer);
  }
  return state_of(fd_table().stream(ends.connector)) == State::kShared &&
         state_of(fd_table().stream(ends.acceptor)) == State::kShared;
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  DIR* dir = opendir("/proc/self/fd");
  while (readdir(dir) != nullptr) ++count;
  closedir(dir);
  return count;
}

// Runs `body` in a child process, so that each starts without pairs and channels. Returns its exit code.
template <class Body>
int in_child(Body body) {
  const pid_t pid = fork();
  if (pid == 0) {
    int code = 99;
    try {
      code = body();
    } catch (...) {
    }
    _exit(code);
  }
  int status = 0;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

enum : int { kUpgraded = 0, kStayedOnTcp = 1, kLeaked = 2, kNothingFailed = 3 };

int run_with_failure(int countdown, int error) {
  initialise();
  inject_failures();
  // What an upgrade leaves on purpose: the pair's two control sockets, waiting for the next stream of the same peer.
  constexpr std::size_t kPairDescriptors = 2;
  const std::size_t before = open_descriptors();
  const Ends ends = connect_ends();
  g_errno = error;
  g_countdown = countdown;
  const bool upgraded = exchange_messages(ends, 60);
  const bool failed = g_countdown == 0;
  g_countdown = 0;
  close_end(ends.connector);
  close_end(ends.acceptor);
  if (open_descriptors() > before + kPairDescriptors + 2) return kLeaked;
  if (!failed) return kNothingFailed;
  return upgraded ? kUpgraded : kStayedOnTcp;
}

}  // namespace

TEST_CASE("upgrade: both ends in one thread reach the ring and every byte arrives", "[upgrade]") {
  initialise();
  const Ends ends = connect_ends();
  REQUIRE(exchange_messages(ends, 60));
  const std::uint64_t upgraded = process().counters.upgraded.load_relaxed();
  close_end(ends.connector);
  close_end(ends.acceptor);
  REQUIRE(upgraded >= 2);
  REQUIRE(process().counters.ring_tx.load_relaxed() > 10000);
  REQUIRE(process().counters.ring_tx.load_relaxed() == process().counters.ring_rx.load_relaxed());
}

TEST_CASE("upgrade: many streams of one pair, opened and closed in turn", "[upgrade]") {
  initialise();
  for (int i = 0; i < 50; ++i) {
    const Ends ends = connect_ends();
    REQUIRE(exchange_messages(ends, 30));
    close_end(i % 2 ? ends.connector : ends.acceptor);
    close_end(i % 2 ? ends.acceptor : ends.connector);
  }
}

TEST_CASE("upgrade: whichever kernel call fails, the bytes arrive and nothing leaks", "[upgrade][fault]") {
  const int error = GENERATE(EMFILE, ENOMEM, EPERM, ENOSYS);
  int stayed = 0;
  int n = 1;
  for (; n < 200; ++n) {
    const int code = in_child([&] { return run_with_failure(n, error); });
    INFO("call " << n << " failing with errno " << error);
    if (code == kNothingFailed) break;
    REQUIRE((code == kUpgraded || code == kStayedOnTcp));
    if (code == kStayedOnTcp) ++stayed;
  }
  REQUIRE(n > 15);       // the path really makes that many calls
  REQUIRE(n < 200);      // and the loop went past the last of them
  REQUIRE(stayed > 10);  // and most of them matter
}

TEST_CASE("upgrade: the two ends spell the rendezvous name alike", "[upgrade]") {
  Addresses addresses = {};
  auto& local = reinterpret_cast<sockaddr_in&>(addresses.local);
  local.sin_family = AF_INET;
  local.sin_addr.s_addr = htonl(0x7f000001);
  local.sin_port = htons(1234);
  auto& peer = reinterpret_cast<sockaddr_in6&>(addresses.peer);
  peer.sin6_family = AF_INET6;
  REQUIRE(inet_pton(AF_INET6, "::ffff:127.0.0.1", &peer.sin6_addr) == 1);
  peer.sin6_port = htons(80);
  Addresses mirrored = {addresses.peer, addresses.local};
  sockaddr_un ours = {}, theirs = {};
  const socklen_t a = rendezvous_name(addresses, true, &ours);
  const socklen_t b = rendezvous_name(mirrored, false, &theirs);
  REQUIRE(a == b);
  REQUIRE(std::memcmp(&ours, &theirs, a) == 0);
  REQUIRE(std::string(ours.sun_path + 1) == "mpklink/127.0.0.1:1234-127.0.0.1:80");
}
