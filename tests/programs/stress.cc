// SPDX-License-Identifier: MIT
// stress server|client|both: see stress.h. Prints SEED, at the end what was done, and EXIT-SUCCESS; a failure prints all connections.
//
// --seed=N (both ends the same) --seconds=N --ops=N --connections=N (at once) --workers=N --loops=N --max-bytes=N (per direction)
// --max-chunk=N --patience=N (seconds without progress that are a hang) --classes=dpl (dedicated, pooled, loop) --skip=name,name
// --lenient=name,name (see Promise)
// --forks=0|1 --signals=0|1 --revoke=0|1 (what forces streams back to TCP) --hang-wait=N (seconds for a debugger before the abort)
#include "stress.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/wait.h>

using namespace testlib;

namespace stress {

Config g_config;
Totals g_totals;

namespace {

const char* const kOperationNames[] = {
#define STRESS_NAME(name) #name,
    STRESS_OPERATIONS(STRESS_NAME)
#undef STRESS_NAME
};
const char* const kEndNames[] = {"half-close", "close", "linger-0", "close-unread", "shutdown-both", "exit-unread"};
const char* const kPromiseNames[] = {"reset", "again", "promise"};

Side g_sides[2];
unsigned g_side_count;
const Options* g_options;

constexpr uint64_t kExitEvery = 32;  // every so many connections one is a child's

// A control message: which connection a client port is, or (port 0) how many there have been.
struct Message {
  uint32_t port;
  uint64_t id;
};

uint64_t random_length(Random* random) {
  const uint64_t scale = random->next() % 10;
  const uint64_t limit = scale == 0 ? 100 : scale < 4 ? 20000 : g_config.max_bytes;
  return 2 + random->next() % (limit < g_config.max_bytes ? limit : g_config.max_bytes);
}

EndKind random_end(Random* random) {
  static const EndKind kKinds[] = {kHalfClose, kHalfClose, kHalfClose, kClose, kClose, kClose, kLinger, kUnread, kUnread, kShutBoth};
  return kKinds[random->next() % (sizeof kKinds / sizeof kKinds[0])];
}

Class side_class(const Side* side, uint64_t id) {
  Random random(g_config.seed * 7919 + id * 2 + side->number);
  const size_t n = strlen(g_config.classes);
  const char c = g_config.classes[(random.next() >> 20) % n];
  return c == 'd' ? Class::kDedicated : c == 'l' ? Class::kLoop : Class::kPooled;
}

void print_conn(const Conn* c) {
  static const char* const kClassNames[] = {"dedicated", "pooled", "loop"};
  const Plan& p = c->plan;
  fprintf(stderr, "  side %u connection %llu: %s by side %u, %s, fds %d %d, toggles %d, flavour %x, interest %x, own epoll %x, error %d, eof %d\n",
          c->side_number, static_cast<unsigned long long>(p.id), kEndNames[p.kind], p.actor, kClassNames[static_cast<unsigned>(c->cls)],
          c->role[kSend].fd, c->role[kReceive].fd, c->toggles, c->flavour, c->interest, c->own_events, c->saw_error.load(), c->saw_eof);
  fprintf(stderr, "    sent %llu of %llu%s, received %llu of %llu (stops at %lld)%s\n", static_cast<unsigned long long>(c->role[kSend].bytes.load()),
          static_cast<unsigned long long>(p.send_limit[c->side_number]), c->role[kSend].done ? " done" : "",
          static_cast<unsigned long long>(c->role[kReceive].bytes.load()), static_cast<unsigned long long>(p.send_limit[1 - c->side_number]),
          static_cast<long long>(p.receive_limit[c->side_number]), c->role[kReceive].done ? " done" : "");
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
[[noreturn]] void child_main(Side* side, uint64_t id) {
  alarm(static_cast<unsigned>(3 * g_config.patience_s));
  Worker w;
  init_worker(&w, side, 0x4000 + id);
  w.signals = false;
  if (w.one_in(2)) {
    const auto control = static_cast<unsigned>(side->control);
    if (control > 3) CHECK_EQ(close_range(3, control - 1, 0), 0);
    CHECK_EQ(close_range(control + 1, ~0u, 0), 0);
  }
  static Conn conn;
  conn.side = side;
  fill_in(side, &conn, id);
  conn.cls = Class::kLoop;
  const int fd = connect_and_tell(&w, side, id);
  conn.role[kSend].fd = conn.role[kReceive].fd = fd;
  run_child(&w, &conn);
  _exit(0);
}

class Children {
 public:
  void start(Side* side, uint64_t id) {
    if (count_ == 2) reap(1);
    fflush(nullptr);
    const pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) child_main(side, id);
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

Address control_address(int port) {
  Address a;
  auto* un = reinterpret_cast<struct sockaddr_un*>(&a.storage);
  un->sun_family = AF_UNIX;
  const int n = snprintf(un->sun_path + 1, sizeof un->sun_path - 1, "test-stress-%d", port);
  a.length = static_cast<socklen_t>(offsetof(struct sockaddr_un, sun_path) + 1 + static_cast<size_t>(n));
  return a;
}

void block_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigaddset(&set, SIGUSR2);
  CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, nullptr), 0);
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

void* server_thread(void* argument) {
  run_server(static_cast<Side*>(argument));
  return nullptr;
}

// ---- watching ----------------------------------------------------------------------------------------------------------------

std::atomic<bool> g_over;

void watch(Conn* c) {
  if (!(c->generation & 1)) return;
  const uint64_t progress = c->role[kSend].bytes + c->role[kReceive].bytes * 3 + static_cast<uint64_t>(c->roles_left) * 5 +
                            (static_cast<uint64_t>(c->generation) << 40);
  if (progress != c->seen_progress) {
    c->seen_progress = progress;
    c->seen_at_ms = now_ms();
    return;
  }
  if (now_ms() - c->seen_at_ms < g_config.patience_s * 1000) return;
  fprintf(stderr, "no progress for %ld s:\n", g_config.patience_s);
  print_conn(c);
  print_state();
  printf("HANG\n");
  fflush(nullptr);
  sleep_ms(g_options->number("hang-wait", 0) * 1000);
  abort();
}

void* watchdog(void*) {
  block_signals();
  while (!g_over) {
    sleep_ms(100);
    for (unsigned s = 0; s < g_side_count; s++)
      for (unsigned i = 0; i < g_sides[s].slots; i++) watch(&g_sides[s].conns[i]);
  }
  return nullptr;
}

// ---- options and report ------------------------------------------------------------------------------------------------------

// Names separated by commas, out of `known`.
template <size_t N>
void parse_names(const char* names, const char* const (&known)[N], bool (&set)[N]) {
  while (*names != '\0') {
    const size_t n = strcspn(names, ",");
    bool found = false;
    for (size_t i = 0; i < N; i++)
      if (strlen(known[i]) == n && strncmp(known[i], names, n) == 0) found = set[i] = true;
    if (!found) fprintf(stderr, "not known: %.*s\n", static_cast<int>(n), names);
    CHECK(found);
    names += n + (names[n] == ',' ? 1 : 0);
  }
}

void parse(const Options& o) {
  g_options = &o;
  g_config.seed = static_cast<uint64_t>(o.number("seed", 1));
  g_config.seconds = o.number("seconds", 5);
  g_config.max_ops = static_cast<uint64_t>(o.number("ops", 100000000));
  g_config.connections = o.number("connections", 24);
  g_config.workers = o.number("workers", 5);
  g_config.loops = o.number("loops", 2);
  g_config.max_bytes = static_cast<uint64_t>(o.number("max-bytes", 1500000));
  g_config.max_chunk = static_cast<size_t>(o.number("max-chunk", 300000));
  g_config.patience_s = o.number("patience", 20);
  g_config.classes = o.text("classes", "dpl");
  g_config.revoke = o.number("revoke", 0) != 0;
  g_config.signals = o.number("signals", 1) != 0;
  g_config.forks = o.number("forks", 1) != 0;
  parse_names(o.text("skip", ""), kOperationNames, g_config.skip);
  parse_names(o.text("lenient", ""), kPromiseNames, g_config.lenient);
  CHECK(g_config.connections > 0 && g_config.workers > 0 && g_config.loops > 0 && strspn(g_config.classes, "dpl") > 0);
}

std::atomic<unsigned> g_signals_handled;
void handler(int) { g_signals_handled.fetch_add(1); }

void install_handlers() {
  signal(SIGPIPE, SIG_IGN);
  struct sigaction action = {};
  action.sa_handler = handler;
  CHECK_EQ(sigaction(SIGUSR2, &action, nullptr), 0);
  action.sa_flags = SA_RESTART;
  CHECK_EQ(sigaction(SIGUSR1, &action, nullptr), 0);
  block_signals();
}

void report() {
  printf("OPERATIONS");
  for (unsigned i = 0; i < kOperations; i++)
    if (g_totals.operations[i] > 0) printf(" %s %llu", kOperationNames[i], static_cast<unsigned long long>(g_totals.operations[i].load()));
  printf("\nENDS");
  for (unsigned i = 0; i < kEndKinds; i++) printf(" %s %llu", kEndNames[i], static_cast<unsigned long long>(g_totals.ends[i].load()));
  printf("\nLENIENT");
  for (unsigned i = 0; i < kPromises; i++) printf(" %s %llu", kPromiseNames[i], static_cast<unsigned long long>(g_totals.kept_quiet[i].load()));
  printf("\nTOTAL calls %llu bytes %llu connections %llu signals %u errors 0\n", static_cast<unsigned long long>(g_totals.calls.load()),
         static_cast<unsigned long long>(g_totals.bytes_checked.load()), static_cast<unsigned long long>(g_totals.connections.load()),
         g_signals_handled.load());
}

}  // namespace

Plan make_plan(uint64_t id) {
  Random random(g_config.seed * 1000003 + id);
  Plan p = {};
  p.id = id;
  p.kind = random_end(&random);
  p.actor = static_cast<unsigned>(random.next() & 1);
  if (g_config.forks && id % kExitEvery == kExitEvery - 1) p.kind = kExitUnread, p.actor = 0;
  for (unsigned side = 0; side < 2; side++) {
    p.send_limit[side] = random_length(&random);
    p.receive_limit[side] = kToTheEnd;
    p.key[side] = random.next();
  }
  p.exact = p.kind == kHalfClose || p.kind == kClose;
  const uint64_t offered = p.send_limit[1 - p.actor];
  if (p.kind == kClose) p.receive_limit[p.actor] = offered;
  if (p.kind == kLinger || p.kind == kUnread || p.kind == kExitUnread) p.receive_limit[p.actor] = 1 + random.next() % (offered - 1);
  return p;
}

// Eight bytes at a time: checking has to be cheaper than sending.
void fill_bytes(char* to, size_t n, uint64_t key, uint64_t offset) {
  while (n > 0) {
    uint64_t word = (offset / 8 + key) * 0x9E3779B97F4A7C15u;
    word = (word ^ (word >> 29)) * 0xBF58476D1CE4E5B9u;
    word ^= word >> 32;
    const size_t skip = offset % 8;
    const size_t step = n < 8 - skip ? n : 8 - skip;
    memcpy(to, reinterpret_cast<const char*>(&word) + skip, step);
    to += step;
    offset += step;
    n -= step;
  }
}

void count(Worker*, Operation op) {
  g_totals.operations[op].fetch_add(1, std::memory_order_relaxed);
  g_totals.calls.fetch_add(1, std::memory_order_relaxed);
}

bool out_of_operations() { return g_totals.calls >= g_config.max_ops; }

void print_state() {
  for (unsigned s = 0; s < g_side_count; s++)
    for (unsigned i = 0; i < g_sides[s].slots; i++)
      if (g_sides[s].conns[i].generation & 1) print_conn(&g_sides[s].conns[i]);
  print_threads();
}

void broken(const Worker* w, const Conn* c, const char* what, long long got, long long want) {
  const int error = errno;
  // With the time: when one end fails the other one fails, too.
  fprintf(stderr, "FAILED (at %lld ms, pid %d, seed %llu): %s: got %lld, want %lld (errno %d: %s)\n", static_cast<long long>(now_ms()), getpid(),
          static_cast<unsigned long long>(g_config.seed), what, got, want, error, strerror(error));
  if (c != nullptr) print_conn(c);
  if (w != nullptr && w->note != nullptr) fprintf(stderr, "  thread %d %s, %s\n", w->note->tid.load(), w->note->what.load(), w->note->way == kSend ? "send" : "receive");
  fprintf(stderr, "everything:\n");
  print_state();
  fflush(nullptr);
  if (g_options->number("abort", 0) != 0) abort();
  _exit(1);
}

void broken_promise(Promise promise, const Worker* w, const Conn* c, const char* what, long long got, long long want) {
  if (!g_config.lenient[promise]) broken(w, c, what, got, want);
  g_totals.kept_quiet[promise].fetch_add(1);
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

int main(int argc, char** argv) {
  using namespace stress;
  const Options options(argc, argv);
  parse(options);
  printf("SEED %llu\n", static_cast<unsigned long long>(g_config.seed));
  install_handlers();
  const auto slots = static_cast<unsigned>(g_config.connections);
  g_side_count = options.is("both") ? 2 : 1;
  Side* server = &g_sides[0];
  Side* client = &g_sides[g_side_count - 1];
  if (!options.is("client")) {
    init_side(server, 1, 2 * slots);  // the client may have ended connections that the server is still working on
    open_server(server);
    client->port = server->port;
  }
  if (!options.is("server")) {
    init_side(client, 0, slots);
    client->port = options.is("client") ? static_cast<int>(options.number("port", 0)) : server->port;
  }
  const pthread_t dog = start_thread(watchdog, server);
  if (options.is("server")) {
    run_server(server);
  } else if (options.is("client")) {
    run_client(client);
  } else {
    CHECK(options.is("both"));
    const pthread_t thread = start_thread(server_thread, server);
    run_client(client);
    join_thread(thread);
  }
  g_over = true;
  join_thread(dog);
  report();
  return succeed();
}
