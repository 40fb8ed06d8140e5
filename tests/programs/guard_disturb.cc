// SPDX-License-Identifier: MIT
// What could leave a thread with the library's key open: signals at any moment, jumps out of handlers, cancellation, threads and processes
// born while others are in the middle of a call. PKRU is read back wherever the program's own code runs.
#include <poll.h>
#include <sched.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/wait.h>

#include <atomic>
#include <initializer_list>

#include "asleep.h"
#include "case_tools.h"
#include "guarded.h"

using namespace testlib;

namespace {

constexpr int64_t kBusyMs = 700;
constexpr int kDepthMax = 20;
int g_key;  // the library's; 0: none

void look() { expect_closed(g_key); }

void find_key() {
  g_key = Guarded().key();
  if (g_key > 0) printf("KEY %d\n", g_key);
  look();
}

// A second stream, both ends in this process, upgraded as well.
struct Pair {
  int near, far;
};

Pair make_pair_here() {
  const int listener = listen_on("127.0.0.1");
  Pair p;
  p.near = connect_to("127.0.0.1", port_of(listener));
  p.far = accept_one(listener);
  close(listener);
  char data[kWarmBytes] = {};
  for (const int fd : {p.near, p.far}) no_delay(fd);
  for (int i = 0; i < kWarmTrips; i++) {
    send_all(p.near, data, sizeof data);
    recv_all(p.far, data, sizeof data);
    send_all(p.far, data, sizeof data);
    recv_all(p.near, data, sizeof data);
  }
  return p;
}

// Sends `number` to one thread as fast as it goes, until stopped or so long: where calls are slow the thread may come to nothing else.
class Storm {
 public:
  Storm(pthread_t target, int number, long pause_ns, int64_t ms = kBusyMs)
      : target_(target), number_(number), pause_ns_(pause_ns), end_(now_ms() + ms), thread_(start_thread(run, this)) {}
  ~Storm() { stop(); }
  void stop() {
    if (stopped_) return;
    stopped_ = true;
    join_thread(thread_);
  }
  Storm(const Storm&) = delete;
  Storm& operator=(const Storm&) = delete;

 private:
  static void* run(void* argument) {
    auto* self = static_cast<Storm*>(argument);
    while (!self->stopped_ && now_ms() < self->end_) {
      pthread_kill(self->target_, self->number_);
      const struct timespec pause = {0, self->pause_ns_};
      nanosleep(&pause, nullptr);
    }
    return nullptr;
  }

  pthread_t target_;
  int number_;
  long pause_ns_;
  int64_t end_;
  volatile bool stopped_ = false;
  pthread_t thread_;
};

void handle(int number, void (*handler)(int), int flags) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  CHECK_EQ(sigaction(number, &action, nullptr), 0);
}

// ---- handlers that use streams themselves -----------------------------------------------------------------------------

int g_main_fd;
Pair g_other;
// Atomic: a handler comes into the middle of another one's counting. (A step lost so made the end wait for a byte that nobody had sent.)
std::atomic<int> g_handled, g_other_sent, g_other_taken, g_nested, g_depth;

// On another stream: one byte in, and whatever there is out. A stream that the interrupted call has in hand may be refused.
void use_other(int number) {
  const int error = errno;
  look();
  g_handled++;
  // With SA_NODEFER, and calls slower than the storm, one comes on top of the other until the stack is full.
  if (g_depth >= kDepthMax) return;
  if (g_depth > 0) g_nested++;
  g_depth++;
  char data[8] = {'x'};
  if (send(g_other.near, data, 1, MSG_DONTWAIT) == 1) g_other_sent++;
  look();
  const ssize_t n = recv(g_other.far, data, sizeof data, MSG_DONTWAIT);
  if (n > 0) g_other_taken += static_cast<int>(n);
  look();
  // The very stream that is in use: looked at, not changed.
  recv(g_main_fd, data, sizeof data, MSG_PEEK | MSG_DONTWAIT);
  struct pollfd p = {g_main_fd, POLLIN | POLLOUT, 0};
  poll(&p, 1, 0);
  look();
  if (number == SIGUSR1 && g_depth == 1) raise(SIGUSR2);
  look();
  g_depth--;
  errno = error;
}

