// SPDX-License-Identifier: MIT
// Time-outs and low-water marks of a TCP stream: never early, never extended by other traffic. `NAME list` prints the cases.
#include <sys/epoll.h>
#include <sys/select.h>

#include <initializer_list>
#include <limits>

#include "calls.h"
#include "peer.h"

using namespace testlib;

namespace {

char g_buffer[1 << 20];

void set_timeout(int fd, int option, long ms) {
  const struct timeval tv = {ms / 1000, ms % 1000 * 1000};
  CHECK_EQ(setsockopt(fd, SOL_SOCKET, option, &tv, sizeof tv), 0);
}

void set_low_water(int fd, int bytes) { CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof bytes), 0); }

// `function` takes at least `ms` and not absurdly much more; the kernel's clock ticks and rounding may take 1 ms off.
template <typename F>
void takes(long ms, F function) {
  const int64_t start = now_ms();
  function();
  const int64_t took = now_ms() - start;
  CHECK(took >= ms - 1);
  CHECK(took < ms + 5000);
}

// ---- SO_RCVTIMEO, SO_SNDTIMEO -----------------------------------------------------------------------------------------

void rcvtimeo_calls_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  set_timeout(fd, SO_RCVTIMEO, 60);
  for (const ReadCall& c : kReadCalls) {
    note(c.name);
    takes(60, [&] { CHECK_ERRNO(c.call(fd, g_buffer, 10), EAGAIN); });
    peer.when_asleep(Do::kSend, 10);
    // A slow machine may let one time-out pass before the data comes.
    ssize_t n;
    for (int i = 0; (n = c.call(fd, g_buffer, 10)) < 0 && i < 100;) CHECK_EQ(errno, EAGAIN);
    CHECK_EQ(n, 10);
    peer.took(g_buffer, 10);
  }
  CHECK_ERRNO(recv(fd, g_buffer, 10, MSG_DONTWAIT), EAGAIN);
  set_timeout(fd, SO_RCVTIMEO, 0);
  peer.finish();
}

// The time-out is for the whole call: data that trickles in does not extend it, and is given when it is up.
void rcvtimeo_trickle_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  set_timeout(fd, SO_RCVTIMEO, 200);
  peer.start(Do::kTrickle, 100);
  ssize_t n = 0;
  takes(200, [&] { n = recv(fd, g_buffer, 100, MSG_WAITALL); });
  CHECK(n > 0 && n < 100);
  peer.took(g_buffer, static_cast<size_t>(n));
  set_timeout(fd, SO_RCVTIMEO, 0);
  peer.start(Do::kHalfClose);  // ends the trickle
  const Report rest = read_to_end(fd, kUp, static_cast<uint64_t>(n));
  CHECK_EQ(rest.error, 0);
  CHECK(static_cast<uint64_t>(n) + rest.bytes <= 100);
  close(fd);
}

// Changed by another thread: a call that already sleeps keeps its time-out, the next one has the new one.
void rcvtimeo_change_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  set_timeout(fd, SO_RCVTIMEO, 300);
  {
    WhenAsleep later([fd] { set_timeout(fd, SO_RCVTIMEO, 50); });
    takes(300, [&] { CHECK_ERRNO(recv(fd, g_buffer, 1, 0), EAGAIN); });
  }
  takes(50, [&] { CHECK_ERRNO(recv(fd, g_buffer, 1, 0), EAGAIN); });
  for (int i = 1; i <= 20; i++) {  // and while data flows
    set_timeout(fd, SO_RCVTIMEO, i % 2 ? 2000 : 0);
    peer.start(Do::kSend, 500);
    peer.take(500);
  }
  struct timeval tv = {0, 0};
  socklen_t length = sizeof tv;
  set_timeout(fd, SO_RCVTIMEO, 2000);
  CHECK_EQ(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, &length), 0);
  CHECK_EQ(tv.tv_sec, 2);
  CHECK_EQ(tv.tv_usec, 0);
  tv = {0, 2000000};
  CHECK_ERRNO(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv), EDOM);
  set_timeout(fd, SO_RCVTIMEO, 0);
  peer.finish();
}

