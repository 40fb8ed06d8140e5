// SPDX-License-Identifier: MIT
// Waiting on a TCP stream: time-outs, poll, select, signals and threads. `NAME list` prints the cases.
#include <poll.h>
#include <signal.h>
#include <sys/select.h>
#include <sys/uio.h>

#include "case_main.h"

using namespace testlib;

namespace {

constexpr uint64_t kUp = 41, kDown = 42;

volatile sig_atomic_t g_signals = 0;

void on_signal(int) { g_signals = g_signals + 1; }

void handle(int signal_number, int flags) {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = flags;
  CHECK_EQ(sigaction(signal_number, &action, nullptr), 0);
}

// Signals one thread after a while.
struct Alarm {
  pthread_t target;
  long after_ms;
};

void* run_alarm(void* argument) {
  const auto* alarm = static_cast<Alarm*>(argument);
  sleep_ms(alarm->after_ms);
  CHECK_EQ(pthread_kill(alarm->target, SIGUSR1), 0);
  return nullptr;
}

// The peer of most cases: sends `n` bytes whenever asked to by the side channel, with a delay that lets the other end fall asleep.
constexpr int kFinish = -1;

void ask(const Sync& sync, int bytes) { CHECK_EQ(write(sync.fd(), &bytes, sizeof bytes), sizeof bytes); }

void on_demand_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  for (;;) {
    int bytes;
    CHECK_EQ(recv(sync.fd(), &bytes, sizeof bytes, MSG_WAITALL), sizeof bytes);
    if (bytes == kFinish) break;
    sleep_ms(60);
    send_pattern(fd, kUp, offset, static_cast<size_t>(bytes));
    offset += static_cast<size_t>(bytes);
  }
  close(fd);
}

// The end of every case against on_demand_client.
void finish(int fd, const Sync& sync) {
  ask(sync, kFinish);
  expect_eof(fd);
  close(fd);
}

void set_timeout(int fd, int option, long ms) {
  const struct timeval tv = {ms / 1000, ms % 1000 * 1000};
  CHECK_EQ(setsockopt(fd, SOL_SOCKET, option, &tv, sizeof tv), 0);
}

// ---- time-outs --------------------------------------------------------------------------------------------------------

void blocked_recv_server(int fd, const Sync& sync) {
  for (int i = 0; i < 5; i++) {
    ask(sync, 100);
    recv_pattern(fd, kUp, static_cast<uint64_t>(i) * 100, 100);
  }
  finish(fd, sync);
}

void rcvtimeo_server(int fd, const Sync& sync) {
  char byte;
  set_timeout(fd, SO_RCVTIMEO, 200);
  for (int i = 0; i < 2; i++) {
    const int64_t start = now_ms();
    CHECK_ERRNO(recv(fd, &byte, 1, 0), EAGAIN);
    CHECK(now_ms() - start >= 190);
  }
  // What arrives before the time is up is given at once; MSG_WAITALL gives what there is when the time is up.
  ask(sync, 100);
  recv_pattern(fd, kUp, 0, 100);
  ask(sync, 100);
  char buffer[300];
  CHECK_EQ(recv(fd, buffer, sizeof buffer, MSG_WAITALL), 100);
  pattern_check(buffer, 100, kUp, 100);
  set_timeout(fd, SO_RCVTIMEO, 0);  // for ever again
  ask(sync, 1);
  CHECK_EQ(recv(fd, &byte, 1, 0), 1);
  finish(fd, sync);
}

void sndtimeo_server(int fd, const Sync& sync) {
  set_timeout(fd, SO_SNDTIMEO, 200);
  uint64_t written = 0;
  ssize_t n;
  for (;;) {
    char chunk[50000];
    pattern_fill(chunk, sizeof chunk, kDown, written);
    n = send(fd, chunk, sizeof chunk, MSG_NOSIGNAL);
    if (n < 0) break;
    written += static_cast<uint64_t>(n);
  }
  CHECK_EQ(errno, EAGAIN);
  CHECK(written >= 2048);
  CHECK_EQ(write(sync.fd(), &written, sizeof written), sizeof written);
  close(fd);
}

void sndtimeo_client(int fd, const Sync& sync) {
  uint64_t written;
  CHECK_EQ(recv(sync.fd(), &written, sizeof written, MSG_WAITALL), sizeof written);
  recv_pattern(fd, kDown, 0, written);
  expect_eof(fd);
  close(fd);
}

// ---- poll and select --------------------------------------------------------------------------------------------------

