// SPDX-License-Identifier: MIT
// Fairness in one set, counted in calls: streams among each other, streams beside the kernel's descriptors, several threads.
// `NAME list` prints the cases.
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include "epoll_case.h"

using namespace testlib;

namespace {

// In the kernel each of n ready descriptors is told within ceil(n / maxevents) calls. Rings and kernel are two worlds and share the
// calls of a set in turns, so a bound is given a factor; starving knows none.
constexpr int kPatience = 64;

void open_ready(Streams* s, int count) {
  s->more_up_to(count);
  for (int i = 0; i < count; i++) s->send(10, i);
}

// The indices that one call tells, as bits.
uint32_t told_by(const Epoll& e, int max) {
  struct epoll_event got[kStreamsMax];
  const int n = epoll_wait(e.fd(), got, max, 5000);
  CHECK(n > 0 && n <= max);
  uint32_t told = 0;
  for (int i = 0; i < n; i++) {
    const uint32_t bit = 1u << got[i].data.u32;
    CHECK(!(told & bit));  // never twice in one call
    told |= bit;
  }
  return told;
}

void level_server(int fd, const Sync& sync) {
  constexpr int kCount = 13;
  Streams s(fd, sync);
  open_ready(&s, kCount);
  const Epoll e;
  for (int i = 0; i < kCount; i++) e.add(s.fd(i), EPOLLIN, static_cast<uint64_t>(i));
  const int sizes[] = {1, 4, 5, 12};
  for (const int max : sizes) {
    for (int round = 0; round < 5; round++) {
      uint32_t told = 0;
      for (int call = 0; call < (kCount + max - 1) / max; call++) told |= told_by(e, max);
      CHECK_EQ(told, (1u << kCount) - 1);
    }
  }
  // With one of them drained the others go on in turns.
  s.take(10, 3);
  for (int round = 0; round < 3; round++) {
    uint32_t told = 0;
    for (int call = 0; call < kCount; call++) told |= told_by(e, 1);
    CHECK_EQ(told, ((1u << kCount) - 1) & ~(1u << 3));
  }
  for (int i = 0; i < kCount; i++)
    if (i != 3) s.take(10, i);
  e.quiet();
}

void edge_server(int fd, const Sync& sync) {
  // Each edge is told once, however small the array.
  constexpr int kCount = 9;
  Streams s(fd, sync);
  s.more_up_to(kCount);
  const Epoll e;
  for (int i = 0; i < kCount; i++) e.add(s.fd(i), EPOLLIN | EPOLLET, static_cast<uint64_t>(i));
  const int sizes[] = {1, 2, 8};
  for (const int max : sizes) {
    for (int i = 0; i < kCount; i++) s.send(10, i);
    uint32_t told = 0;
    for (int call = 0; call < (kCount + max - 1) / max; call++) {
      const uint32_t more = told_by(e, max);
      CHECK(!(told & more));
      told |= more;
    }
    CHECK_EQ(told, (1u << kCount) - 1);
    struct epoll_event got;
    CHECK_EQ(epoll_wait(e.fd(), &got, 1, 0), 0);
    for (int i = 0; i < kCount; i++) s.take(10, i);
  }
}

// Calls epoll_wait until `which` is told; the number of calls.
int calls_until(const Epoll& e, uint32_t which, int max) {
  int calls = 1;
  while (!(told_by(e, max) & (1u << which))) {
    CHECK(calls < 10000);
    calls++;
  }
  return calls;
}

void kernel_beside_busy_server(int fd, const Sync& sync) {
  // Streams that are always ready do not keep a pipe, an eventfd, a timer or a listener waiting; nor a stream.
  constexpr int kBusy = 4;
  Streams s(fd, sync);
  open_ready(&s, kBusy);
  const int late = s.more();
  const Epoll e;
  for (int i = 0; i < kBusy; i++) e.add(s.fd(i), EPOLLIN | EPOLLOUT, static_cast<uint64_t>(i));
  e.add(s.fd(late), EPOLLIN, static_cast<uint64_t>(late));
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  const int event = eventfd(0, 0), timer = timerfd_create(CLOCK_MONOTONIC, 0), listener = listen_on("127.0.0.1");
  CHECK(event >= 0 && timer >= 0);
  const int watched[] = {ends[0], event, timer, listener};
  for (uint32_t k = 0; k < 4; k++) e.add(watched[k], EPOLLIN, 20 + k);
  const int sizes[] = {1, 2, 16};
  for (const int max : sizes) {
    for (int call = 0; call < 50; call++) CHECK_EQ(told_by(e, max) & ~((1u << kBusy) - 1), 0);
    char byte;
    CHECK_EQ(write(ends[1], "x", 1), 1);
    CHECK(calls_until(e, 20, max) <= kPatience);
    CHECK_EQ(read(ends[0], &byte, 1), 1);
    uint64_t count = 1;
    CHECK_EQ(write(event, &count, sizeof count), sizeof count);
    CHECK(calls_until(e, 21, max) <= kPatience);
    CHECK_EQ(read(event, &count, sizeof count), sizeof count);
    const struct itimerspec now = {{0, 0}, {0, 1}};
    CHECK_EQ(timerfd_settime(timer, 0, &now, nullptr), 0);
    struct pollfd p = {timer, POLLIN, 0};
    CHECK_EQ(poll(&p, 1, 5000), 1);
    CHECK(calls_until(e, 22, max) <= kPatience);
    CHECK_EQ(read(timer, &count, sizeof count), sizeof count);
    const int client = connect_to("127.0.0.1", port_of(listener));
    CHECK(calls_until(e, 23, max) <= kPatience);
    close(accept_one(listener));
    close(client);
    s.send(1, late);
    CHECK(calls_until(e, static_cast<uint32_t>(late), max) <= kPatience);
    s.take(1, late);
  }
  for (const int one : watched) close(one);
  close(ends[1]);
}

void stream_beside_busy_server(int fd, const Sync& sync) {
  // The other way round: always ready descriptors of the kernel, more than fit into the array, and a stream.
  constexpr int kBusy = 6;
  Streams s(fd, sync);
  const Epoll e;
  int events[kBusy];
  for (int k = 0; k < kBusy; k++) {
    events[k] = eventfd(1, 0);
    CHECK(events[k] >= 0);
    e.add(events[k], EPOLLIN, 20 + static_cast<uint64_t>(k));
  }
  e.add(fd, EPOLLIN, 0);
  const int sizes[] = {1, 2, 6, 16};
  for (const int max : sizes) {
    for (int call = 0; call < 50; call++) CHECK_EQ(told_by(e, max) & 1, 0);
    s.send(10);
    CHECK(calls_until(e, 0, max) <= kPatience);
    CHECK(calls_until(e, 0, max) <= kPatience);
    for (uint32_t k = 0; k < kBusy; k++) CHECK(calls_until(e, 20 + k, max) <= kPatience);
    s.take(10);
  }
  for (const int one : events) close(one);
}

void now_server(int fd, const Sync& sync) {
  // An array of one and no time to wait: what is ready is told, whatever else goes on in the set.
  constexpr int kCount = 5;
  Streams s(fd, sync);
  s.more_up_to(kCount);
  const int event = eventfd(1, 0);
  for (int round = 0; round < 5; round++) {
    const Epoll e;
    for (int i = 0; i < kCount; i++) e.add(s.fd(i), EPOLLIN | (round % 2 ? EPOLLET : 0u), static_cast<uint64_t>(i));
    e.add(event, EPOLLIN, 20);
    struct epoll_event got;
    for (int call = 0; call < 5; call++) {
      CHECK_EQ(epoll_wait(e.fd(), &got, 1, 0), 1);
      CHECK_EQ(got.data.u64, 20);
    }
    s.send(1, round);
    CHECK(calls_until(e, static_cast<uint32_t>(round), 1) <= kPatience);
    s.take(1, round);
    CHECK_EQ(epoll_wait(e.fd(), &got, 1, 0), 1);
    CHECK_EQ(got.data.u64, 20);
  }
  close(event);
}

// ---- threads -----------------------------------------------------------------------------------------------------------

struct Worker {
  const Epoll* epoll;
  int* tells;  // of all threads
};

// Counts what it is told until the end is told (data 99), which it leaves there for the others.
void* count_tells(void* argument) {
  auto* w = static_cast<Worker*>(argument);
  for (;;) {
    struct epoll_event got;
    CHECK_EQ(epoll_wait(w->epoll->fd(), &got, 1, 10000), 1);
    if (got.data.u64 == 99) return nullptr;
    __atomic_add_fetch(w->tells, 1, __ATOMIC_SEQ_CST);
  }
}

template <uint32_t mode>
void one_thread_server(int fd, const Sync& sync) {
  // Several threads asleep: an edge, or a shot, wakes one.
  constexpr int kThreads = 4;
  Streams s(fd, sync);
  const Epoll e;
  e.add(fd, EPOLLIN | mode, 0);
  const int stop = eventfd(0, 0);
  e.add(stop, EPOLLIN, 99);
  int tells = 0;
  Worker worker = {&e, &tells};
  pthread_t threads[kThreads];
  for (pthread_t& t : threads) t = start_thread(count_tells, &worker);
  constexpr int kMessages = 10;
  for (int i = 0; i < kMessages; i++) {
    sleep_ms(10);  // asleep again
    s.send(10);
    const int64_t deadline = now_ms() + 5000;
    while (__atomic_load_n(&tells, __ATOMIC_SEQ_CST) == i && now_ms() < deadline) sleep_ms(1);
    sleep_ms(10);
    CHECK_EQ(__atomic_load_n(&tells, __ATOMIC_SEQ_CST), i + 1);
    s.take(10);
    if (mode & EPOLLONESHOT) CHECK_EQ(e.control(EPOLL_CTL_MOD, fd, EPOLLIN | mode, 0), 0);
  }
  sleep_ms(20);
  const uint64_t one = 1;
  CHECK_EQ(write(stop, &one, sizeof one), sizeof one);
  for (const pthread_t t : threads) join_thread(t);
  CHECK_EQ(tells, kMessages);
  close(stop);
}

// Everything that arrives is handled, by whichever thread, and nothing twice.
struct Pool {
  Streams* streams;
  const Epoll* epoll;
  uint32_t mode;
  int streams_count;
  long per_stream;
  long done[kStreamsMax];  // with EPOLLONESHOT one thread at a time; otherwise atomic
  int stop;
};

void serve_stream(Pool* pool, int i) {
  const int fd = pool->streams->fd(i);
  for (;;) {
    char buffer[256];
    const ssize_t n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0) {
      CHECK_EQ(errno, EAGAIN);
      return;
    }
    CHECK(n > 0);
    const auto got = static_cast<size_t>(n);
    if (pool->mode & EPOLLONESHOT) pattern_check(buffer, got, seed_up(i), static_cast<uint64_t>(pool->done[i]));
    const long total = __atomic_add_fetch(&pool->done[i], n, __ATOMIC_SEQ_CST);
    CHECK(total <= pool->per_stream);
    // Answers each message, as a server does.
    send_all(fd, buffer, got);
    long all = 0;
    for (int k = 0; k < pool->streams_count; k++) all += __atomic_load_n(&pool->done[k], __ATOMIC_SEQ_CST);
    const uint64_t one = 1;
    if (all == pool->per_stream * pool->streams_count) CHECK_EQ(write(pool->stop, &one, sizeof one), sizeof one);
  }
}