// By the numbers that libc's names mean where time has 64 bits, and values that are for ever.
void rcvtimeo_values_server(int fd, const Sync& sync) {
  constexpr int kReceiveTimeoutNew = 66, kSendTimeoutNew = 67;  // SO_RCVTIMEO_NEW, SO_SNDTIMEO_NEW: asm-generic/socket.h
  Peer peer(fd, sync);
  set_timeout(fd, kReceiveTimeoutNew, 60);
  set_timeout(fd, kSendTimeoutNew, 60);
  takes(60, [&] { CHECK_ERRNO(recv(fd, g_buffer, 10, 0), EAGAIN); });
  for (const time_t seconds : {std::numeric_limits<time_t>::max(), std::numeric_limits<time_t>::max() / 1000, time_t{20000000000}}) {
    const struct timeval tv = {seconds, 0};
    CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv), 0);
    peer.when_asleep(Do::kSend, 10);
    CHECK_EQ(recv(fd, g_buffer, 10, 0), 10);
    peer.took(g_buffer, 10);
  }
  set_timeout(fd, SO_RCVTIMEO, 0);
  peer.finish();
}

// The time-out belongs to the socket, not to the descriptor; poll and a non-blocking socket do not care.
void rcvtimeo_shared_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const int copy = dup(fd);
  CHECK(copy >= 0);
  set_timeout(copy, SO_RCVTIMEO, 100);
  takes(100, [&] { CHECK_ERRNO(recv(fd, g_buffer, 1, 0), EAGAIN); });
  struct pollfd p = {fd, POLLIN, 0};
  takes(200, [&] { CHECK_EQ(poll(&p, 1, 200), 0); });
  set_timeout(fd, SO_RCVTIMEO, 10000);
  set_nonblocking(copy);
  const int64_t start = now_ms();
  CHECK_ERRNO(recv(fd, g_buffer, 1, 0), EAGAIN);
  CHECK(now_ms() - start < 5000);
  set_nonblocking(fd, false);
  set_timeout(fd, SO_RCVTIMEO, 0);
  close(copy);
  peer.finish();
}

// A send that is partly done when the time is up says how much; with nothing done it is EAGAIN.
void sndtimeo_partial_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  set_timeout(fd, SO_SNDTIMEO, 150);
  peer.fill();
  for (const SendCall& c : kSendCalls) {
    note(c.name);
    ssize_t n;
    int64_t start;
    do {  // TCP may make a little room by itself
      peer.prepare(g_buffer, 8192);
      start = now_ms();
      n = c.call(fd, g_buffer, 8192);
      if (n > 0) peer.wrote(static_cast<size_t>(n));
    } while (n > 0);
    CHECK_EQ(n, -1);
    CHECK_EQ(errno, EAGAIN);
    CHECK(now_ms() - start >= 149);
  }
  peer.drained();
  // Room for a part: more than everything that fits is sent partly.
  size_t total = 0;
  for (;;) {
    peer.prepare(g_buffer, sizeof g_buffer);
    const ssize_t n = send(fd, g_buffer, sizeof g_buffer, MSG_NOSIGNAL);
    if (n < 0) break;
    peer.wrote(static_cast<size_t>(n));
    total += static_cast<size_t>(n);
  }
  CHECK_EQ(errno, EAGAIN);
  CHECK(total % sizeof g_buffer != 0);  // the last one that took anything took a part
  peer.drained();
  set_timeout(fd, SO_SNDTIMEO, 0);
  peer.finish();
}

// The peer reads just in time: the blocked send goes on.
void sndtimeo_drained_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  set_timeout(fd, SO_SNDTIMEO, 10000);
  const uint64_t filled = peer.fill();
  peer.prepare(g_buffer, 100000);
  peer.when_asleep(Do::kDrain, filled);
  peer.when_asleep(Do::kDrain, 100000);
  CHECK_EQ(send(fd, g_buffer, 100000, MSG_NOSIGNAL), 100000);
  peer.settle();
  set_timeout(fd, SO_SNDTIMEO, 0);
  close(fd);
}

// ---- waiting calls ----------------------------------------------------------------------------------------------------

// Each way of waiting for one descriptor; `events` as in poll.
int wait_poll(int fd, short events, int ms) {
  struct pollfd p = {fd, events, 0};
  return poll(&p, 1, ms);
}

