// SPDX-License-Identifier: MIT
// One thread sleeps in a call on a stream while another shuts the stream down, closes or replaces its descriptor, or cancels the
// sleeper. (Linux: shutdown() wakes it, close() does not; the sleeper goes on with what it had.) `NAME list` prints the cases.
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "blocking.h"

using namespace testlib;

namespace {

char g_buffer[kBlockBytes];

// A thread that makes one call.
struct Sleeper {
  const BlockingCall* which;
  int fd;
  pthread_t thread;
  pid_t tid = 0;
  ssize_t result = -2;
  int error = 0;
  char buffer[kBlockBytes] = {};

  Sleeper(const BlockingCall& c, int descriptor) : which(&c), fd(descriptor) {
    thread = start_thread(run, this);
    while (__atomic_load_n(&tid, __ATOMIC_ACQUIRE) == 0) sleep_ms(1);
    await_asleep(tid);
  }
  Sleeper(const Sleeper&) = delete;
  Sleeper& operator=(const Sleeper&) = delete;
  static void* run(void* argument) {
    auto* s = static_cast<Sleeper*>(argument);
    __atomic_store_n(&s->tid, gettid(), __ATOMIC_RELEASE);
    const ssize_t n = s->which->call(s->fd, s->buffer);
    s->error = errno;
    __atomic_store_n(&s->result, n, __ATOMIC_RELEASE);
    return nullptr;
  }
  // The call returns `want`.
  void returns(ssize_t want) {
    join_thread(thread);
    errno = error;  // shown if not
    CHECK_EQ(result, want);
  }
  // The call has not returned.
  bool asleep() const { return __atomic_load_n(&result, __ATOMIC_ACQUIRE) == -2; }
  void cancelled() {
    CHECK_EQ(pthread_cancel(thread), 0);
    void* value;
    CHECK_EQ(pthread_join(thread, &value), 0);
    CHECK(value == PTHREAD_CANCELED);
  }
};

bool reads_or_waits(const BlockingCall& c) { return c.kind != Kind::kSend; }

// ---- shutdown ---------------------------------------------------------------------------------------------------------

// shutdown() ends every sleep; a stream can be shut only once, so each call shuts one of its own.
void shutdown_wakes_server(int warm, const Sync& sync) {
  Peer peer(warm, sync);
  const int listener = listen_on("127.0.0.1");
  for (const BlockingCall& c : kBlockingCalls) {
    note(c.name);
    const int fd = connect_to("127.0.0.1", port_of(listener));
    const int other = accept_one(listener);
    no_delay(fd);
    no_delay(other);
    for (uint64_t i = 0; i < 10; i++) {  // used, as streams are
      send_pattern(fd, kUp, i * 100, 100);
      recv_pattern(other, kUp, i * 100, 100);
      send_pattern(other, kDown, i * 100, 100);
      recv_pattern(fd, kDown, i * 100, 100);
    }
    signal(SIGPIPE, SIG_IGN);
    if (c.kind == Kind::kSend) fill_up(fd, kUp, 1000);
    Sleeper s(c, fd);
    CHECK_EQ(shutdown(fd, SHUT_RDWR), 0);
    join_thread(s.thread);
    switch (c.kind) {
      case Kind::kRead: CHECK(s.result == 0); break;
      case Kind::kWait: CHECK_EQ(s.result, 1); break;
      case Kind::kSend:  // TCP may have taken a part before
        if (s.result == -1) CHECK_EQ(s.error, EPIPE);
        CHECK(s.result == -1 || s.result > 0);
    }
    close(fd);
    close(other);
  }
  close(listener);
  peer.finish();
}

// A listener that is shut down wakes accept() with EINVAL.
void shutdown_accept_server(int warm, const Sync& sync) {
  Peer peer(warm, sync);
  const int listener = listen_on("127.0.0.1");
  WhenAsleep later([listener] { shutdown(listener, SHUT_RDWR); });
  CHECK_ERRNO(accept(listener, nullptr, nullptr), EINVAL);
  close(listener);
  peer.finish();
}

// ---- the number goes away ---------------------------------------------------------------------------------------------

// Another descriptor keeps the stream. The sleeper does not notice that the number it came with is closed; bytes wake it.
// (The waiting calls look their numbers up again only when they are woken: what they report then is not tested here.)
void close_sleeper_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  for (const BlockingCall& c : kBlockingCalls) {
    if (c.kind != Kind::kRead) continue;
    note(c.name);
    const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 300);
    CHECK(copy >= 300);
    Sleeper s(c, copy);
    CHECK_EQ(close(copy), 0);
    sleep_ms(20);  // time for a wake-up that must not come
    CHECK(s.asleep());
    peer.now(Do::kSend, 100);
    s.returns(100);
    peer.took(s.buffer, 100);
  }
  peer.finish();
}

