// SPDX-License-Identifier: MIT
// Signal handlers beside calls on a stream, and what sigaction and its kin tell of them. `NAME list` prints the cases.
#include <dirent.h>
#include <sched.h>
#include <setjmp.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include <atomic>
#include <initializer_list>

#include "asleep.h"
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

// ---- handlers of other kinds --------------------------------------------------------------------------------------------

volatile sig_atomic_t g_faults, g_alarms;

void count_fault(int) {
  g_faults = g_faults + 1;
  if (g_faults > 3) _exit(7);  // it comes back to the instruction
}
void count_alarm(int) { g_alarms = g_alarms + 1; }

// A bad buffer is EFAULT also for a program that handles SIGSEGV, and afterwards its signals arrive as before.
void bad_buffer_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  set(SIGSEGV, count_fault, 0);
  set(SIGALRM, count_alarm, SA_RESTART);
  send_pattern(fd, kUp, offset, kTripBytes);
  wait_readable(fd);
  char* const bad = static_cast<char*>(mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  CHECK_ERRNO(recv(fd, bad, 10, 0), EFAULT);
  CHECK_ERRNO(send(fd, bad, 10, 0), EFAULT);
  CHECK_EQ(raise(SIGALRM), 0);
  recv_pattern(fd, kUp, offset, kTripBytes);
  offset += kTripBytes;
  exchange(fd, &offset);
  printf("faults %d alarms %d\n", static_cast<int>(g_faults), static_cast<int>(g_alarms));
  signal(SIGSEGV, SIG_DFL);
  finish(fd, sync);
}

// A handler that the kernel was told of directly interrupts like any other.
void past_libc_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  struct sigaction by_libc;  // for the restorer, of which libc does not tell
  set(SIGUSR1, count_alarm, 0);
  struct {
    void* handler;
    unsigned long flags;
    void* restorer;
    uint64_t mask;
  } raw = {};
  const auto call = [](const void* action, void* old) {
    long result = SYS_rt_sigaction;
    register long r10 asm("r10") = sizeof(uint64_t);
    asm volatile("syscall" : "+a"(result) : "D"(SIGUSR1), "S"(action), "d"(old), "r"(r10) : "rcx", "r11", "memory");
    return result;
  };
  CHECK_EQ(call(nullptr, &raw), 0);
  raw.handler = reinterpret_cast<void*>(count_alarm);
  CHECK_EQ(call(&raw, nullptr), 0);
  CHECK_EQ(sigaction(SIGUSR1, nullptr, &by_libc), 0);
  CHECK(by_libc.sa_handler == count_alarm);
  const pthread_t self = pthread_self();
  for (int i = 0; i < 3; i++) {
    WhenAsleep interrupt([=] { pthread_kill(self, SIGUSR1); });
    char byte;
    CHECK_ERRNO(recv(fd, &byte, 1, 0), EINTR);
  }
  CHECK_EQ(g_alarms, 3);
  finish(fd, sync);
}

std::atomic<bool> g_stop;

void rearm(int) { set(SIGWINCH, rearm, static_cast<int>(SA_RESETHAND)); }

void* wind_up(void*) {
  while (!g_stop) {
    raise(SIGWINCH);
    set(SIGWINCH, rearm, static_cast<int>(SA_RESETHAND));
  }
  return nullptr;
}

// Two threads get, and install, a handler for one signal each: whoever finds it spent gets the default action, which is none.
void once_client(int fd, const Sync& sync) {
  static int nothing;
  set(SIGWINCH, rearm, static_cast<int>(SA_RESETHAND));
  const pthread_t threads[] = {start_thread(wind_up, &nothing), start_thread(wind_up, &nothing)};
  uint64_t offset = 0;
  for (const int64_t end = now_ms() + 500; now_ms() < end;) exchange(fd, &offset, 5);
  g_stop = true;
  for (const pthread_t thread : threads) join_thread(thread);
  finish(fd, sync);
}