void poll_server(int fd, const Sync& sync) {
  struct pollfd p = {fd, POLLIN, -1};
  const int64_t start = now_ms();
  CHECK_EQ(poll(&p, 1, 150), 0);
  CHECK(now_ms() - start >= 145);
  CHECK_EQ(p.revents, 0);
  p.events = POLLIN | POLLOUT;
  CHECK_EQ(poll(&p, 1, -1), 1);
  CHECK_EQ(p.revents, POLLOUT);
  ask(sync, 100);
  p.events = POLLIN;
  CHECK_EQ(poll(&p, 1, 5000), 1);  // wakes up
  CHECK_EQ(p.revents, POLLIN);
  CHECK_EQ(poll(&p, 1, 0), 1);  // level: still there
  p.events = POLLIN | POLLOUT | POLLPRI | POLLRDHUP;
  CHECK_EQ(poll(&p, 1, 0), 1);
  CHECK_EQ(p.revents, POLLIN | POLLOUT);
  p.events = POLLRDNORM | POLLWRNORM;
  CHECK_EQ(poll(&p, 1, 0), 1);
  CHECK_EQ(p.revents, POLLRDNORM | POLLWRNORM);
  recv_pattern(fd, kUp, 0, 99);
  p.events = POLLIN;
  CHECK_EQ(poll(&p, 1, 0), 1);
  recv_pattern(fd, kUp, 99, 1);
  CHECK_EQ(poll(&p, 1, 0), 0);
  // Negative numbers are skipped, closed ones are POLLNVAL, the same one twice is two entries.
  struct pollfd many[4] = {{-1, POLLIN, -1}, {fd, POLLOUT, -1}, {4095, POLLIN, -1}, {fd, POLLOUT, -1}};
  CHECK_EQ(poll(many, 4, 0), 3);
  CHECK_EQ(many[0].revents, 0);
  CHECK_EQ(many[1].revents, POLLOUT);
  CHECK_EQ(many[2].revents, POLLNVAL);
  CHECK_EQ(many[3].revents, POLLOUT);
  finish(fd, sync);
}

void poll_mixed_server(int fd, const Sync& sync) {
  // With a pipe in the same set: either wakes, both are reported.
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  struct pollfd p[2] = {{ends[0], POLLIN, 0}, {fd, POLLIN, 0}};
  CHECK_EQ(poll(p, 2, 50), 0);
  CHECK_EQ(write(ends[1], "x", 1), 1);
  CHECK_EQ(poll(p, 2, 5000), 1);
  CHECK_EQ(p[0].revents, POLLIN);
  CHECK_EQ(p[1].revents, 0);
  char byte;
  CHECK_EQ(read(ends[0], &byte, 1), 1);
  ask(sync, 10);
  CHECK_EQ(poll(p, 2, 5000), 1);
  CHECK_EQ(p[0].revents, 0);
  CHECK_EQ(p[1].revents, POLLIN);
  CHECK_EQ(write(ends[1], "x", 1), 1);
  CHECK_EQ(poll(p, 2, 5000), 2);
  CHECK_EQ(p[0].revents, POLLIN);
  CHECK_EQ(p[1].revents, POLLIN);
  recv_pattern(fd, kUp, 0, 10);
  close(ends[0]);
  close(ends[1]);
  finish(fd, sync);
}

void select_server(int fd, const Sync& sync) {
  fd_set reads, writes;
  FD_ZERO(&reads);
  FD_SET(fd, &reads);
  struct timeval tv = {0, 150000};
  const int64_t start = now_ms();
  CHECK_EQ(select(fd + 1, &reads, nullptr, nullptr, &tv), 0);
  CHECK(now_ms() - start >= 145);
  CHECK(!FD_ISSET(fd, &reads));                 // cleared
  CHECK(tv.tv_sec == 0 && tv.tv_usec == 0);     // Linux tells what is left of the time
  FD_SET(fd, &reads);
  FD_ZERO(&writes);
  FD_SET(fd, &writes);
  CHECK_EQ(select(fd + 1, &reads, &writes, nullptr, nullptr), 1);
  CHECK(!FD_ISSET(fd, &reads) && FD_ISSET(fd, &writes));
  ask(sync, 5);
  FD_SET(fd, &reads);
  tv = {5, 0};
  CHECK_EQ(select(fd + 1, &reads, nullptr, nullptr, &tv), 1);
  CHECK(FD_ISSET(fd, &reads));
  CHECK(tv.tv_sec == 4);
  CHECK_EQ(select(fd + 1, &reads, &writes, nullptr, nullptr), 2);
  recv_pattern(fd, kUp, 0, 5);
  struct timespec zero = {0, 0};
  FD_SET(fd, &reads);
  CHECK_EQ(pselect(fd + 1, &reads, nullptr, nullptr, &zero, nullptr), 0);
  finish(fd, sync);
}