void storm_client_with(int fd, const Sync& sync, int flags) {
  find_key();
  g_main_fd = fd;
  g_other = make_pair_here();
  handle(SIGUSR1, use_other, SA_RESTART | flags);
  handle(SIGUSR2, use_other, SA_RESTART | flags);
  uint64_t offset = 0;
  {
    // The second slower: of two that are always pending the kernel runs the higher number first.
    Storm first(pthread_self(), SIGUSR1, 30000), second(pthread_self(), SIGUSR2, 1000000);
    const int64_t end = now_ms() + kBusyMs;
    while (now_ms() < end) {
      exchange(fd, &offset, 5);
      look();
    }
  }
  printf("HANDLED %d NESTED %d OTHER %d\n", static_cast<int>(g_handled), static_cast<int>(g_nested), static_cast<int>(g_other_sent));
  CHECK(g_handled > 100 && g_nested > 0 && g_other_sent > 10);
  // Nothing of the other stream is lost.
  char byte;
  while (g_other_taken < g_other_sent) {
    CHECK_EQ(recv(g_other.far, &byte, 1, 0), 1);
    g_other_taken++;
  }
  CHECK_ERRNO(recv(g_other.far, &byte, 1, MSG_DONTWAIT), EAGAIN);
  look();
  close(g_other.near);
  expect_eof(g_other.far);
  close(g_other.far);
  finish(fd, sync);
}

void storm_client(int fd, const Sync& sync) { storm_client_with(fd, sync, 0); }
void storm_nodefer_client(int fd, const Sync& sync) { storm_client_with(fd, sync, SA_NODEFER); }

void storm_altstack_client(int fd, const Sync& sync) {
  stack_t stack = {};
  stack.ss_size = 64 * 1024;
  stack.ss_sp = malloc(stack.ss_size);
  CHECK_EQ(sigaltstack(&stack, nullptr), 0);
  storm_client_with(fd, sync, SA_ONSTACK);
}

// ---- jumps out of handlers --------------------------------------------------------------------------------------------

sigjmp_buf g_jump;
volatile sig_atomic_t g_may_jump, g_waits;

void jump(int) {
  look();
  if (g_may_jump) siglongjmp(g_jump, 1);
}

// Out of a call that sleeps: no state of the stream is in the hands of the call then, on TCP or here.
template <typename F>
void jump_out_of(F call) {
  for (int i = 0; i < 15; i++) {
    const pthread_t self = pthread_self();
    WhenAsleep interrupt([=] {
      g_may_jump = 1;
      pthread_kill(self, SIGUSR1);
    });
    if (sigsetjmp(g_jump, 1) == 0) {
      call();
      CHECK(!"returned");
    }
    g_may_jump = 0;
    look();
  }
}

