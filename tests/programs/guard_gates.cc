// SPDX-License-Identifier: MIT
// Does one operation over and over, in one thread with both ends of its streams, so that nothing sleeps and every run does the same: the
// statistics of a long and of a short run differ by what the operation costs in gates (tests/integration/guard_test.py).
//
// both --op=NAME --rounds=N; `list` prints the names.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>

#include "calls.h"

using namespace testlib;

namespace {

constexpr size_t kSmall = 64, kLarge = 100000, kStreams = 10;

struct Ends {
  int in, out;  // sent into `in`, read from `out`
};

Ends g_ends[kStreams];
char g_buffer[kLarge];
int g_epoll, g_file;

int in(size_t i = 0) { return g_ends[i].in; }
int out(size_t i = 0) { return g_ends[i].out; }

void put(size_t bytes, size_t i = 0) { CHECK_EQ(send(in(i), g_buffer, bytes, MSG_NOSIGNAL), bytes); }
void take(size_t bytes, size_t i = 0) { CHECK_EQ(recv(out(i), g_buffer, bytes, 0), bytes); }

// All streams become readable, `look` sees that, and they are emptied.
template <typename F>
void among_ten(F look) {
  for (size_t i = 0; i < kStreams; i++) put(kSmall, i);
  look();
  for (size_t i = 0; i < kStreams; i++) take(kSmall, i);
}

int poll_all(struct pollfd* fds) {
  for (size_t i = 0; i < kStreams; i++) fds[i] = {out(i), POLLIN, 0};
  return poll(fds, kStreams, 0);
}

int select_all() {
  fd_set set;
  FD_ZERO(&set);
  for (size_t i = 0; i < kStreams; i++) FD_SET(out(i), &set);
  struct timeval now = {0, 0};
  return select(out(kStreams - 1) + 1, &set, nullptr, nullptr, &now);
}

struct Operation {
  const char* name;
  void (*once)();
};

const Operation kOperations[] = {
    {"send_recv", [] { put(kSmall), take(kSmall); }},
    {"send_send_recv", [] { put(kSmall), put(kSmall), take(2 * kSmall); }},
    {"send_recv_recv", [] { put(2 * kSmall), take(kSmall), take(kSmall); }},
    {"large", [] { put(kLarge), take(kLarge); }},
    {"vectors",
     [] {
       struct iovec iov[40];
       for (int i = 0; i < 40; i++) iov[i] = {g_buffer + i * 10, 10};
       CHECK_EQ(writev(in(), iov, 40), 400);
       CHECK_EQ(readv(out(), iov, 40), 400);
     }},
    {"messages",
     [] {
       struct iovec iov = {g_buffer, kSmall};
       const struct mmsghdr one = {one_entry(&iov), 0};
       struct mmsghdr four[4] = {one, one, one, one};
       CHECK_EQ(sendmmsg(in(), four, 4, MSG_NOSIGNAL), 4);
       CHECK_EQ(recvmmsg(out(), four, 4, 0, nullptr), 4);
     }},
    {"sendfile_recv",
     [] {
       off_t start = 0;
       CHECK_EQ(sendfile(in(), g_file, &start, kSmall), kSmall);
       take(kSmall);
     }},
    {"peek",
     [] {
       put(kSmall);
       CHECK_EQ(recv(out(), g_buffer, kSmall, MSG_PEEK), kSmall);
       take(kSmall);
     }},
    {"recv_nothing", [] { CHECK_ERRNO(recv(out(), g_buffer, kSmall, MSG_DONTWAIT), EAGAIN); }},
    {"recv_sleeps", [] { CHECK_ERRNO(recv(out(), g_buffer, kSmall, 0), EAGAIN); }},
    {"fionread",
     [] {
       int bytes;
       CHECK_EQ(ioctl(out(), FIONREAD, &bytes), 0);
     }},
    {"poll_ready",
     [] {
       put(kSmall);
       struct pollfd p = {out(), POLLIN, 0};
       CHECK_EQ(poll(&p, 1, -1), 1);
       take(kSmall);
     }},
    {"poll_nothing",
     [] {
       struct pollfd p = {out(), POLLIN, 0};
       CHECK_EQ(poll(&p, 1, 0), 0);
     }},
    {"poll_sleeps",
     [] {
       struct pollfd p = {out(), POLLIN, 0};
       CHECK_EQ(poll(&p, 1, 1), 0);
     }},
    {"poll_ten",
     [] {
       among_ten([] {
         struct pollfd fds[kStreams];
         CHECK_EQ(poll_all(fds), kStreams);
       });
     }},
    {"poll_ten_nothing",
     [] {
       struct pollfd fds[kStreams];
       CHECK_EQ(poll_all(fds), 0);
     }},
    {"select_ten", [] { among_ten([] { CHECK_EQ(select_all(), kStreams); }); }},
    {"epoll_ready",
     [] {
       put(kSmall);
       struct epoll_event event;
       CHECK_EQ(epoll_wait(g_epoll, &event, 1, -1), 1);
       take(kSmall);
     }},
    {"epoll_nothing",
     [] {
       struct epoll_event events[kStreams];
       CHECK_EQ(epoll_wait(g_epoll, events, kStreams, 0), 0);
     }},
    {"epoll_sleeps",
     [] {
       struct epoll_event events[kStreams];
       CHECK_EQ(epoll_wait(g_epoll, events, kStreams, 1), 0);
     }},
    {"epoll_ten",
     [] {
       among_ten([] {
         struct epoll_event events[kStreams];
         CHECK_EQ(epoll_wait(g_epoll, events, kStreams, -1), kStreams);
       });
     }},
};

void connect_all(int listener) {
  for (Ends& e : g_ends) {
    e.in = connect_to("127.0.0.1", port_of(listener));
    e.out = accept_one(listener);
    no_delay(e.in);
    no_delay(e.out);
    for (int i = 0; i < kWarmTrips; i++) {
      send_all(e.in, g_buffer, kSmall);
      recv_all(e.out, g_buffer, kSmall);
      send_all(e.out, g_buffer, kSmall);
      recv_all(e.in, g_buffer, kSmall);
    }
  }
  const struct timeval soon = {0, 1000};
  CHECK_EQ(setsockopt(out(), SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon), 0);
  g_epoll = epoll_create1(EPOLL_CLOEXEC);
  CHECK(g_epoll >= 0);
  for (const Ends& e : g_ends) {
    struct epoll_event event = {};
    event.events = EPOLLIN;
    CHECK_EQ(epoll_ctl(g_epoll, EPOLL_CTL_ADD, e.out, &event), 0);
  }
  g_file = memfd_create("file", MFD_CLOEXEC);
  CHECK_EQ(write(g_file, g_buffer, kLarge), kLarge);
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  if (options.is("list")) {
    for (const Operation& o : kOperations) printf("%s\n", o.name);
    return 0;
  }
  CHECK(options.is("both"));
  const Operation* operation = nullptr;
  for (const Operation& o : kOperations)
    if (strcmp(o.name, options.text("op", "")) == 0) operation = &o;
  CHECK(operation != nullptr);
  const int listener = listen_on("127.0.0.1");
  connect_all(listener);
  for (long i = options.number("rounds", 100); i > 0; i--) operation->once();
  return succeed();
}
