// SPDX-License-Identifier: MIT
// Random operations of the whole socket API on many connections at once; every byte is checked against its offset.
//
// Both ends derive from (seed, connection) how many bytes each direction has, what they are and how the connection ends, so a
// receiver needs nobody to compare with. stress.cc: options, plans, watchdog;
// stress_peers.cc: making and ending connections; stress_work.cc: the threads;
// stress_data.cc: one send or receive; stress_wait.cc: waiting; stress_odd.cc: what is done to a descriptor in between.
#pragma once

#include <semaphore.h>
#include <signal.h>
#include <stddef.h>

#include <atomic>
#include <initializer_list>

#include "testlib.h"

namespace stress {

using testlib::Random;

// Everything that is counted, and can be left out by --skip=name,name.
#define STRESS_OPERATIONS(X)                                                                                               \
  X(read) X(recv) X(recvfrom) X(readv) X(recvmsg) X(recvmmsg) X(peek) X(waitall) X(fionread)                               \
  X(write) X(send) X(sendto) X(writev) X(sendmsg) X(sendmmsg) X(sendfile) X(more) X(dontwait) X(empty)                     \
  X(poll) X(ppoll) X(select) X(pselect) X(poll_many) X(select_many)                                                        \
  X(epoll_level) X(epoll_edge) X(epoll_oneshot) X(epoll_polled) X(epoll_shared) X(epoll_nested)                            \
  X(epoll_add) X(epoll_mod) X(epoll_del) X(nonblock_fcntl) X(nonblock_ioctl) X(timeout) X(nodelay) X(dup_close) X(dup2)    \
  X(sock_error) X(shutdown) X(fork) X(signal) X(pause)                                                                     \
  X(lowat) X(splice_in) X(splice_out) X(pass) X(fdopen)

enum Operation : unsigned {
#define STRESS_ENUM(name) kDo_##name,
  STRESS_OPERATIONS(STRESS_ENUM)
#undef STRESS_ENUM
  kOperations
};

enum EndKind : unsigned {
  kHalfClose,   // both send all and shut down; both read to the end
  kClose,       // the actor has sent and received all and closes; the other one reads to the end
  kLinger,      // the actor resets: SO_LINGER 0
  kUnread,      // the actor closes with unread bytes, which is a reset, too
  kShutBoth,    // the actor shuts down both ways in the middle
  kExitUnread,  // the actor is a child process that exits with unread bytes
  kEndKinds
};

enum Way : unsigned { kSend, kReceive };

// What both ends know of a connection beforehand. Sides: 0 client, 1 server.
struct Plan {
  uint64_t id;
  EndKind kind;
  unsigned actor;
  uint64_t send_limit[2];     // bytes that this side sends
  uint64_t receive_limit[2];  // bytes after which this side stops reading; kToTheEnd: reads the end, too
  uint64_t key[2];            // of the bytes that this side sends
  bool exact;                 // nothing may get lost and no error may be seen
};
inline constexpr uint64_t kToTheEnd = UINT64_MAX;

enum class Class : unsigned {
  kDedicated,  // threads of its own, which wait for ever: a lost wake-up is a hang
  kPooled,     // any of the workers, with time limits
  kLoop,       // event loops: all in one epoll set, waited for by several threads for ever
  kClasses
};

// One direction of a connection at this end. Everything but the atomics is used under `lock`.
struct Role {
  pthread_mutex_t lock;
  int fd;
  std::atomic<uint64_t> bytes;
  std::atomic<bool> done;
  bool drained;   // the last call said EAGAIN: an edge may be waited for
  bool watched;   // `fd` is what the connection's own epoll set or the loop's knows
};

struct Side;

struct Conn {
  Side* side;
  unsigned slot;
  std::atomic<uint32_t> generation;  // odd: in use
  Plan plan;
  Class cls;
  unsigned side_number;
  Role role[2];
  std::atomic<int> roles_left;    // not done yet
  std::atomic<int> threads_left;  // kDedicated
  std::atomic<bool> finishing;  // somebody has taken it upon them to finish
  std::atomic<bool> saw_error;    // ECONNRESET or EPIPE, at whichever call
  bool saw_eof;
  bool toggles;         // O_NONBLOCK changes at any time
  bool timeouts;        // SO_RCVTIMEO and SO_SNDTIMEO are set
  Way epoll_owner;      // who may use `epoll`
  int epoll;            // its own epoll set, or -1
  uint32_t own_events;  // what it is registered with there
  uint32_t flavour;     // kLoop: 0 (level), EPOLLET or EPOLLONESHOT
  size_t max_chunk;     // small ones need many operations for their bytes, as an upgrade does
  int home;             // kLoop: the epoll set it is in
  uint32_t interest;    // kLoop
  uint64_t seen_progress;  // watchdog
  int64_t seen_at_ms;      // watchdog
};

// What a thread is doing, for the watchdog. `what` is a literal.
struct Note {
  std::atomic<bool> used;
  std::atomic<int> tid;
  std::atomic<const char*> what;
  std::atomic<const Conn*> conn;
  std::atomic<unsigned> way;
};

struct Worker {
  Random random{0};
  Side* side = nullptr;
  Note* note = nullptr;
  char* buffer = nullptr;      // config.max_chunk and kMargin
  bool signals = true;         // handlers may interrupt this thread
  bool promised[2] = {};       // a level-triggered wait has just said ready: EAGAIN would be a lie
  int pipe[2] = {-1, -1};
  Operation last_wait = kDo_pause, last_call = kDo_pause;  // for messages

