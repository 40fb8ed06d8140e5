// SPDX-License-Identifier: MIT
// The client makes connections and says on a Unix socket which is which, the server accepts them, and all have their scripted end.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/wait.h>

#include "stress.h"

using namespace testlib;

namespace stress {
namespace {

// A control message: which connection a client port is, or (port 0) how many there have been.
struct Message {
  uint32_t port;
  uint64_t id;
};

Class side_class(const Side* side, uint64_t id) {
  Random random(g_config.seed * 7919 + id * 2 + side->number);
  const size_t n = strlen(g_config.classes);
  const char c = g_config.classes[(random.next() >> 20) % n];
  return c == 'd' ? Class::kDedicated : c == 'l' ? Class::kLoop : Class::kPooled;
}

void check_end(const Worker* w, const Conn* c) {
  const Plan& p = c->plan;
  const unsigned me = c->side_number;
  if (p.exact) {
    if (c->role[kSend].bytes != p.send_limit[me]) broken(w, c, "bytes sent", static_cast<long long>(c->role[kSend].bytes.load()), static_cast<long long>(p.send_limit[me]));
    if (c->role[kReceive].bytes != p.send_limit[1 - me])
      broken(w, c, "bytes received", static_cast<long long>(c->role[kReceive].bytes.load()), static_cast<long long>(p.send_limit[1 - me]));
  }
  const bool reset = p.kind == kLinger || p.kind == kUnread || p.kind == kExitUnread;
  if (reset && me != p.actor && !c->saw_error) broken_promise(kReset, w, c, "the peer reset the connection, but no call said so", 0, 1);
}

void set_linger(int fd) {
  const struct linger linger = {1, 0};
  CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger), 0);
}

// ---- making connections ------------------------------------------------------------------------------------------------------

// A free slot, with both locks held.
Conn* take_slot(Side* side) {
  while (sem_wait(&side->free_slots) != 0) CHECK_EQ(errno, EINTR);
  for (unsigned i = 0; i < side->slots; i++) {
    Conn* c = &side->conns[i];
    if (c->generation & 1) continue;
    for (Way way : {kSend, kReceive}) CHECK_EQ(pthread_mutex_lock(&c->role[way].lock), 0);
    side->active.fetch_add(1);
    return c;
  }
  CHECK(!"a free slot");
}

void fill_in(Side* side, Conn* c, uint64_t id) {
  c->plan = make_plan(id);
  c->side_number = side->number;
  c->cls = side_class(side, id);
  for (Role& r : c->role) {
    r.bytes = 0;
    r.done = r.drained = r.watched = false;
  }
  c->roles_left = 2;
  c->finishing = c->saw_error = c->saw_eof = false;
  Random random(g_config.seed * 104729 + id * 2 + side->number);
  c->max_chunk = (g_config.max_chunk >> (random.next() >> 16) % 9) + 1;
  if (c->max_chunk > g_config.max_chunk) c->max_chunk = g_config.max_chunk;
  c->epoll = -1;
  c->own_events = c->interest = 0;
  c->seen_at_ms = now_ms();
  c->generation.fetch_add(1);
  g_totals.connections.fetch_add(1);
}

int connect_somehow(Worker* w, int port) {
  if (!w->one_in(3)) return connect_to(w->one_in(3) ? "::1" : "127.0.0.1", port);
  Address a = make_address("127.0.0.1", port);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  CHECK(fd >= 0);
  if (connect(fd, a.get(), a.length) != 0) {
    CHECK_EQ(errno, EINPROGRESS);
    struct pollfd p = {fd, POLLOUT, 0};
    CHECK_EQ(poll(&p, 1, 20000), 1);
    int error = -1;
    socklen_t length = sizeof error;
    CHECK_EQ(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length), 0);
    CHECK_EQ(error, 0);
  }
  return fd;
}

int connect_and_tell(Worker* w, Side* side, uint64_t id) {
  const int fd = connect_somehow(w, side->port);
  const Message message = {static_cast<uint32_t>(port_of(fd)), id};
  CHECK_EQ(write(side->control, &message, sizeof message), sizeof message);
  return fd;
}