// The only descriptor is closed under the sleeper: no wake-up, the peer sees no end, its bytes are still delivered to the sleeper.
void close_last_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  Sleeper s(kBlockingCalls[1], fd);
  CHECK_EQ(close(fd), 0);
  sleep_ms(20);
  CHECK(s.asleep());
  peer.now(Do::kSend, 100);
  s.returns(100);
  pattern_check(s.buffer, 100, kUp, 0);
  // Now that the sleeper has let go of it, the stream ends.
  const Report report = peer.now(Do::kReadToEnd);
  CHECK_EQ(report.bytes, 0);
  CHECK_EQ(report.error, 0);
}

// A child of vfork has our memory, but its own numbers: that it closes the sleeper's changes nothing here.
void vfork_sleeper_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 300);
  CHECK(copy >= 300);
  Sleeper s(kBlockingCalls[1], copy);
  const pid_t child = vfork();
  CHECK(child >= 0);
  if (child == 0) {
    close(copy);
    _exit(0);
  }
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  CHECK(s.asleep());
  // The number that a stand-in of the child's would have: nobody may close it for that.
  struct rlimit limit = {};
  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const int base = limit.rlim_cur / 4 * 3 < 4096 ? static_cast<int>(limit.rlim_cur / 4 * 3) : 4096;  // as preload/pollers.cc
  const int next = fcntl(fd, F_DUPFD_CLOEXEC, base);
  CHECK(next >= base);
  CHECK_EQ(close(copy), 0);
  sleep_ms(20);
  CHECK(s.asleep());
  peer.now(Do::kSend, 100);
  s.returns(100);
  peer.took(s.buffer, 100);
  CHECK(fcntl(next, F_GETFD) >= 0);
  CHECK_EQ(close(next), 0);
  peer.finish();
}

// A blocked sender whose descriptor is closed sends everything before the end.
void close_sender_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const uint64_t filled = peer.fill();
  static char large[1 << 20];
  static constexpr BlockingCall kSendLarge = {"send a lot", Kind::kSend, [](int number, void*) {
                                                return send(number, large, sizeof large, MSG_NOSIGNAL);
                                              }};
  peer.prepare(large, sizeof large);
  Sleeper s(kSendLarge, fd);
  CHECK_EQ(close(fd), 0);
  sleep_ms(20);
  CHECK(s.asleep());
  const Report report = peer.now(Do::kReadToEnd);
  s.returns(sizeof large);
  CHECK_EQ(report.bytes, filled + sizeof large);
  CHECK_EQ(report.error, 0);
}

// dup2() puts something else at the number while a thread sleeps: the sleeper stays with the stream, the next call does not.
void dup2_sleeper_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  CHECK_EQ(write(ends[1], "pipe", 4), 4);
  const BlockingCall& read_call = kBlockingCalls[0];
  const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 300);
  Sleeper s(read_call, copy);
  CHECK_EQ(dup2(ends[0], copy), copy);
  sleep_ms(20);
  CHECK(s.asleep());
  CHECK_EQ(read(copy, g_buffer, sizeof g_buffer), 4);
  CHECK_EQ(memcmp(g_buffer, "pipe", 4), 0);
  peer.now(Do::kSend, 100);
  s.returns(100);
  peer.took(s.buffer, 100);
  close(copy);
  close(ends[0]);
  close(ends[1]);
  peer.finish();
}