// SIGALRM for this thread alone.
timer_t make_timer() {
  timer_t timer;
  struct sigevent event = {};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = SIGALRM;
  event._sigev_un._tid = gettid();
  CHECK_EQ(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
  return timer;
}

void start_timer(timer_t timer, long first_ns, long period_ns) {
  struct itimerspec when = {};
  when.it_value.tv_nsec = first_ns;
  when.it_interval.tv_nsec = period_ns;
  CHECK_EQ(timer_settime(timer, 0, &when, nullptr), 0);
}

int g_inside_fd;

void send_mark(int) {
  const int error = errno;
  send(g_inside_fd, "\xff", 1, MSG_DONTWAIT);
  errno = error;
}

constexpr int kLargeMessages = 100;
constexpr size_t kLarge = 100000;

// Reads to the end: which messages (their bytes are their number) have marks inside.
void inside_server(int fd, const Sync& sync) {
  static unsigned char buffer[65536];
  int message = -1;
  unsigned marks = 0;
  static unsigned inside[256];
  ssize_t n;
  while ((n = recv(fd, buffer, sizeof buffer, 0)) > 0) {
    for (ssize_t i = 0; i < n; i++) {
      if (buffer[i] == 0xff) {
        marks++;
        continue;
      }
      if (buffer[i] == message) inside[message] += marks;
      message = buffer[i];
      marks = 0;
    }
  }
  CHECK_EQ(n, 0);
  send_all(fd, inside, sizeof inside);
  close(fd);
  sync.post();
}

// What a handler sends is inside of no message that send() says went whole.
void inside_client(int fd, const Sync& sync) {
  char data[64] = {};
  for (int i = 0; i < 20; i++) send_all(fd, data, sizeof data);
  g_inside_fd = fd;
  set(SIGALRM, send_mark, SA_RESTART);
  const timer_t timer = make_timer();
  start_timer(timer, 200000, 200000);
  static char message[kLarge];
  bool whole[kLargeMessages];
  for (int i = 0; i < kLargeMessages; i++) {
    memset(message, i + 1, sizeof message);
    ssize_t n = send(fd, message, sizeof message, 0);
    whole[i] = n == sizeof message;
    for (size_t done = n > 0 ? static_cast<size_t>(n) : 0; done < sizeof message; done += n > 0 ? static_cast<size_t>(n) : 0) {
      n = send(fd, message + done, sizeof message - done, 0);
    }
  }
  start_timer(timer, 0, 0);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  unsigned inside[256];
  recv_all(fd, inside, sizeof inside);
  for (int i = 0; i < kLargeMessages; i++) CHECK(!whole[i] || inside[i + 1] == 0);
  expect_eof(fd);
  close(fd);
  sync.wait();
}

// ---- jumps and deaths in the middle -------------------------------------------------------------------------------------

sigjmp_buf g_jump;
volatile sig_atomic_t g_armed;

void jump_out(int) {
  if (!g_armed) return;
  g_armed = 0;
  siglongjmp(g_jump, 1);
}

int count_descriptors() {
  int n = 0;
  for (int fd = 0; fd < 20000; fd++) n += fcntl(fd, F_GETFD) >= 0;
  return n;
}

int hidden_descriptors() {
  int n = 0;
  DIR* dir = opendir("/proc/self/fd");
  CHECK(dir != nullptr);
  while (readdir(dir) != nullptr) n++;
  closedir(dir);
  return n - count_descriptors();
}

// Out of recv and poll at any moment: thousands of them leave nothing behind.
void jumps_client(int fd, const Sync& sync) {
  static uint64_t offset;
  exchange(fd, &offset, 100);
  set(SIGALRM, jump_out, 0);
  static const timer_t timer = make_timer();
  const int before = hidden_descriptors();
  for (volatile int i = 0; i < 4000; i = i + 1) {
    if (sigsetjmp(g_jump, 1) != 0) continue;
    g_armed = 1;
    start_timer(timer, 2000 + i * 7919 % 40000, 0);
    char byte;
    struct pollfd p = {fd, POLLIN, 0};
    if (i % 2 != 0) poll(&p, 1, -1);
    if (i % 2 == 0) recv(fd, &byte, 1, 0);
  }
  g_armed = 0;
  CHECK(hidden_descriptors() - before < 20);
  exchange(fd, &offset, 100);
  finish(fd, sync);
}

volatile sig_atomic_t g_reaped;

void reap_all(int) {
  const int error = errno;
  while (waitpid(-1, nullptr, WNOHANG) > 0) g_reaped = g_reaped + 1;
  errno = error;
}

void killed_server(int fd, const Sync& sync) {
  static char data[4096];
  while (recv(fd, data, sizeof data, 0) > 0) send(fd, data, 1000, MSG_DONTWAIT | MSG_NOSIGNAL);
  close(fd);
  sync.post();
}

// A child that has the stream too is killed at any moment, and its parent is told by a signal. What was under way is lost, nothing else.
void killed_client(int fd, const Sync& sync) {
  static char data[4096];
  for (int i = 0; i < 20; i++) {
    CHECK_EQ(send(fd, data, 1000, 0), 1000);
    recv_all(fd, data, 1000);
  }
  set(SIGCHLD, reap_all, SA_RESTART);
  for (int round = 0; round < 150; round++) {
    const int wanted = g_reaped + 1;
    fflush(stdout);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      for (;;) {
        send(fd, data, 1000, MSG_DONTWAIT);
        recv(fd, data, 1000, MSG_DONTWAIT);
      }
    }
    for (int i = 0; g_reaped < wanted; i++) {
      send(fd, data, 1000, MSG_DONTWAIT);
      recv(fd, data, sizeof data, MSG_DONTWAIT);
      if (i == round * 7 % 400) CHECK_EQ(kill(child, SIGKILL), 0);
    }
  }
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  while (recv(fd, data, sizeof data, 0) > 0) {
  }
  close(fd);
  sync.wait();
}

const Case kCases[] = {
    {"told", echo_server, told_client},
    {"children", echo_server, children_client},
    {"queued", echo_server, queued_client},
    {"at_once", echo_server, at_once_client},
    {"bad_buffer", echo_server, bad_buffer_client},
    {"past_libc", echo_server, past_libc_client},
    {"once", echo_server, once_client},
    {"inside", inside_server, inside_client},
    {"jumps", echo_server, jumps_client},
    {"killed", killed_server, killed_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
