// SPDX-License-Identifier: MIT
// A signal for a thread that sleeps, in every call that can sleep: EINTR, SA_RESTART, time-outs, masks. `NAME list` prints the cases.
#include <initializer_list>

#include "blocking.h"

using namespace testlib;

namespace {

char g_buffer[kBlockBytes];

void set_timeouts(int fd, long seconds) {
  const struct timeval tv = {seconds, 0};
  CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv), 0);
  CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv), 0);
}

// Calls until it fails (a sending call may find room that TCP has made by itself, and say how far it came before the signal).
ssize_t until_failure(const BlockingCall& c, int fd, Peer* peer) {
  ssize_t n;
  do {
    if (c.kind == Kind::kSend) peer->prepare(g_buffer, sizeof g_buffer);
    n = c.call(fd, g_buffer);
    if (n > 0 && c.kind == Kind::kSend) peer->wrote(static_cast<size_t>(n));
  } while (n > 0 && c.kind == Kind::kSend);
  return n;
}

// Everything of `kind` fails with EINTR when a signal with these `flags` comes while it sleeps.
void expect_eintr(int fd, Peer* peer, int flags, std::initializer_list<Kind> kinds) {
  const pthread_t self = pthread_self();
  const pid_t tid = gettid();
  for (const BlockingCall& c : kBlockingCalls) {
    bool wanted = false;
    for (const Kind k : kinds) wanted |= k == c.kind;
    if (!wanted) continue;
    note(c.name);
    if (c.kind == Kind::kSend) peer->fill();
    count_signals(SIGUSR1, flags);
    bool done = false;
    {
      WhenAsleep later([self, tid, &done, &c] {
        pthread_kill(self, SIGUSR1);
        for (int i = 0; c.kind == Kind::kSend && i < 20 && !__atomic_load_n(&done, __ATOMIC_ACQUIRE); i++) {
          await_asleep(tid);
          pthread_kill(self, SIGUSR1);
        }
      });
      CHECK_ERRNO(until_failure(c, fd, peer), EINTR);
      __atomic_store_n(&done, true, __ATOMIC_RELEASE);
    }
    CHECK(c.kind == Kind::kSend ? g_signals >= 1 : g_signals == 1);
  }
}

void eintr_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  expect_eintr(fd, &peer, 0, {Kind::kRead, Kind::kSend, Kind::kWait});
  peer.drained();
  peer.finish();
}

// The waiting calls are never restarted; those that move bytes are not when they have a time-out.
void restart_never_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  expect_eintr(fd, &peer, SA_RESTART, {Kind::kWait});
  set_timeouts(fd, 8);
  expect_eintr(fd, &peer, SA_RESTART, {Kind::kRead, Kind::kSend});
  expect_eintr(fd, &peer, 0, {Kind::kRead, Kind::kSend});
  set_timeouts(fd, 0);
  peer.drained();
  peer.finish();
}

// With SA_RESTART the call goes on: two signals, then the bytes.
void restart_read_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const pthread_t self = pthread_self();
  const pid_t tid = gettid();
  for (const BlockingCall& c : kBlockingCalls) {
    if (c.kind != Kind::kRead) continue;
    note(c.name);
    count_signals(SIGUSR1, SA_RESTART);
    WhenAsleep later([self, tid, &peer] {
      for (int i = 0; i < 2; i++) {
        pthread_kill(self, SIGUSR1);
        await_asleep(tid);
      }
      peer.start(Do::kSend, 100);
    });
    CHECK_EQ(c.call(fd, g_buffer), 100);
    peer.took(g_buffer, 100);
    CHECK_EQ(g_signals, 2);
  }
  peer.finish();
}

void restart_send_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const pthread_t self = pthread_self();
  const pid_t tid = gettid();
  for (const BlockingCall& c : kBlockingCalls) {
    if (c.kind != Kind::kSend) continue;
    note(c.name);
    peer.fill();
    count_signals(SIGUSR1, SA_RESTART);
    WhenAsleep later([self, tid, &peer] {
      pthread_kill(self, SIGUSR1);
      await_asleep(tid);
      peer.start_draining();
    });
    peer.prepare(g_buffer, sizeof g_buffer);
    CHECK_EQ(c.call(fd, g_buffer), sizeof g_buffer);
    peer.wrote(sizeof g_buffer);
    // (1 when the call slept, which it does unless TCP has made room meanwhile.)
    CHECK(g_signals <= 1);
  }
  peer.finish();
}