// epoll: a registration goes with the last descriptor; a sleeper in epoll_wait is not woken by that.
void close_epoll_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 300);
  struct epoll_event event = {}, got;
  event.events = EPOLLIN;
  event.data.u64 = 77;
  CHECK_EQ(epoll_ctl(epoll, EPOLL_CTL_ADD, copy, &event), 0);
  WhenAsleep later([&] {
    close(copy);
    peer.start(Do::kSend, 10);
  });
  CHECK_EQ(epoll_wait(epoll, &got, 1, 5000), 1);  // the stream lives on under the other number, and so does the registration
  CHECK(got.data.u64 == 77);
  peer.settle();
  peer.take(10);
  close(epoll);
  peer.finish();
}

// ---- pthread_cancel ---------------------------------------------------------------------------------------------------

// Cancelled in each call that reads or waits: the thread ends, no byte is lost, another thread goes on with the stream.
void cancel_read_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  for (const BlockingCall& c : kBlockingCalls) {
    if (!reads_or_waits(c)) continue;
    note(c.name);
    Sleeper(c, fd).cancelled();
    peer.arrive(100);
    peer.take(100);
    peer.put(100);
    peer.drained();
  }
  peer.finish();
}

void cancel_send_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.fill();
  for (const BlockingCall& c : kBlockingCalls) {
    if (c.kind != Kind::kSend || c.call == send_file) continue;  // sendfile is no cancellation point
    note(c.name);
    Sleeper s(c, fd);
    CHECK_EQ(pthread_cancel(s.thread), 0);
    void* value;
    CHECK_EQ(pthread_join(s.thread, &value), 0);
    CHECK(value == PTHREAD_CANCELED || s.result > 0);  // TCP may have made room before
    peer.now(Do::kSend, 100);
    peer.take(100);
  }
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  peer.now(Do::kHalfClose);
  expect_eof(fd);
  close(fd);
}

// The peer of cancel_send: what a cancelled send left behind has no known contents.
void cancel_send_client(int fd, const Sync& sync) {
  Obedient self = {fd, sync};
  for (Order order = {}; order.what != Do::kHalfClose;) {
    CHECK_EQ(recv(sync.fd(), &order, sizeof order, MSG_WAITALL), sizeof order);
    const Report report = self.obey(order);
    CHECK_EQ(write(sync.fd(), &report, sizeof report), sizeof report);
  }
  char buffer[4096];
  ssize_t n;
  do n = recv(fd, buffer, sizeof buffer, 0);
  while (n > 0);
  CHECK_EQ(n, 0);
  close(fd);
  Order farewell;
  CHECK_EQ(recv(sync.fd(), &farewell, sizeof farewell, MSG_WAITALL), sizeof farewell);
  const Report report = {0, 0};
  CHECK_EQ(write(sync.fd(), &report, sizeof report), sizeof report);
}

// A request that came before is served when the call begins, even when there is data: the call is a cancellation point.
void cancel_pending_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(100);
  for (const BlockingCall& c : kBlockingCalls) {
    if (!reads_or_waits(c)) continue;
    note(c.name);
    struct {
      const BlockingCall* which;
      int fd;
    } call = {&c, fd};
    const pthread_t thread = start_thread(
        [](void* argument) -> void* {
          int old;
          CHECK_EQ(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old), 0);
          CHECK_EQ(pthread_cancel(pthread_self()), 0);
          CHECK_EQ(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &old), 0);
          auto* wanted = static_cast<decltype(call)*>(argument);
          char buffer[kBlockBytes];
          wanted->which->call(wanted->fd, buffer);
          return nullptr;
        },
        &call);
    void* value;
    CHECK_EQ(pthread_join(thread, &value), 0);
    CHECK(value == PTHREAD_CANCELED);
  }
  peer.take(100);  // nobody has taken them
  peer.finish();
}