void* serve(void* argument) {
  auto* pool = static_cast<Pool*>(argument);
  for (;;) {
    struct epoll_event got[2];
    const int n = epoll_wait(pool->epoll->fd(), got, 2, 10000);
    CHECK(n > 0);
    for (int k = 0; k < n; k++) {
      if (got[k].data.u64 == 99) continue;
      const int i = static_cast<int>(got[k].data.u32);
      serve_stream(pool, i);
      if (pool->mode & EPOLLONESHOT)
        CHECK_EQ(pool->epoll->control(EPOLL_CTL_MOD, pool->streams->fd(i), EPOLLIN | pool->mode, static_cast<uint64_t>(i)), 0);
    }
    if (got[0].data.u64 == 99) return nullptr;
  }
}

constexpr int kStressStreams = 6;
constexpr int kStressMessages = 700;  // on each stream
constexpr long kMessageBytes = 20;

template <uint32_t mode>
void stress_server(int fd, const Sync& sync) {
  constexpr int kThreads = 4;
  Streams s(fd, sync);
  s.more_up_to(kStressStreams);
  const Epoll e;
  const int stop = eventfd(0, 0);
  e.add(stop, EPOLLIN, 99);
  Pool pool = {&s, &e, mode, kStressStreams, kStressMessages * kMessageBytes, {}, stop};
  for (int i = 0; i < kStressStreams; i++) e.add(s.fd(i), EPOLLIN | mode, static_cast<uint64_t>(i));
  pthread_t threads[kThreads];
  for (pthread_t& t : threads) t = start_thread(serve, &pool);
  sync.post();  // go
  for (const pthread_t t : threads) join_thread(t);
  for (int i = 0; i < kStressStreams; i++) CHECK_EQ(pool.done[i], kStressMessages * kMessageBytes);
  sync.wait();  // all answers have come
  close(stop);
}

