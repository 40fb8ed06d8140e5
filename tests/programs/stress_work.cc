// SPDX-License-Identifier: MIT
// The threads that work on the connections: two to four of a connection's own, workers that take any, event loops, signals, children.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "stress.h"

namespace stress {
namespace {

constexpr uint64_t kWakeMark = UINT64_MAX, kNestedMark = UINT64_MAX - 1;
constexpr unsigned kNotes = 512;
Note g_notes[kNotes];

void at(Worker* w, const Conn* c, Way way, const char* what) {
  w->note->conn = c;
  w->note->way = way;
  w->note->what = what;
}

void set_signals(Worker* w, bool open) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigaddset(&set, SIGUSR2);
  CHECK_EQ(pthread_sigmask(open ? SIG_UNBLOCK : SIG_BLOCK, &set, nullptr), 0);
  w->signals = open;
}

Outcome step(Worker* w, Conn* c, Way way) { return way == kSend ? send_some(w, c) : receive_some(w, c); }

// Under the role's lock: the connection is in use and this direction goes on.
bool usable(const Conn* c, Class cls, Way way) { return (c->generation & 1) != 0 && c->cls == cls && !c->role[way].done; }

// ---- a connection's own threads --------------------------------------------------------------------------------------------

struct Start {
  Conn* conn;
  Way way;
  uint64_t salt;
};

void* dedicated(void* argument) {
  auto* start = static_cast<Start*>(argument);
  Conn* c = start->conn;
  const Way way = start->way;
  Worker w;
  init_worker(&w, c->side, start->salt);
  delete start;
  // Without signals a wake-up that is lost stays lost, and blocking calls must be complete.
  set_signals(&w, g_config.signals && w.one_in(2));
  Role& r = c->role[way];
  bool must_wait = false;
  for (;;) {
    CHECK_EQ(pthread_mutex_lock(&r.lock), 0);
    if (!r.done && (must_wait || w.one_in(6))) {
      at(&w, c, way, "waits for ever");
      wait_ready(&w, c, way, -1);
    }
    at(&w, c, way, "blocks");
    must_wait = !r.done && step(&w, c, way) == Outcome::kAgain;
    at(&w, c, way, "odd thing");
    odd_thing(&w, c, way);
    const bool done = r.done;
    CHECK_EQ(pthread_mutex_unlock(&r.lock), 0);
    if (done) break;
  }
  if (c->threads_left.fetch_sub(1) == 1) {
    at(&w, c, way, "ends the connection");
    finish(&w, c);
  }
  Side* side = w.side;
  drop_worker(&w);
  side->dedicated.fetch_sub(1);
  return nullptr;
}

void start_dedicated(Worker* w, Conn* c) {
  Way ways[4] = {kSend, kReceive};
  int n = 2;
  if (w->one_in(3)) ways[n++] = kSend;  // take turns under the role's lock
  if (w->one_in(3)) ways[n++] = kReceive;
  c->threads_left = n;
  c->side->dedicated.fetch_add(n);
  for (int i = 0; i < n; i++) CHECK_EQ(pthread_detach(testlib::start_thread(dedicated, new Start{c, ways[i], w->random.next()})), 0);
}

// ---- workers ---------------------------------------------------------------------------------------------------------------

// Under a lock of the connection, which keeps the slot from being used again meanwhile: whether the caller has to finish it.
bool must_finish(Conn* c, Outcome outcome) { return outcome == Outcome::kDone && c->roles_left == 0 && !c->finishing.exchange(true); }

// Takes up to `max` free roles at random; their locks are held then.
unsigned take_roles(Worker* w, Conn** conns, Way* ways, unsigned max) {
  unsigned n = 0;
  for (unsigned tries = 0; tries < 4 * w->side->slots && n < max; tries++) {
    Conn* c = &w->side->conns[w->below(w->side->slots)];
    const Way way = w->one_in(2) ? kSend : kReceive;
    if (!(c->generation & 1) || c->cls != Class::kPooled || pthread_mutex_trylock(&c->role[way].lock) != 0) continue;
    if (usable(c, Class::kPooled, way)) {
      conns[n] = c;
      ways[n++] = way;
    } else {
      CHECK_EQ(pthread_mutex_unlock(&c->role[way].lock), 0);
    }
  }
  return n;
}

void work_once(Worker* w) {
  constexpr unsigned kMany = 6;
  Conn* conns[kMany];
  Way ways[kMany];
  bool ready[kMany];
  const unsigned n = take_roles(w, conns, ways, w->one_in(3) ? kMany : 1);
  if (n == 0) {
    at(w, nullptr, kSend, "has nothing to do");
    usleep(1000);
    return;
  }
  for (unsigned i = 0; i < n; i++) ready[i] = true;
  w->promised[kSend] = w->promised[kReceive] = false;
  at(w, conns[0], ways[0], "waits for some ms");
  if (n > 1) wait_many(w, conns, ways, ready, n, static_cast<int>(w->below(10)));
  else if (w->one_in(3)) ready[0] = wait_ready(w, conns[0], ways[0], static_cast<int>(w->below(10)));
  for (unsigned i = 0; i < n; i++) {
    Conn* c = conns[i];
    Outcome outcome = Outcome::kProgress;
    if (n > 1) w->promised[ways[i]] = ready[i];
    at(w, c, ways[i], "is in a call with a time limit");
    // One more step than what was promised now and then, to run into the end.
    for (uint64_t steps = ready[i] ? 1 + w->below(4) : 0; steps > 0 && outcome == Outcome::kProgress; steps--) outcome = step(w, c, ways[i]);
    w->promised[ways[i]] = false;
    odd_thing(w, c, ways[i]);
    const bool mine = must_finish(c, outcome);
    CHECK_EQ(pthread_mutex_unlock(&c->role[ways[i]].lock), 0);
    at(w, c, ways[i], "ends the connection");
    if (mine) finish(w, c);
  }
}

void* pool_worker(void* argument) {
  Worker w;
  init_worker(&w, static_cast<Side*>(argument), 0x1000 + static_cast<uint64_t>(syscall(SYS_gettid)) % 64);
  set_signals(&w, g_config.signals);
  while (!w.side->stopping || w.side->active > 0) work_once(&w);
  drop_worker(&w);
  return nullptr;
}

// ---- event loops -----------------------------------------------------------------------------------------------------------

// Works on one direction until it would block, or stops early. True: it would block, or is done.
bool serve(Worker* w, Conn* c, Way way, Outcome* last) {
  for (uint64_t budget = 1 + w->below(5); budget > 0; budget--) {
    if (c->role[way].done) return true;
    *last = step(w, c, way);
    if (*last != Outcome::kProgress) return true;
  }
  return false;
}

// Both locks of the connection that an event is about. False: the event is late, the slot may be somebody else's, who holds them long.
bool lock_for_event(Conn* c, uint32_t generation) {
  while (c->generation == generation) {
    if (pthread_mutex_trylock(&c->role[kSend].lock) == 0) {
      if (pthread_mutex_trylock(&c->role[kReceive].lock) == 0) return true;
      CHECK_EQ(pthread_mutex_unlock(&c->role[kSend].lock), 0);
    }
    sched_yield();
  }
  return false;
}

void serve_event(Worker* w, uint64_t data) {
  Conn* c = &w->side->conns[data & 0xFFFFFFFF];
  const auto generation = static_cast<uint32_t>(data >> 32);
  if (!lock_for_event(c, generation)) return;
  Outcome outcome = Outcome::kProgress;
  bool mine = false;
  if (c->generation == generation && c->roles_left > 0) {
    bool exhausted = true;
    const Way first = w->one_in(2) ? kSend : kReceive;
    for (Way way : {first, first == kSend ? kReceive : kSend}) {
      at(w, c, way, "serves an event");
      exhausted &= serve(w, c, way, &outcome);
      odd_thing(w, c, way);
    }
    // A level comes again by itself. An edge does not when bytes were left, and one-shot never does.
    if (c->roles_left > 0) loop_register(w, c, false, c->flavour == EPOLLONESHOT || (c->flavour == EPOLLET && !exhausted));
    else mine = must_finish(c, Outcome::kDone);
  }
  for (Way way : {kReceive, kSend}) CHECK_EQ(pthread_mutex_unlock(&c->role[way].lock), 0);
  if (mine) finish(w, c);
}

// False when it is time to go.
bool serve_events(Worker* w, int epoll, int timeout_ms) {
  struct epoll_event events[8];
  at(w, nullptr, kReceive, timeout_ms < 0 ? "waits for events for ever" : "asks for events");
  count(w, epoll == w->side->nested_epoll ? kDo_epoll_nested : kDo_epoll_shared);
  const int n = epoll_wait(epoll, events, 1 + static_cast<int>(w->below(8)), timeout_ms);
  if (n < 0 && (errno != EINTR || !w->signals)) broken(w, nullptr, "epoll_wait", errno, EINTR);
  if (n == 0 && timeout_ms < 0) broken(w, nullptr, "epoll_wait without a limit", 0, 1);
  bool go_on = true;
  for (int i = 0; i < n; i++) {
    if (events[i].data.u64 == kWakeMark) go_on = false;
    else if (events[i].data.u64 == kNestedMark) serve_events(w, w->side->nested_epoll, 0);
    else serve_event(w, events[i].data.u64);
  }
  return go_on;
}

void* loop_worker(void* argument) {
  Worker w;
  init_worker(&w, static_cast<Side*>(argument), 0x2000 + static_cast<uint64_t>(syscall(SYS_gettid)) % 64);
  set_signals(&w, false);
  while (serve_events(&w, w.side->loop_epoll, -1)) continue;
  drop_worker(&w);
  return nullptr;
}

void open_loop(Side* side) {
  side->loop_epoll = epoll_create1(EPOLL_CLOEXEC);
  side->nested_epoll = epoll_create1(EPOLL_CLOEXEC);
  side->wake = eventfd(0, EFD_CLOEXEC);
  CHECK(side->loop_epoll >= 0 && side->nested_epoll >= 0 && side->wake >= 0);
  const struct {
    int fd;
    uint64_t mark;
  } members[] = {{side->wake, kWakeMark}, {side->nested_epoll, kNestedMark}};
  for (const auto& member : members) {
    struct epoll_event event = {};
    event.events = EPOLLIN;
    event.data.u64 = member.mark;
    CHECK_EQ(epoll_ctl(side->loop_epoll, EPOLL_CTL_ADD, member.fd, &event), 0);
  }
}

void reap(Worker* w, pid_t child) {
  int status = 0;
  pid_t pid;
  do pid = waitpid(child, &status, 0);
  while (pid < 0 && errno == EINTR);
  if (pid != child || status != 0) broken(w, nullptr, "a child that exits at once ended with", status, 0);
}

}  // namespace