// The child keeps copies of all other descriptors, or closes them.
[[noreturn]] void child_main(Side* side, uint64_t id, int connected) {
  alarm(static_cast<unsigned>(3 * g_config.patience_s));
  Worker w;
  init_worker(&w, side, 0x4000 + id);
  w.signals = false;
  if (w.one_in(2)) {
    unsigned from = 3;
    const auto control = static_cast<unsigned>(side->control), pipe_end = static_cast<unsigned>(connected);
    for (const unsigned keep : {control < pipe_end ? control : pipe_end, control < pipe_end ? pipe_end : control}) {
      if (keep > from) CHECK_EQ(close_range(from, keep - 1, 0), 0);
      from = keep + 1;
    }
    CHECK_EQ(close_range(from, ~0u, 0), 0);
  }
  static Conn conn;
  conn.side = side;
  fill_in(side, &conn, id);
  conn.cls = Class::kLoop;
  const int fd = connect_and_tell(&w, side, id);
  CHECK_EQ(write(connected, "c", 1), 1);
  conn.role[kSend].fd = conn.role[kReceive].fd = fd;
  run_child(&w, &conn);
  _exit(0);
}

class Children {
 public:
  void start(Side* side, uint64_t id) {
    if (count_ == 2) reap(1);
    fflush(nullptr);
    int connected[2];
    CHECK_EQ(pipe(connected), 0);
    const pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) child_main(side, id, connected[1]);
    CHECK_EQ(close(connected[1]), 0);
    // It has copies of our descriptors, so what we close stays open until it ends. If we went on making connections before it has one,
    // the server might have no slot left for the one that all others wait for.
    char byte;
    if (read(connected[0], &byte, 1) != 1) broken(nullptr, nullptr, "a child did not connect", 0, 1);
    CHECK_EQ(close(connected[0]), 0);
    pids_[count_++] = pid;
    g_totals.ends[kExitUnread].fetch_add(1);
    g_totals.connections.fetch_add(1);
  }
  void reap(unsigned keep) {
    for (; count_ > keep; pids_[0] = pids_[1], count_--) {
      int status = -1;
      pid_t pid;
      do pid = waitpid(pids_[0], &status, 0);
      while (pid < 0 && errno == EINTR);
      if (pid != pids_[0] || status != 0) broken(nullptr, nullptr, "a child with a connection ended with", status, 0);
    }
  }

 private:
  pid_t pids_[2] = {};
  unsigned count_ = 0;
};

// ---- the two sides -----------------------------------------------------------------------------------------------------------

Address control_address(int port) {
  Address a;
  auto* un = reinterpret_cast<struct sockaddr_un*>(&a.storage);
  un->sun_family = AF_UNIX;
  const int n = snprintf(un->sun_path + 1, sizeof un->sun_path - 1, "test-stress-%d", port);
  a.length = static_cast<socklen_t>(offsetof(struct sockaddr_un, sun_path) + 1 + static_cast<size_t>(n));
  return a;
}

struct Crew {
  pthread_t* threads;
  pthread_t signaller;
};

Crew start_crew(Side* side) {
  Crew crew = {new pthread_t[static_cast<size_t>(worker_count())], {}};
  start_workers(side, crew.threads);
  crew.signaller = start_thread(signaller, side);
  return crew;
}

// All connections have their end; then all threads.
void dismiss(Side* side, const Crew& crew) {
  for (unsigned i = 0; i < side->slots; i++)
    while (sem_wait(&side->free_slots) != 0) CHECK_EQ(errno, EINTR);
  side->stopping = true;
  const uint64_t one = 1;
  CHECK_EQ(write(side->wake, &one, sizeof one), sizeof one);
  for (long i = 0; i < worker_count(); i++) join_thread(crew.threads[i]);
  join_thread(crew.signaller);
  while (side->dedicated > 0) sched_yield();  // a few instructions from their end
  delete[] crew.threads;
}

// Which connection a port is: the messages that have come and were not asked for yet.
class Arrivals {
 public:
  explicit Arrivals(int control) : control_(control) {}
  uint64_t take(uint32_t port) {
    for (;;) {
      for (unsigned i = 0; i < count_; i++) {
        if (messages_[i].port != port) continue;
        const uint64_t id = messages_[i].id;
        memmove(&messages_[i], &messages_[i + 1], (--count_ - i) * sizeof messages_[0]);  // the order is kept: ports come again
        return id;
      }
      read_one();
    }
  }
  void read_one() {
    Message message;
    CHECK_EQ(read(control_, &message, sizeof message), sizeof message);
    CHECK(count_ < kMax);
    if (message.port == 0) total_ = message.id;
    else messages_[count_++] = message;
  }
  uint64_t total() const { return total_; }

 private:
  static constexpr unsigned kMax = 1024;
  int control_;
  Message messages_[kMax];
  unsigned count_ = 0;
  uint64_t total_ = UINT64_MAX;
};