// A full stream is not writable until the peer has read.
void pollout_server(int fd, const Sync& sync) {
  const uint64_t written = fill_up(fd, kDown, 0);
  char next = static_cast<char>(pattern_byte(kDown, written));
  struct pollfd p = {fd, POLLOUT, 0};
  CHECK_EQ(poll(&p, 1, 100), 0);
  CHECK_EQ(write(sync.fd(), &written, sizeof written), sizeof written);  // now the peer reads
  CHECK_EQ(poll(&p, 1, 5000), 1);
  CHECK_EQ(p.revents, POLLOUT);
  CHECK_EQ(send(fd, &next, 1, MSG_NOSIGNAL), 1);
  sync.wait();
  close(fd);
}

void pollout_client(int fd, const Sync& sync) {
  uint64_t written;
  CHECK_EQ(recv(sync.fd(), &written, sizeof written, MSG_WAITALL), sizeof written);
  sleep_ms(50);
  recv_pattern(fd, kDown, 0, written + 1);
  sync.post();
  expect_eof(fd);
  close(fd);
}

// ---- signals ----------------------------------------------------------------------------------------------------------

void eintr_server(int fd, const Sync& sync) {
  handle(SIGUSR1, 0);
  char byte;
  Alarm alarm = {pthread_self(), 100};
  pthread_t thread = start_thread(run_alarm, &alarm);
  CHECK_ERRNO(recv(fd, &byte, 1, 0), EINTR);
  join_thread(thread);
  CHECK_EQ(g_signals, 1);
  // A signal in the middle of MSG_WAITALL gives what has come so far.
  ask(sync, 10);
  alarm.after_ms = 300;
  thread = start_thread(run_alarm, &alarm);
  char buffer[50];
  CHECK_EQ(recv(fd, buffer, sizeof buffer, MSG_WAITALL), 10);
  pattern_check(buffer, 10, kUp, 0);
  join_thread(thread);
  finish(fd, sync);
}

void eintr_restart_server(int fd, const Sync& sync) {
  handle(SIGUSR1, SA_RESTART);
  Alarm alarm = {pthread_self(), 20};
  const pthread_t thread = start_thread(run_alarm, &alarm);
  ask(sync, 100);  // comes 60 ms later
  char buffer[100];
  CHECK_EQ(recv(fd, buffer, sizeof buffer, 0), sizeof buffer);
  pattern_check(buffer, sizeof buffer, kUp, 0);
  join_thread(thread);
  CHECK_EQ(g_signals, 1);
  // But with a receive time-out it is EINTR even so (signal(7)).
  set_timeout(fd, SO_RCVTIMEO, 3000);
  const pthread_t second = start_thread(run_alarm, &alarm);
  char byte;
  CHECK_ERRNO(recv(fd, &byte, 1, 0), EINTR);
  join_thread(second);
  set_timeout(fd, SO_RCVTIMEO, 0);
  finish(fd, sync);
}

// A blocked send is interrupted (by one of several signals: TCP may make a little room and let some bytes in before).
void* run_alarms(void* argument) {
  for (int i = 0; i < 10; i++) run_alarm(argument);
  return nullptr;
}

void eintr_send_server(int fd, const Sync& sync) {
  handle(SIGUSR1, 0);
  uint64_t written = fill_up(fd, kDown, 0);
  Alarm alarm = {pthread_self(), 60};
  const pthread_t thread = start_thread(run_alarms, &alarm);
  ssize_t n;
  do {
    char chunk[8192];
    pattern_fill(chunk, sizeof chunk, kDown, written);
    n = send(fd, chunk, sizeof chunk, MSG_NOSIGNAL);
    if (n > 0) written += static_cast<uint64_t>(n);
  } while (n > 0);
  CHECK_EQ(n, -1);
  CHECK_EQ(errno, EINTR);
  join_thread(thread);
  CHECK_EQ(g_signals, 10);
  CHECK_EQ(write(sync.fd(), &written, sizeof written), sizeof written);
  close(fd);
}