// A signal after some bytes have gone: the count so far, whatever SA_RESTART says.
void partial_send_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  static char large[24 << 20];  // more than the buffers of a stream can grow to
  const pthread_t self = pthread_self();
  for (const int flags : {0, SA_RESTART}) {
    peer.prepare(large, sizeof large);
    count_signals(SIGUSR1, flags);
    WhenAsleep later([self] { pthread_kill(self, SIGUSR1); });
    const ssize_t n = send(fd, large, sizeof large, MSG_NOSIGNAL);
    CHECK(n > 0 && static_cast<size_t>(n) < sizeof large);
    CHECK_EQ(g_signals, 1);
    peer.wrote(static_cast<size_t>(n));
    peer.drained();
  }
  peer.finish();
}

// A blocked signal does not interrupt, an ignored one neither; both come to the sleeping thread.
void not_delivered_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const pthread_t self = pthread_self();
  count_signals(SIGUSR1);
  mask_signal(SIG_BLOCK, SIGUSR1);
  signal(SIGUSR2, SIG_IGN);
  for (const BlockingCall& c : kBlockingCalls) {
    if (c.kind == Kind::kSend) continue;
    note(c.name);
    WhenAsleep later([self, &peer] {
      pthread_kill(self, SIGUSR1);
      pthread_kill(self, SIGUSR2);
      peer.start(Do::kSend, 100);
    });
    const ssize_t n = c.call(fd, g_buffer);
    CHECK_EQ(n, c.kind == Kind::kRead ? 100 : 1);
    if (c.kind == Kind::kRead) {
      peer.took(g_buffer, 100);
    } else {
      peer.take(100);
    }
  }
  CHECK_EQ(g_signals, 0);
  CHECK(signal_pending(SIGUSR1));
  mask_signal(SIG_UNBLOCK, SIGUSR1);
  CHECK_EQ(g_signals, 1);
  peer.finish();
}

// ppoll, pselect, epoll_pwait: the mask holds while they wait and no longer. A signal it lets in ends the wait even when it was
// pending before; one it keeps out does not.
using MaskedWait = int (*)(int fd, const sigset_t* mask, const struct timespec* timeout);

int masked_ppoll(int fd, const sigset_t* mask, const struct timespec* timeout) {
  struct pollfd p = {fd, POLLIN, 0};
  return ppoll(&p, 1, timeout, mask);
}

int masked_pselect(int fd, const sigset_t* mask, const struct timespec* timeout) {
  fd_set set = only(fd);
  return pselect(fd + 1, &set, nullptr, nullptr, timeout, mask);
}

template <typename Wait>
int masked_epoll(int fd, Wait wait) {
  return static_cast<int>(wait_in_epoll(fd, wait));
}

int masked_epoll_pwait(int fd, const sigset_t* mask, const struct timespec* timeout) {
  const int ms = static_cast<int>(timeout->tv_sec * 1000 + timeout->tv_nsec / 1000000);
  return masked_epoll(fd, [=](int epoll, struct epoll_event* got) { return epoll_pwait(epoll, got, 1, ms, mask); });
}

int masked_epoll_pwait2(int fd, const sigset_t* mask, const struct timespec* timeout) {
  return masked_epoll(fd, [=](int epoll, struct epoll_event* got) { return epoll_pwait2(epoll, got, 1, timeout, mask); });
}