Note* take_note() {
  for (Note& note : g_notes) {
    bool expected = false;
    if (!note.used.compare_exchange_strong(expected, true)) continue;
    note.conn = nullptr;
    note.what = "starts";
    note.tid = static_cast<int>(syscall(SYS_gettid));
    return &note;
  }
  CHECK(!"too many threads");
}

void print_threads() {
  for (const Note& note : g_notes) {
    if (!note.used) continue;
    const Conn* c = note.conn;
    fprintf(stderr, "  thread %d %s", note.tid.load(), note.what.load());
    if (c != nullptr) fprintf(stderr, " (connection %llu, %s)", static_cast<unsigned long long>(c->plan.id), note.way == kSend ? "send" : "receive");
    fprintf(stderr, "\n");
  }
}

void init_worker(Worker* w, Side* side, uint64_t salt) {
  w->random = Random(g_config.seed * 31 + salt * 2 + side->number);
  w->side = side;
  w->note = take_note();
  w->buffer = static_cast<char*>(malloc(g_config.max_chunk + kMargin));
  CHECK(w->buffer != nullptr);
}

void drop_worker(Worker* w) {
  free(w->buffer);
  for (const int fd : {w->pipe[0], w->pipe[1]})
    if (fd >= 0) close(fd);
  w->note->used = false;
}