// poll and select are interrupted even with SA_RESTART.
void eintr_poll_server(int fd, const Sync& sync) {
  handle(SIGUSR1, SA_RESTART);
  Alarm alarm = {pthread_self(), 100};
  struct pollfd p = {fd, POLLIN, 0};
  pthread_t thread = start_thread(run_alarm, &alarm);
  CHECK_ERRNO(poll(&p, 1, 5000), EINTR);
  join_thread(thread);
  fd_set reads;
  FD_ZERO(&reads);
  FD_SET(fd, &reads);
  thread = start_thread(run_alarm, &alarm);
  CHECK_ERRNO(select(fd + 1, &reads, nullptr, nullptr, nullptr), EINTR);
  join_thread(thread);
  // ppoll lets a blocked signal in only while it waits.
  sigset_t usr1, none;
  sigemptyset(&none);
  sigemptyset(&usr1);
  sigaddset(&usr1, SIGUSR1);
  CHECK_EQ(pthread_sigmask(SIG_BLOCK, &usr1, nullptr), 0);
  const int before = g_signals;
  CHECK_EQ(pthread_kill(pthread_self(), SIGUSR1), 0);
  CHECK_EQ(g_signals, before);
  const struct timespec five = {5, 0};
  CHECK_ERRNO(ppoll(&p, 1, &five, &none), EINTR);
  CHECK_EQ(g_signals, before + 1);
  CHECK_EQ(pthread_kill(pthread_self(), SIGUSR1), 0);
  FD_SET(fd, &reads);
  CHECK_ERRNO(pselect(fd + 1, &reads, nullptr, nullptr, &five, &none), EINTR);
  CHECK_EQ(g_signals, before + 2);
  CHECK_EQ(pthread_sigmask(SIG_UNBLOCK, &usr1, nullptr), 0);
  finish(fd, sync);
}

// A handler that itself writes to the stream the program is reading.
int g_handler_fd = -1;