void masks_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const pthread_t self = pthread_self();
  sigset_t none, usr1;
  sigemptyset(&none);
  sigemptyset(&usr1);
  sigaddset(&usr1, SIGUSR1);
  const struct timespec ten = {10, 0}, some = {0, 100000000}, zero = {0, 0};
  for (const MaskedWait wait : {masked_ppoll, masked_pselect, masked_epoll_pwait, masked_epoll_pwait2}) {
    note("masked");
    count_signals(SIGUSR1);
    mask_signal(SIG_BLOCK, SIGUSR1);
    CHECK_EQ(pthread_kill(self, SIGUSR1), 0);
    CHECK_ERRNO(wait(fd, &none, &ten), EINTR);  // pending before
    CHECK_EQ(g_signals, 1);
    {
      WhenAsleep later([self] { pthread_kill(self, SIGUSR1); });  // while it sleeps
      CHECK_ERRNO(wait(fd, &none, &ten), EINTR);
      CHECK_EQ(g_signals, 2);
    }
    CHECK_EQ(pthread_kill(self, SIGUSR1), 0);
    CHECK_EQ(wait(fd, nullptr, &some), 0);  // no mask: stays blocked
    CHECK_EQ(wait(fd, &usr1, &zero), 0);
    CHECK_EQ(g_signals, 2);
    CHECK(signal_pending(SIGUSR1));
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    CHECK_EQ(g_signals, 3);
    {
      WhenAsleep later([self] { pthread_kill(self, SIGUSR1); });  // kept out by the mask: comes when the wait is over
      CHECK_EQ(wait(fd, &usr1, &some), 0);
    }
    CHECK_EQ(g_signals, 4);
    sigset_t now;
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, nullptr, &now), 0);
    CHECK_EQ(sigismember(&now, SIGUSR1), 0);
    // Ready at once: the events are told. The signal that was pending is delivered or not, but never lost.
    peer.arrive(10);
    mask_signal(SIG_BLOCK, SIGUSR1);
    CHECK_EQ(pthread_kill(self, SIGUSR1), 0);
    CHECK_EQ(wait(fd, &none, &ten), 1);
    CHECK_EQ(g_signals + (signal_pending(SIGUSR1) ? 1 : 0), 5);
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    CHECK_EQ(g_signals, 5);
    peer.take(10);
  }
  peer.finish();
}

// accept() and connect().
void accept_server(int warm, const Sync& sync) {
  Peer peer(warm, sync);
  const pthread_t self = pthread_self();
  const pid_t tid = gettid();
  const int listener = listen_on("127.0.0.1");
  const int port = port_of(listener);
  count_signals(SIGUSR1);
  {
    WhenAsleep later([self] { pthread_kill(self, SIGUSR1); });
    CHECK_ERRNO(accept(listener, nullptr, nullptr), EINTR);
  }
  count_signals(SIGUSR1, SA_RESTART);
  int client = -1;
  {
    WhenAsleep later([=, &client] {
      pthread_kill(self, SIGUSR1);
      await_asleep(tid);
      client = connect_to("127.0.0.1", port);
    });
    const int fd = accept(listener, nullptr, nullptr);
    CHECK(fd >= 0);
    CHECK_EQ(g_signals, 1);
    close(fd);
  }
  close(client);
  close(listener);
  peer.finish();
}

// A connection that nobody takes is interrupted, goes on by itself and succeeds when there is room.
void connect_server(int warm, const Sync& sync) {
  Peer peer(warm, sync);
  const pthread_t self = pthread_self();
  const int listener = listen_on("127.0.0.1", 0, 0);
  Address a = make_address("127.0.0.1", port_of(listener));
  const int queued = connect_to("127.0.0.1", port_of(listener));  // the only place
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  count_signals(SIGUSR1);
  {
    WhenAsleep later([self] { pthread_kill(self, SIGUSR1); });
    CHECK_ERRNO(connect(fd, a.get(), a.length), EINTR);
  }
  CHECK_EQ(g_signals, 1);
  const int first = accept_one(listener);
  struct pollfd p = {fd, POLLOUT, 0};
  CHECK_EQ(poll(&p, 1, 10000), 1);  // TCP asks again after a second
  CHECK_EQ(p.revents, POLLOUT);
  const int second = accept_one(listener);
  for (const int f : {first, second, fd, queued, listener}) close(f);
  peer.finish();
}

const Case kCases[] = {
    {"eintr", eintr_server, obedient_client},
    {"restart_never", restart_never_server, obedient_client},
    {"restart_read", restart_read_server, obedient_client},
    {"restart_send", restart_send_server, obedient_client},
    {"partial_send", partial_send_server, obedient_client},
    {"not_delivered", not_delivered_server, obedient_client},
    {"masks", masks_server, obedient_client},
    {"accept", accept_server, obedient_client},
    {"connect", connect_server, obedient_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