void set_up(Worker* w, Conn* c, int fd) {
  c->role[kReceive].fd = fd;
  c->role[kSend].fd = w->one_in(2) ? fd : dup(fd);
  CHECK(c->role[kSend].fd >= 0);
  c->epoll_owner = w->one_in(2) ? kSend : kReceive;
  c->toggles = c->cls == Class::kPooled || (c->cls == Class::kDedicated && w->one_in(3));
  c->timeouts = c->cls == Class::kPooled;
  if (!w->one_in(8)) testlib::no_delay(fd);
  testlib::set_nonblocking(fd, c->cls == Class::kLoop);
  const struct timeval tv = {0, c->timeouts ? 10000 : 0};
  for (const int option : {SO_RCVTIMEO, SO_SNDTIMEO})
    if (c->timeouts) CHECK_EQ(setsockopt(fd, SOL_SOCKET, option, &tv, sizeof tv), 0);
  static const uint32_t kFlavours[] = {0, EPOLLET, EPOLLONESHOT};
  c->flavour = kFlavours[w->below(3)];
  c->home = c->side->loop_epoll;
  if (w->one_in(4) && allowed(kDo_epoll_nested)) c->home = c->side->nested_epoll;
  if (c->cls == Class::kDedicated) start_dedicated(w, c);
  if (c->cls == Class::kLoop) loop_register(w, c, true, false);
  for (Way way : {kReceive, kSend}) CHECK_EQ(pthread_mutex_unlock(&c->role[way].lock), 0);
}

