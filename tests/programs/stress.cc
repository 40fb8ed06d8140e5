// SPDX-License-Identifier: MIT
// stress server|client|both: see stress.h. Prints SEED, at the end what was done, and EXIT-SUCCESS; a failure prints all connections.
//
// --seed=N (both ends the same) --seconds=N --ops=N --connections=N (at once) --workers=N --loops=N --max-bytes=N (per direction)
// --max-chunk=N --patience=N (seconds without progress that are a hang) --classes=dpl (dedicated, pooled, loop)
// --ends=hclus (half-close, close, linger, unread, shutdown both) --skip=name,name
// --lenient=name,name (see Promise)
// --forks=0|1 --signals=0|1 --revoke=0|1 (what forces streams back to TCP) --hang-wait=N (seconds for a debugger before the abort)
#include "stress.h"

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

uint64_t random_length(Random* random) {
  const uint64_t scale = random->next() % 10;
  const uint64_t limit = scale == 0 ? 100 : scale < 4 ? 20000 : g_config.max_bytes;
  return 2 + random->next() % (limit < g_config.max_bytes ? limit : g_config.max_bytes);
}

// --ends: a letter for each kind, as likely as it is there.
EndKind random_end(Random* random) {
  const char letter = g_config.ends[random->next() % strlen(g_config.ends)];
  switch (letter) {
    case 'h': return kHalfClose;
    case 'c': return kClose;
    case 'l': return kLinger;
    case 'u': return kUnread;
    default: return kShutBoth;
  }
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
  g_config.ends = o.text("ends", "hhhcccluus");
  g_config.revoke = o.number("revoke", 0) != 0;
  g_config.signals = o.number("signals", 1) != 0;
  g_config.forks = o.number("forks", 1) != 0;
  parse_names(o.text("skip", ""), kOperationNames, g_config.skip);
  parse_names(o.text("lenient", ""), kPromiseNames, g_config.lenient);
  CHECK(g_config.connections > 0 && g_config.workers > 0 && g_config.loops > 0 && strspn(g_config.classes, "dpl") > 0 && strspn(g_config.ends, "hclus") > 0);
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

void count(Worker* w, Operation op) {
  if (op >= kDo_poll && op <= kDo_epoll_nested) w->last_wait = op;
  if (op <= kDo_recvmmsg || (op >= kDo_write && op <= kDo_sendfile)) w->last_call = op;
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
  if (w != nullptr && w->note != nullptr) fprintf(stderr, "  thread %d %s, %s; last wait %s, last call %s\n", w->note->tid.load(), w->note->what.load(), w->note->way == kSend ? "send" : "receive", kOperationNames[w->last_wait], kOperationNames[w->last_call]);
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