// Cancellation disabled: the call is not touched, the request waits.
void cancel_disabled_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  static constexpr BlockingCall kDisabled = {"recv, not cancellable", Kind::kRead, [](int number, void* buffer) {
                                               int old;
                                               CHECK_EQ(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old), 0);
                                               return recv(number, buffer, kBlockBytes, 0);
                                             }};
  Sleeper s(kDisabled, fd);
  CHECK_EQ(pthread_cancel(s.thread), 0);
  sleep_ms(20);
  CHECK(s.asleep());
  peer.now(Do::kSend, 100);
  void* value;
  CHECK_EQ(pthread_join(s.thread, &value), 0);
  CHECK(value == nullptr);
  CHECK_EQ(s.result, 100);
  peer.took(s.buffer, 100);
  peer.finish();
}

// Asynchronous cancellation of a thread asleep in recv.
void cancel_async_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  static constexpr BlockingCall kAsync = {"recv, asynchronously", Kind::kRead, [](int number, void* buffer) {
                                            int old;
                                            CHECK_EQ(pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old), 0);
                                            return recv(number, buffer, kBlockBytes, 0);
                                          }};
  for (int i = 0; i < 5; i++) {
    Sleeper(kAsync, fd).cancelled();
    peer.arrive(100);
    peer.take(100);
  }
  peer.finish();
}

// A cancelled reader must not keep what another reader of the same stream needs: two sleep, one is cancelled, the other is served.
void cancel_one_of_two_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  for (int i = 0; i < 4; i++) {
    Sleeper first(kBlockingCalls[1], fd), second(kBlockingCalls[1], fd);
    Sleeper& leaves = i % 2 ? first : second;
    Sleeper& stays = i % 2 ? second : first;
    leaves.cancelled();
    peer.now(Do::kSend, 100);
    stays.returns(100);
    peer.took(stays.buffer, 100);
  }
  peer.finish();
}

// ---- looks beside ----------------------------------------------------------------------------------------------------

constexpr size_t kBesideBytes = 3000000;
bool g_beside_over = false;

void* look_all_the_time(void* argument) {
  struct pollfd p = {static_cast<int>(reinterpret_cast<intptr_t>(argument)), POLLIN, 0};
  while (!__atomic_load_n(&g_beside_over, __ATOMIC_ACQUIRE)) CHECK(poll(&p, 1, 0) >= 0);
  return nullptr;
}

// Two threads look all the time at a stream that a third reads: what they see in between is no more than a look.
void looked_at_server(int fd, const Sync& sync) {
  pthread_t lookers[2];
  for (pthread_t& looker : lookers) looker = start_thread(look_all_the_time, reinterpret_cast<void*>(static_cast<intptr_t>(fd)));
  sync.post();
  for (size_t at = 0; at < kBesideBytes; at += 1500) recv_pattern(fd, kUp, at, 1500);
  __atomic_store_n(&g_beside_over, true, __ATOMIC_RELEASE);
  for (const pthread_t looker : lookers) join_thread(looker);
}
void looked_at_client(int fd, const Sync& sync) {
  sync.wait();
  send_pattern(fd, kUp, 0, kBesideBytes);
}

const Case kCases[] = {
    {"shutdown_wakes", shutdown_wakes_server, obedient_client},
    {"shutdown_accept", shutdown_accept_server, obedient_client},
    {"close_sleeper", close_sleeper_server, obedient_client},
    {"close_last", close_last_server, obedient_client},
    {"vfork_sleeper", vfork_sleeper_server, obedient_client},
    {"close_sender", close_sender_server, obedient_client},
    {"dup2_sleeper", dup2_sleeper_server, obedient_client},
    {"close_epoll", close_epoll_server, obedient_client},
    {"cancel_read", cancel_read_server, obedient_client},
    {"cancel_send", cancel_send_server, cancel_send_client},
    {"cancel_pending", cancel_pending_server, obedient_client},
    {"cancel_disabled", cancel_disabled_server, obedient_client},
    {"cancel_async", cancel_async_server, obedient_client},
    {"cancel_one_of_two", cancel_one_of_two_server, obedient_client},
    {"looked_at", looked_at_server, looked_at_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