void jump_asleep_client(int fd, const Sync& sync) {
  find_key();
  handle(SIGUSR1, jump, SA_RESTART);
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event event = {};
  event.events = EPOLLIN;
  CHECK_EQ(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
  uint64_t offset = 0;
  static char byte;
  jump_out_of([=] { recv(fd, &byte, 1, 0); });
  exchange(fd, &offset);
  jump_out_of([=] {
    struct pollfd p = {fd, POLLIN, 0};
    poll(&p, 1, -1);
  });
  exchange(fd, &offset);
  jump_out_of([=] {
    struct epoll_event got;
    epoll_wait(epoll, &got, 1, -1);
  });
  exchange(fd, &offset);
  look();
  close(epoll);
  finish(fd, sync);
}

// A thread that has jumped out of sleeping calls ends like any other: nothing of those calls is left on it.
void* jump_and_end(void* argument) {
  static char byte;
  const int fd = *static_cast<int*>(argument);
  jump_out_of([=] { recv(fd, &byte, 1, 0); });
  jump_out_of([=] {
    struct pollfd p = {fd, POLLIN, 0};
    poll(&p, 1, -1);
  });
  pthread_exit(argument);
}

void* jump_and_wait(void* argument) {
  static char byte;
  const int fd = *static_cast<int*>(argument);
  jump_out_of([=] { recv(fd, &byte, 1, 0); });
  g_waits = 1;
  for (;;) pause();
}

void jump_end_client(int fd, const Sync& sync) {
  find_key();
  handle(SIGUSR1, jump, SA_RESTART);
  uint64_t offset = 0;
  for (int i = 0; i < 3; i++) {
    join_thread(start_thread(jump_and_end, &fd));
    exchange(fd, &offset);
  }
  const pthread_t thread = start_thread(jump_and_wait, &fd);
  while (g_waits == 0) sched_yield();
  CHECK_EQ(pthread_cancel(thread), 0);
  join_thread(thread);
  exchange(fd, &offset);
  look();
  finish(fd, sync);
}

// Out of any moment of send and recv, which POSIX calls async-signal-safe: on TCP the stream goes on. How much the call had moved is lost,
// so the bytes are all the same, and only that both directions still work is checked.
void jump_busy_client(int fd, const Sync& sync) {
  find_key();
  handle(SIGUSR1, jump, 0);
  char data[kTripBytes];
  memset(data, 'j', sizeof data);
  volatile long jumps = 0;
  {
    Storm storm(pthread_self(), SIGUSR1, 30000);
    const int64_t end = now_ms() + kBusyMs;
    while (now_ms() < end) {
      if (sigsetjmp(g_jump, 1) != 0) {
        g_may_jump = 0;
        jumps = jumps + 1;
        if (now_ms() >= end) break;  // where calls are slow none of the rounds below may come to its end
      }
      look();
      g_may_jump = 1;
      for (int i = 0; i < 100; i++) {
        send(fd, data, sizeof data, MSG_DONTWAIT);
        recv(fd, data, sizeof data, MSG_DONTWAIT);
      }
      g_may_jump = 0;
    }
  }
  printf("JUMPS %ld\n", jumps);
  CHECK(jumps > 20);
  // A blocking call says EAGAIN only when there is a timeout.
  CHECK_EQ(send(fd, data, 1, 0), 1);
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  ssize_t n;
  while ((n = recv(fd, data, sizeof data, 0)) > 0) {
  }
  CHECK_EQ(n, 0);
  look();
  close(fd);
  sync.wait();
}

// ---- cancellation -----------------------------------------------------------------------------------------------------

void on_cancel(void*) { look(); }

struct Blocked {
  int fd;
  bool sends;
  volatile pid_t tid;
};

void* block_in_call(void* argument) {
  auto* self = static_cast<Blocked*>(argument);
  static char data[65536];
  pthread_cleanup_push(on_cancel, nullptr);
  self->tid = gettid();
  if (self->sends) {
    for (;;) send(self->fd, data, sizeof data, MSG_NOSIGNAL);
  } else {
    for (;;) recv(self->fd, data, 1, 0);
  }
  pthread_cleanup_pop(0);
  return nullptr;
}

void cancel_one(Blocked* blocked) {
  blocked->tid = 0;
  const pthread_t thread = start_thread(block_in_call, blocked);
  while (blocked->tid == 0) sched_yield();
  await_asleep(blocked->tid);
  CHECK_EQ(pthread_cancel(thread), 0);
  join_thread(thread);
  look();
}

void cancel_client(int fd, const Sync& sync) {
  find_key();
  Blocked blocked = {fd, false, 0};
  uint64_t offset = 0;
  for (int i = 0; i < 10; i++) {
    cancel_one(&blocked);
    exchange(fd, &offset);
  }
  // A full stream: what went is the program's guess, so it is a stream of its own.
  Pair pair = make_pair_here();
  blocked = {pair.near, true, 0};
  cancel_one(&blocked);
  static char data[65536];
  CHECK(recv(pair.far, data, sizeof data, 0) > 0);
  look();
  close(pair.near);
  close(pair.far);
  exchange(fd, &offset);
  finish(fd, sync);
}

// ---- births -----------------------------------------------------------------------------------------------------------

struct Busy {
  int fd;
  uint64_t offset;
  volatile bool stop;
};

void* keep_busy(void* argument) {
  auto* self = static_cast<Busy*>(argument);
  while (!self->stop) {
    exchange(self->fd, &self->offset, 5);
    look();
  }
  return nullptr;
}

// `act` again and again, while another thread is in and out of the library.
template <typename F>
void beside_busy(int fd, const Sync& sync, int times, F act) {
  find_key();
  catch_faults();
  Busy busy = {fd, 0, false};
  const pthread_t thread = start_thread(keep_busy, &busy);
  const int64_t end = now_ms() + 4000;
  for (int i = 0; i < times && now_ms() < end; i++) {
    act();
    look();
  }
  busy.stop = true;
  join_thread(thread);
  exchange(fd, &busy.offset);
  finish(fd, sync);
}

// Where a newborn's first steps are its own code: the key is closed, and a touch shows it.
void look_closely() {
  look();
  static const Guarded guarded;
  if (g_key > 0) CHECK_EQ(touch_read(reinterpret_cast<uintptr_t>(guarded.channel())).code, SEGV_PKUERR);
}

void* newborn(void*) {
  look_closely();
  return nullptr;
}

void threads_client(int fd, const Sync& sync) {
  beside_busy(fd, sync, 300, [] {
    static int nothing;
    join_thread(start_thread(newborn, &nothing));
  });
}

void expect_good_end(pid_t child) {
  int status;
  CHECK(child > 0);
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
}

int born_by_clone(void*) {
  look();
  return 0;
}

void processes_client(int fd, const Sync& sync) {
  set_close_on_exec(fd);  // or posix_spawn hands the stream on, which takes it off its ring
  beside_busy(fd, sync, 40, [] {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
      look_closely();
      _exit(0);
    }
    expect_good_end(child);
    child = vfork();
    if (child == 0) {
      look();
      _exit(0);
    }
    expect_good_end(child);
    child = _Fork();
    if (child == 0) {
      look_closely();
      _exit(0);
    }
    expect_good_end(child);
    alignas(16) static char stack[65536];
    expect_good_end(clone(born_by_clone, stack + sizeof stack, SIGCHLD, nullptr));
    expect_good_end(clone(born_by_clone, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, nullptr));
    char name[] = "/bin/true";
    char* arguments[] = {name, nullptr};
    CHECK_EQ(posix_spawn(&child, name, nullptr, nullptr, arguments, plain_environment()), 0);
    expect_good_end(child);
  });
}