long worker_count() { return g_config.workers + g_config.loops; }

void start_workers(Side* side, pthread_t* threads) {
  open_loop(side);
  for (long i = 0; i < worker_count(); i++) threads[i] = testlib::start_thread(i < g_config.workers ? pool_worker : loop_worker, side);
}

void* signaller(void* argument) {
  Worker w;
  init_worker(&w, static_cast<Side*>(argument), 0x3000);
  set_signals(&w, false);
  while (!w.side->stopping) {
    at(&w, nullptr, kSend, "signals and forks");
    usleep(static_cast<useconds_t>(w.below(20000)));
    if (g_config.signals) {
      count(&w, kDo_signal);
      CHECK_EQ(kill(getpid(), w.one_in(2) ? SIGUSR1 : SIGUSR2), 0);
    }
    if (!g_config.forks || !allowed(kDo_fork) || !w.one_in(40)) continue;
    count(&w, kDo_fork);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) _exit(0);
    reap(&w, child);
  }
  drop_worker(&w);
  return nullptr;
}

// A single thread that polls both directions: all there is in a child of a threaded process.
void run_child(Worker* w, Conn* c) {
  testlib::set_nonblocking(c->role[kReceive].fd);
  while (c->roles_left > 0) {
    struct pollfd p = {c->role[kReceive].fd, 0, 0};
    for (Way way : {kSend, kReceive})
      if (!c->role[way].done) p.events |= static_cast<short>(way == kSend ? POLLOUT : POLLIN);
    if (poll(&p, 1, -1) < 0 && errno != EINTR) broken(w, c, "poll in the child", errno, 0);
    for (Way way : {kSend, kReceive})
      if (!c->role[way].done) step(w, c, way);
  }
}

}  // namespace stress
