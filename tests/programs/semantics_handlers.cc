// SPDX-License-Identifier: MIT
// Signal handlers beside calls on a stream, and what sigaction and its kin tell of them. `NAME list` prints the cases.
#include <sched.h>
#include <sys/epoll.h>

#include <atomic>
#include <initializer_list>

#include "case_tools.h"

using namespace testlib;

namespace {

void handler_of_number(int) {}
void handler_of_info(int, siginfo_t*, void*) {}

// What the program sees of one signal's action, as it set it.
void show(int number, const char* when) {
  struct sigaction a;
  CHECK_EQ(sigaction(number, nullptr, &a), 0);
  const char* name = "?";
  if (a.sa_handler == SIG_DFL) name = "default";
  if (a.sa_handler == SIG_IGN) name = "ignore";
  if (a.sa_handler == handler_of_number) name = "number";
  if (a.sa_sigaction == handler_of_info) name = "info";
  printf("%s: %s%s%s%s%s%s blocks-usr2 %d\n", when, name, a.sa_flags & SA_SIGINFO ? " SIGINFO" : "", a.sa_flags & SA_RESTART ? " RESTART" : "",
         a.sa_flags & static_cast<int>(SA_RESETHAND) ? " RESETHAND" : "", a.sa_flags & SA_NODEFER ? " NODEFER" : "",
         a.sa_flags & SA_ONSTACK ? " ONSTACK" : "", sigismember(&a.sa_mask, SIGUSR2));
}

void set(int number, void (*handler)(int), int flags, struct sigaction* old = nullptr) {
  struct sigaction a = {};
  a.sa_handler = handler;
  a.sa_flags = flags;
  CHECK_EQ(sigaction(number, &a, old), 0);
}

void show_old(const char* when, sighandler_t old) {
  printf("%s: was %s\n", when,
         old == SIG_DFL ? "default" : old == SIG_IGN ? "ignore" : old == handler_of_number ? "number" : old == SIG_ERR ? "error" : "?");
}

void told_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  show(SIGUSR1, "at first");
  struct sigaction a = {};
  a.sa_sigaction = handler_of_info;
  a.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaddset(&a.sa_mask, SIGUSR2);
  CHECK_EQ(sigaction(SIGUSR1, &a, nullptr), 0);
  show(SIGUSR1, "with information");
  struct sigaction old;
  set(SIGUSR1, handler_of_number, SA_RESTART, &old);
  CHECK(old.sa_sigaction == handler_of_info && sigismember(&old.sa_mask, SIGUSR2) == 1);
  show(SIGUSR1, "with the number");
  struct sigaction* const both = &old;
  CHECK_EQ(sigaction(SIGUSR1, both, &old), 0);
  CHECK(old.sa_handler == handler_of_number);
  show(SIGUSR1, "put back");
  set(SIGUSR1, handler_of_number, static_cast<int>(SA_RESETHAND));
  show(SIGUSR1, "for once");
  CHECK_EQ(raise(SIGUSR1), 0);
  show(SIGUSR1, "after that");
  show_old("signal", signal(SIGUSR1, handler_of_number));
  show(SIGUSR1, "by signal");
  CHECK_EQ(raise(SIGUSR1), 0);
  show(SIGUSR1, "still");
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  CHECK_EQ(siginterrupt(SIGUSR1, 1), 0);
  show(SIGUSR1, "interrupts");
  show_old("signal", signal(SIGUSR1, SIG_IGN));
  show_old("signal", signal(SIGUSR1, handler_of_number));
  show(SIGUSR1, "interrupts still");
  CHECK_EQ(siginterrupt(SIGUSR1, 0), 0);
  show(SIGUSR1, "does not");
  show_old("sigset", sigset(SIGUSR1, SIG_DFL));
  show_old("sigset", sigset(SIGUSR1, handler_of_number));
  show(SIGUSR1, "by sigset");
  CHECK(sigset(SIGUSR1, SIG_HOLD) == handler_of_number);
  CHECK(sigset(SIGUSR1, handler_of_number) == SIG_HOLD);
  show_old("sysv", sysv_signal(SIGUSR1, handler_of_number));
  show(SIGUSR1, "by sysv");
#pragma GCC diagnostic pop
  CHECK_EQ(raise(SIGUSR1), 0);
  show(SIGUSR1, "sysv, after one");
  for (const int number : {SIGKILL, SIGSTOP, 0, 65, -1}) CHECK_ERRNO(sigaction(number, &a, nullptr), EINVAL);
  show_old("signal", signal(SIGKILL, handler_of_number));
  finish(fd, sync);
}