int wait_ppoll(int fd, short events, int ms) {
  struct pollfd p = {fd, events, 0};
  const struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  return ppoll(&p, 1, &t, nullptr);
}

struct Sets {
  fd_set read, except;
  Sets(int fd, short events) {
    FD_ZERO(&read);
    FD_ZERO(&except);
    if (events & POLLIN) FD_SET(fd, &read);
    if (events & POLLPRI) FD_SET(fd, &except);
  }
};

int wait_select(int fd, short events, int ms) {
  Sets sets(fd, events);
  struct timeval t = {ms / 1000, ms % 1000 * 1000};
  return select(fd + 1, &sets.read, nullptr, &sets.except, &t);
}

int wait_pselect(int fd, short events, int ms) {
  Sets sets(fd, events);
  const struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  return pselect(fd + 1, &sets.read, nullptr, &sets.except, &t, nullptr);
}

template <typename Wait>
int in_epoll(int fd, short events, Wait wait) {
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  CHECK(epoll >= 0);
  struct epoll_event event = {}, got[2];
  event.events = static_cast<uint32_t>(events);  // POLLIN and POLLPRI have the same values
  CHECK_EQ(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
  const int n = wait(epoll, got);
  close(epoll);
  return n;
}

int wait_epoll(int fd, short events, int ms) {
  return in_epoll(fd, events, [ms](int epoll, struct epoll_event* got) { return epoll_wait(epoll, got, 2, ms); });
}

int wait_epoll_pwait(int fd, short events, int ms) {
  return in_epoll(fd, events, [ms](int epoll, struct epoll_event* got) { return epoll_pwait(epoll, got, 2, ms, nullptr); });
}

int wait_epoll_pwait2(int fd, short events, int ms) {
  const struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  return in_epoll(fd, events, [&t](int epoll, struct epoll_event* got) { return epoll_pwait2(epoll, got, 2, &t, nullptr); });
}

struct WaitCall {
  const char* name;
  int (*call)(int fd, short events, int ms);
};

constexpr WaitCall kWaitCalls[] = {
    {"poll", wait_poll},   {"ppoll", wait_ppoll},             {"select", wait_select},           {"pselect", wait_pselect},
    {"epoll", wait_epoll}, {"epoll_pwait", wait_epoll_pwait}, {"epoll_pwait2", wait_epoll_pwait2},
};

// To the millisecond, for a stream on which nothing happens; zero returns at once, and says what there is.
void wait_exact_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  for (const WaitCall& c : kWaitCalls) {
    note(c.name);
    for (const int ms : {0, 1, 2, 5, 33, 100}) {
      const int64_t start = now_ms();
      CHECK_EQ(c.call(fd, POLLIN, ms), 0);
      const int64_t took = now_ms() - start;
      CHECK(took >= ms - 1);  // now_ms() cuts off
      CHECK(took < ms + 5000);
    }
  }
  peer.arrive(10);
  for (const WaitCall& c : kWaitCalls) {
    note(c.name);
    CHECK_EQ(c.call(fd, POLLIN, 0), 1);
    CHECK_EQ(c.call(fd, POLLIN, 10000), 1);
  }
  peer.take(10);
  peer.finish();
}

// Bytes for a stream that nobody asked about, or that asks for something else, do not extend the wait.
void wait_others_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  for (const WaitCall& c : kWaitCalls) {
    note(c.name);
    for (const int other : {ends[0], fd}) {
      peer.settle();
      peer.start(Do::kTrickle, 200);
      takes(150, [&] { CHECK_EQ(c.call(other, other == fd ? POLLPRI : POLLIN, 150), 0); });
      peer.start(Do::kSend, 0);  // ends the trickle
    }
  }
  peer.settle();
  close(ends[0]);
  close(ends[1]);
  peer.now(Do::kHalfClose);
  const Report report = read_to_end(fd, kUp, 0);
  CHECK_EQ(report.error, 0);
  CHECK(report.bytes > 0);
  CHECK(report.bytes < 200 * 14);
  close(fd);
}

// ---- SO_RCVLOWAT ------------------------------------------------------------------------------------------------------

