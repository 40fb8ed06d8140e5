// SPDX-License-Identifier: MIT
// Registrations: epoll_ctl with all its errors, one stream in several sets or several times in one, what closing does to a set.
// `NAME list` prints the cases.
#include <sys/eventfd.h>

#include "epoll_case.h"

using namespace testlib;

namespace {

void modify_server(int fd, const Sync& sync) {
  Streams s(fd, sync);
  const Epoll e;
  e.add(fd, EPOLLIN);
  s.send(100);
  CHECK_EQ(e.now(fd), EPOLLIN);
  e.mod(fd, EPOLLIN);
  CHECK_EQ(e.now(fd), EPOLLIN);
  e.mod(fd, 0);
  e.quiet();
  e.mod(fd, EPOLLOUT);
  CHECK_EQ(e.now(fd), EPOLLOUT);
  e.mod(fd, EPOLLIN);
  CHECK_EQ(e.now(fd), EPOLLIN);
  e.mod(fd, EPOLLIN | EPOLLET);
  CHECK_EQ(e.now(fd), EPOLLIN);
  e.quiet();
  e.mod(fd, EPOLLOUT | EPOLLET);
  CHECK_EQ(e.now(fd), EPOLLOUT);
  e.quiet();
  e.mod(fd, EPOLLIN | EPOLLET);
  CHECK_EQ(e.now(fd), EPOLLIN);
  e.quiet();
  e.mod(fd, EPOLLET);
  e.quiet();
  e.mod(fd, EPOLLIN);  // level again
  CHECK_EQ(e.now(fd), EPOLLIN);
  CHECK_EQ(e.now(fd), EPOLLIN);
  s.take(100);
  e.quiet();
}

void add_late_server(int fd, const Sync& sync) {
  // Ready before it is added: level and edge report it, edge once.
  Streams s(fd, sync);
  s.send(100);
  const Epoll level, edge, once;
  level.add(fd, EPOLLIN);
  edge.add(fd, EPOLLIN | EPOLLET);
  once.add(fd, EPOLLIN | EPOLLONESHOT);
  CHECK_EQ(level.now(fd), EPOLLIN);
  CHECK_EQ(level.now(fd), EPOLLIN);
  CHECK_EQ(edge.now(fd), EPOLLIN);
  edge.quiet();
  CHECK_EQ(once.now(fd), EPOLLIN);
  once.quiet();
  s.take(100);
  level.quiet();
  s.send(1);
  CHECK_EQ(edge.now(fd), EPOLLIN);
  once.quiet();
  // Read before the first look: an edge of data that is gone is none.
  s.take(1);
  s.send(1);
  s.take(1);
  edge.quiet();
  level.quiet();
}

void again_server(int fd, const Sync& sync) {
  // DEL with a null event, then ADD again, with other data and another mode.
  Streams s(fd, sync);
  const Epoll e;
  e.add(fd, EPOLLIN, 1);
  s.send(10);
  for (uint64_t round = 2; round < 8; round++) {
    e.del(fd);
    struct epoll_event got;
    CHECK_EQ(epoll_wait(e.fd(), &got, 1, 0), 0);
    e.add(fd, EPOLLIN | (round % 2 ? EPOLLET : 0u), round);
    CHECK_EQ(epoll_wait(e.fd(), &got, 1, 0), 1);
    CHECK_EQ(got.data.u64, round);
    CHECK_EQ(epoll_wait(e.fd(), &got, 1, 0), round % 2 ? 0 : 1);
  }
  s.take(10);
}

void codes_server(int fd, const Sync& sync) {
  Streams s(fd, sync);
  const Epoll e;
  const int regular = open("/proc/self/exe", O_RDONLY);
  const int directory = open("/", O_RDONLY);
  CHECK(regular >= 0 && directory >= 0);
  CHECK_ERRNO(e.control(EPOLL_CTL_ADD, regular, EPOLLIN, 0), EPERM);
  CHECK_ERRNO(e.control(EPOLL_CTL_ADD, directory, EPOLLIN, 0), EPERM);
  struct epoll_event event = {};
  CHECK_ERRNO(epoll_ctl(fd, EPOLL_CTL_ADD, e.fd(), &event), EINVAL);  // not an epoll descriptor
  const int other = s.more();
  CHECK_ERRNO(epoll_ctl(fd, EPOLL_CTL_ADD, s.fd(other), &event), EINVAL);
  CHECK_ERRNO(epoll_ctl(regular, EPOLL_CTL_ADD, fd, &event), EINVAL);
  CHECK_ERRNO(epoll_ctl(-1, EPOLL_CTL_ADD, fd, &event), EBADF);
  CHECK_ERRNO(e.control(EPOLL_CTL_ADD, -1, EPOLLIN, 0), EBADF);
  CHECK_ERRNO(e.control(EPOLL_CTL_ADD, e.fd(), EPOLLIN, 0), EINVAL);
  CHECK_ERRNO(e.control(EPOLL_CTL_MOD, fd, EPOLLIN, 0), ENOENT);
  CHECK_ERRNO(epoll_ctl(e.fd(), EPOLL_CTL_DEL, fd, nullptr), ENOENT);
  CHECK_ERRNO(epoll_ctl(e.fd(), EPOLL_CTL_ADD, fd, hidden<struct epoll_event*>(nullptr)), EFAULT);
  CHECK_ERRNO(e.control(hidden(99), fd, EPOLLIN, 0), EINVAL);
  e.add(fd, EPOLLIN);
  CHECK_ERRNO(e.control(EPOLL_CTL_ADD, fd, EPOLLOUT, 0), EEXIST);
  CHECK_ERRNO(epoll_ctl(e.fd(), EPOLL_CTL_MOD, fd, hidden<struct epoll_event*>(nullptr)), EFAULT);
  CHECK_ERRNO(e.control(hidden(99), fd, EPOLLIN, 0), EINVAL);
  CHECK_ERRNO(e.control(EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLEXCLUSIVE, 0), EINVAL);
  e.quiet();  // none of these changed anything
  s.send(1);
  CHECK_EQ(e.now(fd), EPOLLIN);
  e.del(fd);
  CHECK_ERRNO(epoll_ctl(e.fd(), EPOLL_CTL_DEL, fd, nullptr), ENOENT);
  CHECK_ERRNO(e.control(EPOLL_CTL_MOD, fd, EPOLLIN, 0), ENOENT);
  // EPOLLEXCLUSIVE goes with IN, OUT, ERR, HUP, WAKEUP and ET only, and cannot be modified.
  CHECK_ERRNO(e.control(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLONESHOT | EPOLLEXCLUSIVE, 0), EINVAL);
  CHECK_ERRNO(e.control(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLRDHUP | EPOLLEXCLUSIVE, 0), EINVAL);
  e.add(fd, EPOLLIN | EPOLLEXCLUSIVE);
  CHECK_ERRNO(e.control(EPOLL_CTL_MOD, fd, EPOLLIN, 0), EINVAL);
  CHECK_ERRNO(e.control(EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLEXCLUSIVE, 0), EINVAL);
  CHECK_EQ(e.now(fd), EPOLLIN);
  s.take(1);
  e.quiet();
  close(regular);
  close(directory);
}

void fault_server(int fd, const Sync& sync) {
  // A bad array is told of when there is something to store, and the event is not lost by it.
  Streams s(fd, sync);
  const Epoll e;
  e.add(fd, EPOLLIN | EPOLLET);
  auto* bad = hidden(reinterpret_cast<struct epoll_event*>(64));
  CHECK_EQ(epoll_wait(e.fd(), bad, 1, 0), 0);
  s.send(1);
  CHECK_ERRNO(epoll_wait(e.fd(), bad, 1, 0), EFAULT);
  CHECK_EQ(e.now(fd), EPOLLIN);
  s.take(1);
}

void data_server(int fd, const Sync& sync) {
  Streams s(fd, sync);
  const Epoll e;
  struct epoll_event event = {}, got = {};
  event.events = EPOLLIN;
  event.data.ptr = &event;
  CHECK_EQ(epoll_ctl(e.fd(), EPOLL_CTL_ADD, fd, &event), 0);
  s.send(1);
  CHECK_EQ(epoll_wait(e.fd(), &got, 1, 0), 1);
  CHECK(got.data.ptr == &event);
  const uint64_t values[] = {0, 1, ~uint64_t{0}, uint64_t{1} << 63, 0x8000000000ffffffu, static_cast<uint64_t>(fd)};
  for (const uint64_t value : values) {
    CHECK_EQ(e.control(EPOLL_CTL_MOD, fd, EPOLLIN, value), 0);
    CHECK_EQ(epoll_wait(e.fd(), &got, 1, 0), 1);
    CHECK_EQ(got.data.u64, value);
  }
  s.take(1);
}

void two_sets_server(int fd, const Sync& sync) {
  // One stream, a level and two edge-triggered sets: each has its own say.
  Streams s(fd, sync);
  const Epoll level, edge, out;
  level.add(fd, EPOLLIN);
  edge.add(fd, EPOLLIN | EPOLLET);
  out.add(fd, EPOLLOUT | EPOLLET);
  CHECK_EQ(out.now(fd), EPOLLOUT);
  for (int round = 0; round < 3; round++) {
    s.send_later(10);
    CHECK_EQ(level.wait(fd), EPOLLIN);
    s.acked();
    CHECK_EQ(edge.now(fd), EPOLLIN);
    edge.quiet();
    CHECK_EQ(level.now(fd), EPOLLIN);
    s.take(10);
    level.quiet();
  }
  edge.del(fd);
  s.send_later(10);
  CHECK_EQ(level.wait(fd), EPOLLIN);
  s.acked();
  edge.quiet();
  s.take(10);
}

void two_numbers_server(int fd, const Sync& sync) {
  // One stream under two numbers in one set: two registrations, two events.
  Streams s(fd, sync);
  const Epoll e;
  const int copy = dup(fd);
  CHECK(copy >= 0);
  e.add(fd, EPOLLIN, 1);
  e.add(copy, EPOLLIN | EPOLLET, 2);
  s.send(10);
  struct epoll_event got[4];
  CHECK_EQ(epoll_wait(e.fd(), got, 4, 0), 2);
  CHECK_EQ(got[0].data.u64 + got[1].data.u64, 3);
  CHECK_EQ(got[0].events, EPOLLIN);
  CHECK_EQ(got[1].events, EPOLLIN);
  CHECK_EQ(epoll_wait(e.fd(), got, 4, 0), 1);
  CHECK_EQ(got[0].data.u64, 1);
  e.del(fd);
  CHECK_EQ(epoll_wait(e.fd(), got, 4, 0), 0);
  s.send(10);
  CHECK_EQ(epoll_wait(e.fd(), got, 4, 0), 1);
  CHECK_EQ(got[0].data.u64, 2);
  s.take(20);
  e.del(copy);
  s.send(1);
  e.quiet();
  s.take(1);
  close(copy);
}

void closed_number_server(int fd, const Sync& sync) {
  // close() of one of two numbers leaves its registration in the set: the file is still open.
  Streams s(fd, sync);
  const Epoll e;
  const int copy = dup(fd);
  CHECK(copy >= 0);
  e.add(copy, EPOLLIN | EPOLLRDHUP, 7);
  CHECK_EQ(close(copy), 0);
  struct epoll_event got;
  CHECK_EQ(epoll_wait(e.fd(), &got, 1, 0), 0);
  s.send_later(10);
  CHECK_EQ(epoll_wait(e.fd(), &got, 1, 5000), 1);
  s.acked();
  CHECK_EQ(got.data.u64, 7);
  CHECK_EQ(got.events, EPOLLIN);
  CHECK_ERRNO(epoll_ctl(e.fd(), EPOLL_CTL_DEL, copy, nullptr), EBADF);
  CHECK_EQ(epoll_wait(e.fd(), &got, 1, 0), 1);  // nobody can take it out now
  // Another file under the number has a registration of its own.
  const int other = eventfd(0, 0);
  CHECK_EQ(other, copy);
  CHECK_EQ(epoll_wait(e.fd(), &got, 1, 0), 1);
  CHECK_EQ(got.events, EPOLLIN);
  CHECK_ERRNO(epoll_ctl(e.fd(), EPOLL_CTL_DEL, copy, nullptr), ENOENT);
  s.take(10);
  CHECK_EQ(epoll_wait(e.fd(), &got, 1, 30), 0);
  s.half_close();
  CHECK_EQ(epoll_wait(e.fd(), &got, 1, 5000), 1);
  CHECK_EQ(got.events, EPOLLIN | EPOLLRDHUP);
  close(other);
  expect_eof(fd);
  CHECK_EQ(close(fd), 0);  // the last one: gone
  CHECK_EQ(epoll_wait(e.fd(), &got, 1, 30), 0);
}

void number_reused_server(int fd, const Sync& sync) {
  // A stream is closed without DEL; the next connection has its number.
  Streams s(fd, sync);
  const Epoll e;
  for (int round = 0; round < 3; round++) {
    const int i = s.more();
    const int number = s.fd(i);
    CHECK_EQ(number, s.fd(1));
    e.add(number, EPOLLIN | (round == 1 ? EPOLLET : 0u), static_cast<uint64_t>(round) + 1);
    CHECK_ERRNO(e.control(EPOLL_CTL_ADD, number, EPOLLIN, 0), EEXIST);
    s.send(10, i);
    struct epoll_event got;
    CHECK_EQ(epoll_wait(e.fd(), &got, 1, 5000), 1);
    CHECK_EQ(got.data.u64, round + 1);
    if (round != 2) s.take(10, i);  // the last one is closed with bytes unread
    CHECK_EQ(close(number), 0);
    CHECK_EQ(epoll_wait(e.fd(), &got, 1, 30), 0);
    CHECK_ERRNO(epoll_ctl(e.fd(), EPOLL_CTL_DEL, number, nullptr), EBADF);
  }
}

void close_set_server(int fd, const Sync& sync) {
  // A set is closed with a stream in it; its number is used again; a dup keeps a set.
  Streams s(fd, sync);
  for (int round = 0; round < 4; round++) {
    Epoll e;
    e.add(fd, EPOLLIN | EPOLLET);
    s.send(10);
    CHECK_EQ(e.now(fd), EPOLLIN);
    s.take(10);
    e.shut();
    s.send(1);
    s.take(1);
  }
  Epoll e;
  e.add(fd, EPOLLIN);
  const int copy = dup(e.fd());
  CHECK(copy >= 0);
  e.shut();
  s.send_later(5);
  struct epoll_event got;
  CHECK_EQ(epoll_wait(copy, &got, 1, 5000), 1);
  s.acked();
  CHECK_EQ(got.data.u64, Epoll::key(fd));
  got.events = EPOLLIN | EPOLLET;
  CHECK_EQ(epoll_ctl(copy, EPOLL_CTL_MOD, fd, &got), 0);
  CHECK_EQ(epoll_wait(copy, &got, 1, 0), 1);
  CHECK_EQ(epoll_wait(copy, &got, 1, 30), 0);
  s.take(5);
  CHECK_EQ(epoll_ctl(copy, EPOLL_CTL_DEL, fd, nullptr), 0);
  close(copy);
}

// A thread asleep in a set.
struct Waiting {
  int epoll;
  int timeout_ms;
  int result;
};

void* wait_in_set(void* argument) {
  auto* w = static_cast<Waiting*>(argument);
  struct epoll_event got;
  w->result = epoll_wait(w->epoll, &got, 1, w->timeout_ms);
  return nullptr;
}

void exclusive_server(int fd, const Sync& sync) {
  // Nobody asleep: all exclusive sets show it. Asleep: at least one of the sleepers is woken, by each event.
  Streams s(fd, sync);
  constexpr int kSets = 3;
  const Epoll e[kSets];
  for (const Epoll& one : e) one.add(fd, EPOLLIN | EPOLLEXCLUSIVE);
  s.send(10);
  for (const Epoll& one : e) CHECK_EQ(one.now(fd), EPOLLIN);
  s.take(10);
  for (const Epoll& one : e) CHECK_EQ(one.now(fd), 0);
  for (int round = 0; round < 3; round++) {
    Waiting w[kSets];
    pthread_t threads[kSets];
    for (int i = 0; i < kSets; i++) {
      w[i] = {e[i].fd(), 300, -2};
      threads[i] = start_thread(wait_in_set, &w[i]);
    }
    sleep_ms(50);
    s.send(10);
    int woken = 0;
    for (int i = 0; i < kSets; i++) {
      join_thread(threads[i]);
      CHECK(w[i].result == 0 || w[i].result == 1);
      woken += w[i].result;
    }
    CHECK(woken >= 1);
    s.take(10);
    for (const Epoll& one : e) CHECK_EQ(one.now(fd), 0);
  }
  e[0].del(fd);
  e[0].add(fd, EPOLLIN | EPOLLEXCLUSIVE | EPOLLET);
  s.send(1);
  CHECK_EQ(e[0].now(fd), EPOLLIN);
  e[0].quiet();
  s.take(1);
}

void listener_server(int fd, const Sync& sync) {
  // A listener in two exclusive sets, beside the stream in one of them.
  Streams s(fd, sync);
  const int listener = listen_on("127.0.0.1");
  const Epoll e[2];
  for (const Epoll& one : e) one.add(listener, EPOLLIN | EPOLLEXCLUSIVE);
  e[0].add(fd, EPOLLIN);
  for (int round = 0; round < 3; round++) {
    Waiting w[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
      w[i] = {e[i].fd(), 300, -2};
      threads[i] = start_thread(wait_in_set, &w[i]);
    }
    sleep_ms(30);
    const int client = connect_to("127.0.0.1", port_of(listener));
    for (const pthread_t t : threads) join_thread(t);
    CHECK(w[0].result + w[1].result >= 1);
    const int accepted = accept_one(listener);
    close(accepted);
    close(client);
    for (const Epoll& one : e) CHECK_EQ(one.now(listener), 0);
    s.send(1);
    CHECK_EQ(e[0].now(fd), EPOLLIN);
    s.take(1);
  }
  close(listener);
}

const Case kCases[] = {
    {"modify", modify_server, told_client},
    {"add_late", add_late_server, told_client},
    {"again", again_server, told_client},
    {"codes", codes_server, told_client},
    {"fault", fault_server, told_client},
    {"data", data_server, told_client},
    {"two_sets", two_sets_server, told_client},
    {"two_numbers", two_numbers_server, told_client},
    {"closed_number", closed_number_server, told_client},
    {"number_reused", number_reused_server, told_client},
    {"close_set", close_set_server, told_client},
    {"exclusive", exclusive_server, told_client},
    {"listener", listener_server, told_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