// A child's actions are its own, also when it has the parent's memory.
void children_client(int fd, const Sync& sync) {
  static uint64_t offset = 0;
  set(SIGUSR1, handler_of_number, SA_RESTART);
  for (const bool shared : {false, true}) {
    fflush(stdout);
    const pid_t child = shared ? vfork() : fork();
    if (child == 0) {
      struct sigaction a;
      if (sigaction(SIGUSR1, nullptr, &a) != 0 || a.sa_handler != handler_of_number) _exit(1);
      a.sa_handler = SIG_DFL;
      if (sigaction(SIGUSR1, &a, nullptr) != 0 || sigaction(SIGUSR1, nullptr, &a) != 0 || a.sa_handler != SIG_DFL) _exit(2);
      a.sa_sigaction = handler_of_info;
      if (sigaction(SIGUSR1, &a, nullptr) != 0) _exit(3);
      _exit(0);
    }
    CHECK_EQ(reap(child), 0);
    show(SIGUSR1, shared ? "after vfork" : "after fork");
    CHECK_EQ(raise(SIGUSR1), 0);
    exchange(fd, &offset);
  }
  fflush(stdout);
  finish(fd, sync);
}

// ---- none lost ----------------------------------------------------------------------------------------------------------

constexpr int kQueued = 2000;
constexpr int kWindow = 200;  // queued at most: RLIMIT_SIGPENDING may be small
std::atomic<int> g_arrived, g_out_of_order, g_wrong;

void count_value(int number, siginfo_t* info, void*) {
  if (info->si_value.sival_int != g_arrived) g_out_of_order++;
  if (number != SIGRTMIN + 3 || info->si_code != SI_QUEUE || info->si_pid != getpid()) g_wrong++;
  g_arrived++;
}

void* queue_signals(void*) {
  for (int i = 0; i < kQueued; i++) {
    while (i - g_arrived >= kWindow) sched_yield();
    union sigval value = {};
    value.sival_int = i;
    CHECK_EQ(sigqueue(getpid(), SIGRTMIN + 3, value), 0);
  }
  return nullptr;
}

// Each queued signal arrives once, with what it carries, in order, whatever the thread is at.
void queued_client(int fd, const Sync& sync) {
  struct sigaction a = {};
  a.sa_sigaction = count_value;
  a.sa_flags = SA_SIGINFO | SA_RESTART;
  CHECK_EQ(sigaction(SIGRTMIN + 3, &a, nullptr), 0);
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, SIGRTMIN + 3);
  CHECK_EQ(pthread_sigmask(SIG_BLOCK, &one, nullptr), 0);  // for the thread
  static int nothing;
  const pthread_t thread = start_thread(queue_signals, &nothing);
  CHECK_EQ(pthread_sigmask(SIG_UNBLOCK, &one, nullptr), 0);
  uint64_t offset = 0;
  while (g_arrived < kQueued) exchange(fd, &offset, 1);
  join_thread(thread);
  sigset_t now;
  CHECK_EQ(pthread_sigmask(SIG_BLOCK, nullptr, &now), 0);
  CHECK_EQ(sigismember(&now, SIGRTMIN + 3), 0);
  printf("arrived %d, out of order %d, wrong %d\n", static_cast<int>(g_arrived), static_cast<int>(g_out_of_order), static_cast<int>(g_wrong));
  finish(fd, sync);
}

// ---- in time ------------------------------------------------------------------------------------------------------------

constexpr int kRounds = 100;
constexpr int64_t kLateMs = 20;
std::atomic<int> g_round, g_returned, g_late;
pthread_t g_main;

void* interrupt_each(void*) {
  for (int i = 1; i <= kRounds; i++) {
    while (g_round < i) {
    }
    for (volatile int pause = 0; pause < i * 100; pause = pause + 1) {
    }
    pthread_kill(g_main, SIGUSR1);
    const int64_t end = now_ms() + kLateMs;
    while (g_returned < i && now_ms() < end) sched_yield();
    if (g_returned < i) g_late++;
    while (g_returned < i) {
      pthread_kill(g_main, SIGUSR1);
      struct timespec nap = {0, 1000000};
      nanosleep(&nap, nullptr);
    }
  }
  return nullptr;
}

// A handler that comes before the call sleeps interrupts it, too. (Just before the call begins it does not, so a few are late on TCP as well:
// after such a one a program with a single alarm waits for ever.)
void at_once_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset, 200);
  set(SIGUSR1, handler_of_number, 0);
  g_main = pthread_self();
  static int nothing;
  for (const int kind : {0, 1, 2}) {
    g_round = 0;
    g_returned = 0;
    g_late = 0;
    const int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {};
    event.events = EPOLLIN;
    CHECK_EQ(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
    const pthread_t thread = start_thread(interrupt_each, &nothing);
    for (int i = 1; i <= kRounds; i++) {
      char byte;
      struct pollfd p = {fd, POLLIN, 0};
      g_round = i;
      if (kind == 0) CHECK_ERRNO(recv(fd, &byte, 1, 0), EINTR);
      if (kind == 1) CHECK_ERRNO(poll(&p, 1, -1), EINTR);
      if (kind == 2) CHECK_ERRNO(epoll_wait(epoll, &event, 1, -1), EINTR);
      g_returned = i;
    }
    join_thread(thread);
    close(epoll);
    if (g_late >= kRounds / 3) fprintf(stderr, "kind %d: %d of %d were late\n", kind, static_cast<int>(g_late), kRounds);
    CHECK(g_late < kRounds / 3);
  }
  finish(fd, sync);
}

const Case kCases[] = {
    {"told", echo_server, told_client},
    {"children", echo_server, children_client},
    {"queued", echo_server, queued_client},
    {"at_once", echo_server, at_once_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