void send_in_handler(int) {
  const int saved = errno;
  if (send(g_handler_fd, "h", 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1) g_signals = g_signals + 1;
  errno = saved;
}

void handler_sends_server(int fd, const Sync& sync) {
  g_handler_fd = fd;
  struct sigaction action = {};
  action.sa_handler = send_in_handler;
  action.sa_flags = SA_RESTART;
  CHECK_EQ(sigaction(SIGALRM, &action, nullptr), 0);
  const struct itimerval every_ms = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
  sigset_t alarm_set;
  sigemptyset(&alarm_set);
  sigaddset(&alarm_set, SIGALRM);
  CHECK_EQ(pthread_sigmask(SIG_UNBLOCK, &alarm_set, nullptr), 0);
  CHECK_EQ(setitimer(ITIMER_REAL, &every_ms, nullptr), 0);
  recv_pattern(fd, kUp, 0, 3000000);
  CHECK_EQ(setitimer(ITIMER_REAL, &never, nullptr), 0);
  CHECK_EQ(pthread_sigmask(SIG_BLOCK, &alarm_set, nullptr), 0);
  const uint64_t count = static_cast<uint64_t>(g_signals);
  CHECK_EQ(write(sync.fd(), &count, sizeof count), sizeof count);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  expect_eof(fd);
  close(fd);
}

void handler_sends_client(int fd, const Sync& sync) {
  for (uint64_t offset = 0; offset < 3000000; offset += 10000) {
    send_pattern(fd, kUp, offset, 10000);
    if (offset % 100000 == 0) sleep_ms(2);
  }
  uint64_t count, got = 0;
  CHECK_EQ(recv(sync.fd(), &count, sizeof count, MSG_WAITALL), sizeof count);
  char buffer[1000];
  ssize_t n;
  while ((n = recv(fd, buffer, sizeof buffer, 0)) > 0) {
    for (ssize_t i = 0; i < n; i++) CHECK_EQ(buffer[i], 'h');
    got += static_cast<uint64_t>(n);
  }
  CHECK_EQ(got, count);
  close(fd);
}

// ---- threads ----------------------------------------------------------------------------------------------------------

// Two threads send on one stream: each message stays whole (one send call is one piece while it fits).
struct Shouter {
  int fd;
  uint8_t letter;
};

constexpr int kShouts = 500;
constexpr size_t kShout = 64;

void* shout(void* argument) {
  const auto* s = static_cast<Shouter*>(argument);
  char message[kShout];
  memset(message, s->letter, sizeof message);
  for (int i = 0; i < kShouts; i++) CHECK_EQ(send(s->fd, message, sizeof message, MSG_NOSIGNAL), sizeof message);
  return nullptr;
}

// The same in so many parts that one look at them is not enough.
void* shout_in_parts(void* argument) {
  const auto* s = static_cast<Shouter*>(argument);
  char message[kShout];
  struct iovec parts[kShout];
  memset(message, s->letter, sizeof message);
  for (size_t i = 0; i < kShout; i++) parts[i] = {&message[i], 1};
  for (int i = 0; i < kShouts; i++) CHECK_EQ(writev(s->fd, parts, kShout), kShout);
  return nullptr;
}

void shout_both(int fd, void* (*how)(void*)) {
  Shouter shouters[2] = {{fd, 'A'}, {fd, 'B'}};
  pthread_t threads[2];
  for (int i = 0; i < 2; i++) threads[i] = start_thread(how, &shouters[i]);
  for (pthread_t t : threads) join_thread(t);
  close(fd);
}

void two_senders_server(int fd, const Sync&) { shout_both(fd, shout); }
void two_senders_parts_server(int fd, const Sync&) { shout_both(fd, shout_in_parts); }

void two_senders_client(int fd, const Sync&) {
  int counts[2] = {};
  for (int i = 0; i < 2 * kShouts; i++) {
    char message[kShout];
    recv_all(fd, message, sizeof message);
    CHECK(message[0] == 'A' || message[0] == 'B');
    for (char c : message) CHECK_EQ(c, message[0]);
    counts[message[0] - 'A']++;
  }
  CHECK_EQ(counts[0], kShouts);
  CHECK_EQ(counts[1], kShouts);
  expect_eof(fd);
  close(fd);
}

// Two threads blocked in recv on one stream: every byte goes to exactly one of them, both see the end.
struct Reader {
  int fd;
  uint64_t bytes, sum;
};

void* read_to_end(void* argument) {
  auto* r = static_cast<Reader*>(argument);
  uint8_t buffer[100];
  ssize_t n;
  while ((n = recv(r->fd, buffer, sizeof buffer, 0)) > 0) {
    r->bytes += static_cast<uint64_t>(n);
    for (ssize_t i = 0; i < n; i++) r->sum += buffer[i];
  }
  CHECK_EQ(n, 0);
  return nullptr;
}

void two_readers_server(int fd, const Sync& sync) {
  Reader readers[2] = {{fd, 0, 0}, {fd, 0, 0}};
  pthread_t threads[2];
  for (int i = 0; i < 2; i++) threads[i] = start_thread(read_to_end, &readers[i]);
  sleep_ms(50);
  for (int i = 0; i < 5; i++) ask(sync, 1000);
  ask(sync, kFinish);
  for (pthread_t t : threads) join_thread(t);
  uint64_t sum = 0;
  for (uint64_t i = 0; i < 5000; i++) sum += pattern_byte(kUp, i);
  CHECK_EQ(readers[0].bytes + readers[1].bytes, 5000);
  CHECK_EQ(readers[0].sum + readers[1].sum, sum);
  close(fd);
}

// A thread cancelled in recv: the stream goes on.
void* read_until_cancelled(void* argument) {
  char byte;
  (void)!recv(*static_cast<int*>(argument), &byte, 1, 0);
  return nullptr;
}

void cancel_server(int fd, const Sync& sync) {
  const pthread_t thread = start_thread(read_until_cancelled, &fd);
  sleep_ms(100);
  CHECK_EQ(pthread_cancel(thread), 0);
  void* result;
  CHECK_EQ(pthread_join(thread, &result), 0);
  CHECK(result == PTHREAD_CANCELED);
  ask(sync, 100);
  recv_pattern(fd, kUp, 0, 100);
  finish(fd, sync);
}

const Case kCases[] = {
    {"blocked_recv", blocked_recv_server, on_demand_client},
    {"rcvtimeo", rcvtimeo_server, on_demand_client},
    {"sndtimeo", sndtimeo_server, sndtimeo_client},
    {"poll", poll_server, on_demand_client},
    {"poll_mixed", poll_mixed_server, on_demand_client},
    {"select", select_server, on_demand_client},
    {"pollout", pollout_server, pollout_client},
    {"eintr", eintr_server, on_demand_client},
    {"eintr_restart", eintr_restart_server, on_demand_client},
    {"eintr_send", eintr_send_server, sndtimeo_client},
    {"eintr_poll", eintr_poll_server, on_demand_client},
    {"handler_sends", handler_sends_server, handler_sends_client},
    {"two_senders", two_senders_server, two_senders_client},
    {"two_senders_parts", two_senders_parts_server, two_senders_client},
    {"two_readers", two_readers_server, on_demand_client},
    {"cancel", cancel_server, on_demand_client},
};

}  // namespace

int main(int argc, char** argv) {
  // Only the threads of the case itself take these signals (in `both` the other end's threads live in this process too).
  sigset_t alarm_set;
  sigemptyset(&alarm_set);
  sigaddset(&alarm_set, SIGALRM);
  CHECK_EQ(pthread_sigmask(SIG_BLOCK, &alarm_set, nullptr), 0);
  return case_main(argc, argv, kCases);
}
