// SPDX-License-Identifier: MIT
#include "preload/wait.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "preload/epoll_set.h"
#include "preload/fd_table.h"
#include "preload/on_unwind.h"
#include "preload/pair.h"
#include "preload/pollers.h"
#include "preload/probes.h"
#include "preload/readiness.h"
#include "preload/revoke.h"
#include "preload/sleepers.h"
#include "preload/spin.h"
#include "shm/stop_point.h"

namespace mpklink {
namespace {

constexpr std::uint64_t kSlowLookNs = 2000000;      // no bell can reach us: look by time
constexpr std::uint64_t kFreshLookNs = 20000000;     // the peer may not have our bell yet
constexpr std::uint64_t kPatienceMaxNs = 1000000000;
constexpr std::uint64_t kOrphanLookNs = 50000000;   // after FIN the kernel has no more news of a peer that dies

static_assert(POLLIN == EPOLLIN && POLLOUT == EPOLLOUT && POLLERR == EPOLLERR && POLLHUP == EPOLLHUP);
static_assert(POLLRDHUP == EPOLLRDHUP && POLLPRI == EPOLLPRI && POLLRDNORM == EPOLLRDNORM);

std::uint32_t usable_cpus() {
  Process& p = process();
  std::uint32_t known = p.usable_cpus.load_relaxed();  // relaxed: always the same answer
  if (known != 0) return known;
  cpu_set_t set;
  CPU_ZERO(&set);
  const ErrnoSaver keep;
  known = sched_getaffinity(0, sizeof set, &set) == 0 ? static_cast<std::uint32_t>(CPU_COUNT(&set)) : 1;
  p.usable_cpus.store_relaxed(known);
  return known;
}

// This thread as a poller of the peers of some streams: registered with each, armed on each board, until it ends.
class ThreadPoller {
 public:
  ThreadPoller() : id_(take_poller(false)), bell_(id_ == kNoPoller ? -1 : bell_of(id_)) {}
  ~ThreadPoller() {
    if (id_ != kNoPoller) give_poller(id_);
  }
  ThreadPoller(const ThreadPoller&) = delete;
  ThreadPoller& operator=(const ThreadPoller&) = delete;

  int bell() const { return bell_; }
  bool slow() const { return slow_; }
  bool fresh() const { return fresh_; }

  // Pinned stream, gate closed: the peer gets the bell.
  void invite(Stream* s) { slow_ = bell_ < 0 || !ours(s) || !send_bell(s->pair, id_, bell_, &fresh_); }
  // Gate open. Before the caller's look, so that whoever publishes after it rings.
  void listen(Stream* s) {
    if (slow_) return;
    if (!add_waiter(&s->channel->waiters[s->side].ids, id_)) slow_ = true;
    arm(&s->pair->board->side[s->pair->side].armed[id_]);
    STOP_POINT("armed");
  }
  void stop(Stream* s) {
    if (bell_ < 0 || !ours(s)) return;
    const Gate gate;
    remove_waiter(&s->channel->waiters[s->side].ids, id_);
    disarm(&s->pair->board->side[s->pair->side].armed[id_]);
  }
  void drain() { drain_bell(id_); }