// Opens the streams the server asks for, then sends on all of them as fast as the answers come.
void stress_client(int fd, const Sync& sync) {
  int fds[kStressStreams] = {fd};
  for (int i = 1; i < kStressStreams; i++) {
    Order order;
    CHECK_EQ(recv(sync.fd(), &order, sizeof order, MSG_WAITALL), sizeof order);
    CHECK(order.command == Command::kOpen);
    fds[i] = connect_to("127.0.0.1", static_cast<int>(order.number));
    no_delay(fds[i]);
    warm_client(fds[i]);
  }
  sync.wait();
  Random random(5);
  uint64_t sent[kStressStreams] = {}, got[kStressStreams] = {};
  constexpr uint64_t kTotal = kStressMessages * kMessageBytes;
  for (uint64_t all = 0; all < kTotal * kStressStreams; all += kMessageBytes) {
    auto i = static_cast<int>(random.next() % kStressStreams);
    while (sent[i] == kTotal) i = (i + 1) % kStressStreams;
    send_pattern(fds[i], seed_up(i), sent[i], kMessageBytes);
    sent[i] += kMessageBytes;
    // Now and then waits for all answers of a stream, so that the server's threads go to sleep.
    if (random.next() % 8 != 0 && sent[i] - got[i] < 1000) continue;
    for (char buffer[kMessageBytes]; got[i] < sent[i]; got[i] += kMessageBytes) recv_all(fds[i], buffer, sizeof buffer);
  }
  for (int i = 0; i < kStressStreams; i++)
    for (char buffer[kMessageBytes]; got[i] < kTotal; got[i] += kMessageBytes) recv_all(fds[i], buffer, sizeof buffer);
  sync.post();
  Order order;
  CHECK_EQ(recv(sync.fd(), &order, sizeof order, MSG_WAITALL), sizeof order);
  CHECK(order.command == Command::kEnd);
}

const Case kCases[] = {
    {"level", level_server, told_client},
    {"edge", edge_server, told_client},
    {"kernel_beside_busy", kernel_beside_busy_server, told_client},
    {"stream_beside_busy", stream_beside_busy_server, told_client},
    {"now", now_server, told_client},
    {"edge_one_thread", one_thread_server<EPOLLET>, told_client},
    {"once_one_thread", one_thread_server<EPOLLONESHOT>, told_client},
    {"stress_level", stress_server<0>, stress_client},
    {"stress_edge", stress_server<EPOLLET>, stress_client},
    {"stress_once", stress_server<EPOLLONESHOT>, stress_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