  uint64_t below(uint64_t n) { return random.next() % n; }
  bool one_in(uint64_t n) { return below(n) == 0; }
};
inline constexpr size_t kMargin = 64;

struct Side {
  unsigned number;
  int port;
  int listener, control_listener, control;
  Conn* conns;
  unsigned slots;
  sem_t free_slots;
  int loop_epoll, nested_epoll, wake;  // wake: an eventfd that ends the loops
  std::atomic<bool> stopping;          // no more connections will come
  std::atomic<int> active;             // connections
  std::atomic<int> dedicated;          // threads
};

// Promises that can be counted instead of checked, to look behind a known fault: --lenient=reset,again,promise.
enum Promise : unsigned {
  kReset,        // a reset is an error at some call, not an end of file
  kAgain,        // what has just been ready does not say EAGAIN
  kLookedAhead,  // FIONREAD and MSG_PEEK give no more than a receive
  kPromises
};

struct Config {
  uint64_t seed;
  long seconds, connections, workers, loops, patience_s;
  uint64_t max_ops, max_bytes;
  size_t max_chunk;
  const char* classes;
  const char* ends;
  bool revoke, signals, forks;
  bool skip[kOperations], lenient[kPromises];
};

struct Totals {
  std::atomic<uint64_t> operations[kOperations];
  std::atomic<uint64_t> ends[kEndKinds], kept_quiet[kPromises];
  std::atomic<uint64_t> calls, bytes_checked, connections;
};

extern Config g_config;
extern Totals g_totals;

enum class Outcome { kProgress, kAgain, kDone };

// stress.cc
Plan make_plan(uint64_t id);
void fill_bytes(char* to, size_t n, uint64_t key, uint64_t offset);
[[noreturn]] void broken(const Worker* w, const Conn* c, const char* what, long long got, long long want);
// The same for a promise that may be lenient.
void broken_promise(Promise promise, const Worker* w, const Conn* c, const char* what, long long got, long long want);
void print_state();
bool out_of_operations();

inline bool allowed(Operation op) { return !g_config.skip[op]; }
void count(Worker* w, Operation op);

// stress_peers.cc
void init_side(Side* side, unsigned number, unsigned slots);
void open_server(Side* side);
void run_client(Side* side);
void run_server(Side* side);
void block_signals();
void finish(Worker* w, Conn* c);  // the scripted end, when both roles are done; frees the slot

// stress_work.cc
Note* take_note();
void print_threads();
void init_worker(Worker* w, Side* side, uint64_t salt);
void drop_worker(Worker* w);
// Options and registrations; then lets the threads have it. Its locks are held, and are given back.
void set_up(Worker* w, Conn* c, int fd);
void start_workers(Side* side, pthread_t* threads);
long worker_count();
void* signaller(void* side);  // signals and short-lived children, until the side has stopped
void run_child(Worker* w, Conn* c);

// stress_data.cc
Outcome send_some(Worker* w, Conn* c);
Outcome receive_some(Worker* w, Conn* c);
// `role` is at its end: shuts down what the plan says.
void end_role(Worker* w, Conn* c, Way way);
// Whether the kernel has to report an error rather than an end to this side.
inline bool errors_allowed(const Conn* c) {
  return !c->plan.exact && (c->plan.kind == kShutBoth || c->side_number != c->plan.actor);
}

// stress_wait.cc
// Waits until the role's descriptor is ready: negative, for ever. False: it is not, or a signal came.
bool wait_ready(Worker* w, Conn* c, Way way, int timeout_ms);
// The same for several roles; sets ready[i].
void wait_many(Worker* w, Conn* const* conns, const Way* ways, bool* ready, unsigned n, int timeout_ms);
void forget_own_epoll(Worker* w, Conn* c);
// kLoop: registers, or changes what is registered.
void loop_register(Worker* w, Conn* c, bool first, bool rearm);

// stress_odd.cc
void odd_thing(Worker* w, Conn* c, Way way);  // under the role's lock

}  // namespace stress