void accept_connection(Worker* w, Side* side, Arrivals* arrivals) {
  Conn* c = take_slot(side);
  Address from;
  from.length = sizeof from.storage;
  const int fd = w->one_in(2) ? accept4(side->listener, from.get(), &from.length, SOCK_NONBLOCK | SOCK_CLOEXEC)
                              : accept(side->listener, from.get(), &from.length);
  CHECK(fd >= 0);
  fill_in(side, c, arrivals->take(ntohs(reinterpret_cast<struct sockaddr_in6*>(&from.storage)->sin6_port)));
  set_up(w, c, fd);
}

}  // namespace

void init_side(Side* side, unsigned number, unsigned slots) {
  side->number = number;
  side->slots = slots;
  side->control = -1;
  side->conns = new Conn[slots]();
  for (unsigned i = 0; i < slots; i++) {
    side->conns[i].side = side;
    side->conns[i].slot = i;
    for (Role& r : side->conns[i].role) CHECK_EQ(pthread_mutex_init(&r.lock, nullptr), 0);
  }
  CHECK_EQ(sem_init(&side->free_slots, 0, slots), 0);
}

void block_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigaddset(&set, SIGUSR2);
  CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, nullptr), 0);
}

void run_client(Side* side) {
  Worker w;
  init_worker(&w, side, 0x5000);
  w.note->what = "makes connections";
  w.signals = false;
  side->control = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  Address a = control_address(side->port);
  CHECK_EQ(connect(side->control, a.get(), a.length), 0);
  const Crew crew = start_crew(side);
  Children children;
  const int64_t end = now_ms() + g_config.seconds * 1000;
  uint64_t id = 0;
  for (; now_ms() < end && !out_of_operations(); id++) {
    if (make_plan(id).kind == kExitUnread) {
      children.start(side, id);
      continue;
    }
    Conn* c = take_slot(side);
    fill_in(side, c, id);
    set_up(&w, c, connect_and_tell(&w, side, id));
  }
  w.note->what = "waits for children";
  children.reap(0);
  const Message last = {0, id};
  CHECK_EQ(write(side->control, &last, sizeof last), sizeof last);
  w.note->what = "waits for the end";
  dismiss(side, crew);
  drop_worker(&w);
}

void run_server(Side* side) {
  Worker w;
  init_worker(&w, side, 0x6000);
  w.note->what = "accepts connections";
  w.signals = false;
  side->control = accept_one(side->control_listener);
  const Crew crew = start_crew(side);
  Arrivals arrivals(side->control);
  for (uint64_t accepted = 0; accepted < arrivals.total();) {
    struct pollfd p[] = {{side->listener, POLLIN, 0}, {side->control, POLLIN, 0}};
    if (poll(p, arrivals.total() == UINT64_MAX ? 2 : 1, -1) < 0) CHECK_EQ(errno, EINTR);
    if (p[0].revents != 0) {
      accept_connection(&w, side, &arrivals);
      accepted++;
    } else if (p[1].revents != 0) {
      arrivals.read_one();
    }
  }
  w.note->what = "waits for the end";
  dismiss(side, crew);
  drop_worker(&w);
}

void open_server(Side* side) {
  side->listener = listen_on("::");
  side->port = port_of(side->listener);
  side->control_listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  Address a = control_address(side->port);
  CHECK_EQ(bind(side->control_listener, a.get(), a.length), 0);
  CHECK_EQ(listen(side->control_listener, 1), 0);
  announce(side->listener);
}

void finish(Worker* w, Conn* c) {
  for (Way way : {kSend, kReceive}) CHECK_EQ(pthread_mutex_lock(&c->role[way].lock), 0);
  check_end(w, c);
  const bool actor = c->side_number == c->plan.actor;
  if (actor && c->plan.kind == kLinger) set_linger(c->role[kReceive].fd);
  // Some programs take a descriptor out of the epoll set before they close it, some do not.
  if (w->one_in(2)) {
    if (c->cls == Class::kLoop) CHECK_EQ(epoll_ctl(c->home, EPOLL_CTL_DEL, c->role[kReceive].fd, nullptr), 0);
    else forget_own_epoll(w, c);
  }
  if (c->epoll >= 0 && w->one_in(2)) {
    CHECK_EQ(close(c->epoll), 0);
    c->epoll = -1;
  }
  CHECK_EQ(close(c->role[kReceive].fd), 0);
  if (c->role[kSend].fd != c->role[kReceive].fd) CHECK_EQ(close(c->role[kSend].fd), 0);
  if (c->epoll >= 0) CHECK_EQ(close(c->epoll), 0);
  g_totals.ends[c->plan.kind].fetch_add(1);
  c->generation.fetch_add(1);
  c->side->active.fetch_sub(1);
  for (Way way : {kReceive, kSend}) CHECK_EQ(pthread_mutex_unlock(&c->role[way].lock), 0);
  CHECK_EQ(sem_post(&c->side->free_slots), 0);
}

}  // namespace stress