// Born in a handler that interrupted the library anywhere: the kernel starts a handler with the key closed.
volatile sig_atomic_t g_births;

template <typename F>
void give_birth(F end) {
  const int error = errno;
  look();
  const pid_t child = _Fork();
  if (child == 0) {
    look();
    end();
  }
  int status = -1;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  CHECK_EQ(status, 0);
  g_births = g_births + 1;
  errno = error;
}

// Past the library, which does not see how this child ends.
void birth_in_handler(int) {
  give_birth([] { asm volatile("syscall" : : "a"(SYS_exit_group), "D"(0) : "rcx", "r11", "memory"); });
}

// As programs do it: _Fork and _exit are async-signal-safe (POSIX 2024).
void birth_and_exit_in_handler(int) {
  give_birth([] { _exit(0); });
}

void handler_forks_with(int fd, const Sync& sync, void (*handler)(int)) {
  find_key();
  handle(SIGUSR1, handler, SA_RESTART);
  uint64_t offset = 0;
  {
    Storm storm(pthread_self(), SIGUSR1, 2000000, 20000);
    const int64_t end = now_ms() + kBusyMs;
    while (now_ms() < end || g_births < 5) exchange(fd, &offset, 5);
  }
  printf("BIRTHS %d\n", static_cast<int>(g_births));
  look();
  finish(fd, sync);
}

void handler_forks_client(int fd, const Sync& sync) { handler_forks_with(fd, sync, birth_in_handler); }
void handler_forks_exit_client(int fd, const Sync& sync) { handler_forks_with(fd, sync, birth_and_exit_in_handler); }

const Case kCases[] = {
    {"storm", echo_server, storm_client},
    {"storm_nodefer", echo_server, storm_nodefer_client},
    {"storm_altstack", echo_server, storm_altstack_client},
    {"jump_asleep", echo_server, jump_asleep_client},
    {"jump_end", echo_server, jump_end_client},
    {"jump_busy", echo_server, jump_busy_client},
    {"cancel", echo_server, cancel_client},
    {"threads", echo_server, threads_client},
    {"processes", echo_server, processes_client},
    {"handler_forks", echo_server, handler_forks_client},
    {"handler_forks_exit", echo_server, handler_forks_exit_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