// A blocking read waits for so many bytes; one that asks for less than that waits for what it asks for.
void lowat_recv_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  set_low_water(fd, 100);
  for (const ReadCall& c : kReadCalls) {
    note(c.name);
    for (int i = 0; i < 4; i++) peer.when_asleep(Do::kSend, 25);
    CHECK_EQ(c.call(fd, g_buffer, 1000), 100);
    peer.took(g_buffer, 100);
  }
  peer.settle();
  peer.arrive(10);
  CHECK_EQ(recv(fd, g_buffer, 10, 0), 10);
  peer.took(g_buffer, 10);
  peer.arrive(10);
  CHECK_EQ(recv(fd, g_buffer, 50, MSG_DONTWAIT), 10);
  peer.took(g_buffer, 10);
  peer.when_asleep(Do::kSend, 10);
  peer.when_asleep(Do::kHalfClose);
  CHECK_EQ(recv(fd, g_buffer, 1000, 0), 10);  // end of file ends the wait
  peer.took(g_buffer, 10);
  expect_eof(fd);
  close(fd);
}

// poll, select and epoll say readable only when so many bytes are there.
void lowat_wait_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  set_low_water(fd, 100);
  int value = 0;
  socklen_t length = sizeof value;
  CHECK_EQ(getsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &value, &length), 0);
  CHECK_EQ(value, 100);
  peer.arrive(99);
  for (const WaitCall& c : kWaitCalls) {
    note(c.name);
    CHECK_EQ(c.call(fd, POLLIN, 20), 0);
  }
  peer.arrive(1);
  for (const WaitCall& c : kWaitCalls) {
    note(c.name);
    CHECK_EQ(c.call(fd, POLLIN, 0), 1);
  }
  peer.take(100);
  for (const WaitCall& c : kWaitCalls) {
    note(c.name);
    peer.when_asleep(Do::kSend, 60);
    peer.when_asleep(Do::kSend, 60);
    CHECK_EQ(c.call(fd, POLLIN, 5000), 1);
    peer.settle();
    peer.take(120);
  }
  peer.arrive(5);
  peer.now(Do::kHalfClose);
  for (const WaitCall& c : kWaitCalls) CHECK_EQ(c.call(fd, POLLIN, 5000), 1);  // an end is readable whatever the mark
  peer.take(5);
  close(fd);
}

// Set late, when data is already there; lowered again, and 0 means 1.
void lowat_late_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(50);
  CHECK_EQ(wait_poll(fd, POLLIN, 0), 1);
  set_low_water(fd, 100);
  CHECK_EQ(wait_poll(fd, POLLIN, 20), 0);
  CHECK_EQ(wait_epoll(fd, POLLIN, 20), 0);
  set_low_water(fd, 50);
  CHECK_EQ(wait_poll(fd, POLLIN, 0), 1);
  CHECK_EQ(wait_epoll(fd, POLLIN, 0), 1);
  set_low_water(fd, 0);
  int value = -1;
  socklen_t length = sizeof value;
  CHECK_EQ(getsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &value, &length), 0);
  CHECK_EQ(value, 1);
  peer.take(49);
  CHECK_EQ(wait_poll(fd, POLLIN, 0), 1);
  peer.take(1);
  // Lowered by another thread: one that sleeps in poll is woken when that makes it ready.
  set_low_water(fd, 100);
  peer.arrive(50);
  WhenAsleep later([fd] { set_low_water(fd, 1); });
  CHECK_EQ(wait_poll(fd, POLLIN, 5000), 1);
  peer.take(50);
  peer.finish();
}

const Case kCases[] = {
    {"rcvtimeo_calls", rcvtimeo_calls_server, obedient_client},
    {"rcvtimeo_trickle", rcvtimeo_trickle_server, obedient_client},
    {"rcvtimeo_change", rcvtimeo_change_server, obedient_client},
    {"rcvtimeo_values", rcvtimeo_values_server, obedient_client},
    {"rcvtimeo_shared", rcvtimeo_shared_server, obedient_client},
    {"sndtimeo_partial", sndtimeo_partial_server, obedient_client},
    {"sndtimeo_drained", sndtimeo_drained_server, obedient_client},
    {"wait_exact", wait_exact_server, obedient_client},
    {"wait_others", wait_others_server, obedient_client},
    {"lowat_recv", lowat_recv_server, obedient_client},
    {"lowat_wait", lowat_wait_server, obedient_client},
    {"lowat_late", lowat_late_server, obedient_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