 private:
  std::uint32_t id_;
  int bell_;
  bool slow_ = false;
  bool fresh_ = false;
};

struct Cleanup {
  ThreadPoller* poller;
  Stream* stream;
  bool on_stand_in;
};

timespec* remaining(std::uint64_t deadline_ns, std::uint64_t cap_ns, timespec* out, bool* capped) {
  *capped = false;
  if (deadline_ns == 0 && cap_ns == 0) return nullptr;
  std::uint64_t left = ~std::uint64_t{0};
  if (deadline_ns != 0) {
    const std::uint64_t now = now_ns();
    left = now < deadline_ns ? deadline_ns - now : 0;
  }
  if (cap_ns != 0 && left > cap_ns) {
    left = cap_ns;
    *capped = true;
  }
  out->tv_sec = static_cast<time_t>(left / 1000000000u);
  out->tv_nsec = static_cast<long>(left % 1000000000u);
  return out;
}

struct LastLook {
  Readiness readiness;
  Path path;  // of what we send
};

// Listens, then looks. One gate.
LastLook listen_and_look(Stream* s, std::uint32_t event, ThreadPoller* poller) {
  const Gate gate;
  publish_cpu(s->pair, s->side);
  poller->listen(s);
  return {ring_readiness(s, event), static_cast<Path>(s->core->send.path.load_relaxed())};  // relaxed: a look
}

bool ready_now(Stream* s, int fd, std::uint32_t event, const Readiness& r) {
  if (r.give_back) answer_freeze(fd, s);
  if (r.events & (event | EPOLLERR | EPOLLHUP)) return true;
  return r.ask_kernel != 0 && (kernel_readiness(s, fd, r.ask_kernel) & (event | EPOLLERR | EPOLLHUP)) != 0;
}

// A hint. Of a frozen ring nothing is taken, whatever it holds. Gate open.
bool bytes_in_ring(Stream* s) {
  const std::uint64_t word = incoming(s).consumer.head.load_relaxed();            // relaxed: our own word, and a hint
  return word != incoming(s).producer.tail.load_relaxed() && !(word & kFrozenBit);  // relaxed: a hint
}

// Spins on the ring. True: the stream is ready.
bool spin_on(Stream* s, std::uint32_t event) {
  const std::uint32_t budget = spin_budget_ns(process().settings.spin_us, &s->spin);
  if (budget == 0) return false;
  const std::uint64_t start = now_ns();
  do {
    const Gate gate;
    publish_cpu(s->pair, s->side);
    if (!may_spin(s->pair, s->side) || low_water(s) > 1) return false;
    for (int i = 0; i < 32; ++i) {
      const bool ready = event == EPOLLIN ? bytes_in_ring(s) : (ring_readiness(s, event).events & event) != 0;
      if (ready) return true;
      cpu_relax();
    }
  } while (now_ns() - start < budget);
  return false;
}

void stop_listening(void* argument) {
  auto* c = static_cast<Cleanup*>(argument);
  c->poller->stop(c->stream);
  c->poller->~ThreadPoller();
  leave_sleep(c->stream);
  if (c->on_stand_in) leave_sleep(c->stream);  // what the call owed
  unpin(c->stream);
}

struct Wait {
  std::uint64_t deadline_ns;
  const HandlersSince& call;
  bool restarts;
  Undisturbed* undisturbed;
  bool interrupted() const { return restarts ? call.breaking() : call.any(); }
};

// Asleep in the kernel on the socket and the bell. The stream is pinned and listened to, the sleeper counted.
int sleep_on(Stream* s, int fd, std::uint32_t event, Path path, ThreadPoller* poller, const Wait& wait, bool* capped) {
  const std::uint32_t sticky = s->sticky.load_relaxed();  // relaxed: own or earlier news
  // A reader asks for FIN even when it is known: another thread may have noted it since this one looked. A writer must not,
  // or it would spin.
  short kernel_events = 0;
  if (event == EPOLLIN) {
    kernel_events = POLLIN | POLLRDHUP;
  } else if (!(sticky & kStickyRdhup)) {
    kernel_events = POLLRDHUP;
  }
  // Bytes that have to go back to TCP wait for room there, whatever this thread waits for.
  if ((event == EPOLLOUT && path != Path::kRing) || path == Path::kReturning) kernel_events |= POLLOUT;
  pollfd p[2] = {{fd, kernel_events, 0}, {poller->bell(), POLLIN, 0}};
  std::uint64_t cap = 0;
  if (poller->fresh()) cap = kFreshLookNs;
  if (poller->slow()) cap = kSlowLookNs;
  if (event == EPOLLOUT && cap == 0) cap = kOrphanLookNs;
  timespec timeout = {};
  timespec* limit = remaining(wait.deadline_ns, cap, &timeout, capped);
  process().counters.sleeps.fetch_add(1);
  PROBE0(sleep);
  Cleanup cleanup = {poller, s, fd_table().hidden(fd)};
  int n = 0;
  {
    const OnUnwind owed(stop_listening, &cleanup);
    wait.undisturbed->allow();
    n = wait.interrupted() ? -1 : real().ppoll(p, poller->bell() >= 0 ? 2 : 1, limit, nullptr);
    wait.undisturbed->again();
  }
  PROBE0(wake);
  if (n > 0) {
    const auto news = static_cast<std::uint32_t>(static_cast<unsigned short>(p[0].revents));
    if (fd_table().names(fd, s)) note_kernel_events(s, news);  // closed meanwhile: the number may be another file's
    if (p[1].revents != 0) poller->drain();
  }
  return n;
}

// poll on the socket alone: the stream is managed but has no channel yet, or lost it. Not counted as a kernel call, so an
// upgrade step may pass this thread; the last bytes over TCP wake it, or, when another thread takes those, the cap does.
Waited wait_kernel(Stream* s, int fd, std::uint32_t event, std::uint64_t deadline_ns) {
  pollfd p = {fd, static_cast<short>(event), 0};
  timespec timeout = {};
  bool capped = false;
  std::uint64_t cap = s->patience_ns.load_relaxed();  // relaxed: a hint
  cap = cap == 0 ? kOrphanLookNs : cap < kPatienceMaxNs ? 2 * cap : cap;
  s->patience_ns.store_relaxed(cap);
  const int n = real().ppoll(&p, 1, remaining(deadline_ns, cap, &timeout, &capped), nullptr);
  if (n < 0) return Waited::kInterrupted;
  return n > 0 || capped ? Waited::kReady : Waited::kTimeout;
}

}  // namespace

void publish_cpu(Pair* pair, std::uint32_t our_side) {
  const auto cpu = static_cast<std::uint32_t>(sched_getcpu()) + 1;
  Atomic<std::uint32_t>& word = pair->board->side[our_side].cpu;
  if (word.load_relaxed() != cpu) word.store_relaxed(cpu);  // relaxed: a hint
}

bool may_spin(Pair* pair, std::uint32_t our_side) {
  const BoardSide* sides = pair->board->side;
  const std::uint32_t peers = sides[1 - our_side].cpu.load_relaxed();  // relaxed: a hint, as is the next
  // Our own affinity says nothing once the peer's CPU is known: each end may be pinned to its own.
  return peers != 0 ? peers != sides[our_side].cpu.load_relaxed() : usable_cpus() > 1;
}

Waited wait_stream(Stream* s, int* number, std::uint32_t event, std::uint64_t deadline_ns, const HandlersSince& call, bool restarts) {
  const int fd = *number;
  Undisturbed undisturbed;  // whoever jumps out of here leaves a pin, a poller and a sleeper behind
  const Wait wait = {deadline_ns, call, restarts, &undisturbed};
  if (!pin(fd, s)) {
    undisturbed.allow();
    return wait.interrupted() ? Waited::kInterrupted : wait_kernel(s, fd, event, deadline_ns);
  }
  const std::uint64_t start = now_ns();
  if (spin_on(s, event)) {
    process().counters.spin_hits.fetch_add(1);
    learn_wait(&s->spin, now_ns() - start, true);
    unpin(s);
    return Waited::kReady;
  }
  ThreadPoller poller;
  poller.invite(s);
  const LastLook look = listen_and_look(s, event, &poller);
  int n = 1;
  bool capped = false;
  const bool sleeps = !ready_now(s, fd, event, look.readiness) && enter_sleep(fd, s);
  if (sleeps) n = sleep_on(s, fd, event, look.path, &poller, wait, &capped);
  {
    const ErrnoSaver keep;
    poller.stop(s);
    learn_wait(&s->spin, now_ns() - start, false);
    const int other = sleeps && !fd_table().names(fd, s) ? stand_in(s) : -1;
    if (other >= 0) {
      *number = other;
    } else if (sleeps) {
      leave_sleep(s);
    }
  }
  unpin(s);
  if (n < 0) return Waited::kInterrupted;
  return n > 0 || capped ? Waited::kReady : Waited::kTimeout;
}

}  // namespace mpklink
