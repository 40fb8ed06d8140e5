// SPDX-License-Identifier: MIT
// What is true of the members of an epoll set, and what of it is news: one look, for whoever waits (epoll_wait.cc) and whoever only
// wants to know whether the set would tell anything (another set, poll, select).
#include <poll.h>
#include <sys/syscall.h>

#include "preload/epoll_set.h"
#include "preload/epoll_tag.h"
#include "preload/fd_table.h"
#include "preload/readiness.h"
#include "shm/raw_syscall.h"

namespace mpklink {
namespace {

constexpr std::int64_t kSlowLookNs = 2000000;
constexpr std::int64_t kSpaceLookNs = 50000000;
constexpr int kDrainRounds = 64;

// Bits of the peers' boards -> ready list. Gate open, set->lock held.
void take_bits(EpollSet* set) {
  for_each_pair(set, [&](Pair* pair) {
    ReadyBitmap& map = pair->board->side[pair->side].ready[set->poller];
    take_ready(&map, [&](std::uint32_t slot) {
      auto* s = reinterpret_cast<Stream*>(pair->stream_of_slot[slot].load_acquire());
      if (s == nullptr) return;
      const LockGuard guard(s->members_lock);
      for (EpollMember* m = s->members; m != nullptr; m = m->next_in_stream) {
        if (m->set == set && m->managed) push_ready(set, m);
      }
    });
  });
}

constexpr std::uint32_t kReads = EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
constexpr std::uint32_t kWrites = EPOLLOUT | EPOLLWRNORM;
constexpr std::uint32_t kEverything = ~std::uint32_t{0};
constexpr std::uint32_t kAnyEvent = 0xffff;  // without the flags (EPOLLET and its kin)

// What moved in the rings since the last look. Gate open; before the look itself, so that what arrives meanwhile counts the
// next time, too. Only compared, never used: the peer may write here what it likes.
void note_ring_causes(EpollMember* m) {
  Stream* s = m->stream;
  if (s->channel == nullptr) {
    m->causes = kEverything;
    return;
  }
  const std::uint64_t tail = incoming(s).producer.tail.load_acquire();  // SYNC: tail published
  if (tail != m->seen_tail) m->causes |= kReads;
  const bool was_full = s->core->producer.tail.load_relaxed() - m->seen_head >= s->capacity;  // relaxed: a look
  if (m->wants_space || was_full || m->seen_refusals != s->refusals) m->causes |= kWrites;
  m->seen_refusals = s->refusals;
  m->seen_tail = tail;
  m->seen_head = outgoing(s).consumer.head.load_relaxed() & kPositionMask;  // relaxed: a look
  // Not all on the ring: what moves is the kernel's, or the switch itself; every look may be news. (Room in the idle TCP socket
  // means nothing while the ring takes the bytes.)
  const bool ring_out = static_cast<Path>(s->core->send.path.load_relaxed()) == Path::kRing;  // relaxed: a look
  if (!ring_out || s->send_over_tcp.load_relaxed()) m->causes |= kWrites;                     // relaxed: a look
  if (static_cast<Path>(s->core->receive.path.load_relaxed()) != Path::kRing) m->causes |= kReads;  // relaxed: a look
}

// And in the kernel: FIN, reset, bytes over TCP. Each member counts for itself; the stream's own notes are everybody's.
void note_kernel_causes(EpollMember* m) {
  if (m->inner != nullptr) return;
  const std::uint32_t sticky = m->stream->sticky.load_relaxed();  // relaxed: a look
  const std::uint32_t fresh = sticky & ~m->seen_sticky;
  if (fresh & kStickyRdhup) m->causes |= kReads;
  if (fresh & (kStickyHup | kStickyErr)) m->causes = kEverything;
  if (m->kernel_in && !(m->seen_sticky & kStickyRdhup)) m->causes |= kReads;  // after FIN each edge says IN
  m->kernel_in = false;
  m->seen_sticky = sticky;
}

// What of `events` the program is to be told of the member: nothing when edge-triggered and nothing moved.
std::uint32_t shown_of(EpollMember* m, std::uint32_t events) {
  note_kernel_causes(m);
  const std::uint32_t interest = m->events | EPOLLERR | EPOLLHUP;
  const bool moved = (m->causes & interest & (kReads | kWrites | EPOLLERR | EPOLLHUP)) != 0;
  return moved || !(m->events & EPOLLET) ? events & interest & kAnyEvent : 0;
}

// Tells of one member and moves it where the kernel would: out of the list (edge, one-shot) or to its end (level).
bool tell(EpollSet* set, EpollMember* m, std::uint32_t events, epoll_event* out) {
  const std::uint32_t shown = shown_of(m, events);
  m->causes = 0;
  if (shown == 0) return false;
  out->events = shown;
  out->data.u64 = m->data;
  if (m->events & EPOLLONESHOT) {
    m->disabled = true;
  } else if (!(m->events & EPOLLET)) {
    push_ready(set, m);
  }
  return true;
}

// What the rings say. `ask_kernel` is not empty: `ask` must say the rest, with the gate closed. Gate open.
Readiness look_at(EpollSet* set, EpollMember* m) {
  Readiness r;
  if (m->inner != nullptr) {
    r.ask_kernel = EPOLLIN;
    return r;
  }
  note_ring_causes(m);
  r = ring_readiness(m->stream, m->events);
  if (r.give_back) defer(m->stream, kDeferredAnswer);  // behind set->lock
  m->wants_space = (m->events & EPOLLOUT) && !((r.events | r.ask_kernel) & EPOLLOUT);
  if (m->wants_space) set->wants_space = true;
  return r;
}

// A registration outlives its number while a duplicate keeps the stream open.
int number_of(const EpollMember* m) {
  if (fd_table().names(m->fd, m->stream)) return m->fd;
  for (int fd = 0; fd <= fd_table().highest(); ++fd) {
    if (fd_table().names(fd, m->stream)) return fd;
  }
  return -1;
}

// What the rings say of a member, and what only the kernel knows of it.
struct Question {
  EpollMember* member;
  std::uint32_t events;
  std::uint32_t ask_kernel;
};

std::uint32_t ask(const Question& q) {
  if (q.member->inner != nullptr) return set_shows(q.member->inner) ? EPOLLIN | EPOLLRDNORM : 0;
  return q.events | kernel_readiness(q.member->stream, number_of(q.member), q.ask_kernel);
}

// Bits and boards of the peers. Gate open, set->lock held.
void hear_peers(EpollSet* set) {
  if (set->poller == kNoPoller) return;
  // Watched from outside: whoever does may never sleep in here, so it is armed at each look, before the bits are taken.
  if (set->nested.load_relaxed() != 0) {  // relaxed: set once
    for_each_pair(set, [&](Pair* pair) { arm(&pair->board->side[pair->side].armed[set->poller]); });
  }
  take_bits(set);
}

// Whether something on the ready list would be told now. What would not leaves the list, as in the kernel's ep_poll.
bool any_ready(EpollSet* set) {
  if (set->slow_members.load_relaxed() != 0) push_slow_members(set);  // relaxed: under set->lock
  push_links(set);  // a level-triggered one is not in `under`
  if (set->wants_space) {
    set->wants_space = false;
    push_members_without_space(set);
  }
  {
    const Gate gate;
    hear_peers(set);
  }
  EpollMember* const last = set->ready_tail;
  for (EpollMember* m = set->ready_head; m != nullptr;) {
    EpollMember* const next = m == last ? nullptr : m->ready_next;
    if (!m->disabled) {
      Readiness r;
      {
        const Gate gate;
        r = look_at(set, m);
      }
      const std::uint32_t events = r.ask_kernel != 0 ? ask({m, r.events, r.ask_kernel}) : r.events;
      if (shown_of(m, events) != 0) return true;
      m->causes = 0;
    }
    remove_ready(set, m);
    m = next;
  }
  return false;
}

bool readable(int fd) {
  pollfd p = {fd, POLLIN, 0};
  return raw_syscall(SYS_poll, reinterpret_cast<long>(&p), 1, 0) == 1;
}

// Our own event of one registration. set->lock held.
void note_event(EpollSet* set, const epoll_event& event) {
  const std::uint64_t index = event.data.u64 & kTagIndexMask;
  if (index == kBellTag) return;
  if (index == kUnderTag) {
    drain_under(set);
    return;
  }
  EpollMember* m = member_at(static_cast<std::uint32_t>(index));
  if (m == nullptr || m->set != set || !m->managed || event.data.u64 != tag_of_member(m)) return;  // closed since, or the child's of a fork
  if (m->inner != nullptr) {
    m->causes |= kReads;
  } else {
    note_kernel_events(m->stream, event.events);
    m->kernel_in = m->kernel_in || (event.events & EPOLLIN);
  }
  push_ready(set, m);
}

}  // namespace

// Not by way of libc: its call can be cancelled, and a lock is held here.
void drain_under(EpollSet* set) {
  constexpr int kEvents = 32;
  epoll_event events[kEvents];
  for (int round = 0; round < kDrainRounds; ++round) {
    const long n = raw_syscall(SYS_epoll_wait, set->under, reinterpret_cast<long>(events), kEvents, 0);
    for (long i = 0; i < n; ++i) note_event(set, events[i]);
    if (n < kEvents) return;
  }
}

bool set_shows(EpollSet* set) {
  const LockGuard guard(set->lock);
  for (int round = 0; round < kDrainRounds; ++round) {
    if (set->under >= 0) drain_under(set);
    if (any_ready(set)) {
      // The bell that a sleeper of the set itself was to be woken by may be what we have just taken.
      if (set->sleepers.load_relaxed() != 0) nudge(set);  // relaxed: a new sleeper looks itself
      return true;
    }
    if (!readable(set->epfd)) return false;
    if (set->under < 0 || !readable(set->under)) return true;  // a descriptor of the program's
  }
  return true;
}

int collect_locked(EpollSet* set, epoll_event* events, int max) {
  constexpr int kAskMax = 64;
  Question asked[kAskMax];
  int n = 0;
  if (set->slow_members.load_relaxed() != 0) push_slow_members(set);  // relaxed: under set->lock
  EpollMember* last = nullptr;
  EpollMember* m = nullptr;
  bool first = true;
  do {
    int count = 0;
    {
      const Gate gate;
      if (first) {
        hear_peers(set);
        last = set->ready_tail;
        m = set->ready_head;
        first = false;
      }
      // Whoever is asked has a place in the array kept: or, always behind those who need not be asked, it would starve.
      while (m != nullptr && n + count < max && count < kAskMax) {
        EpollMember* const next = m == last ? nullptr : m->ready_next;
        remove_ready(set, m);
        if (!m->disabled) {
          const Readiness r = look_at(set, m);
          if (r.ask_kernel != 0) {
            asked[count++] = {m, r.events, r.ask_kernel};
          } else if (tell(set, m, r.events, &events[n])) {
            ++n;
          }
        }
        m = next;
      }
    }
    for (int i = 0; i < count; ++i) {
      if (tell(set, asked[i].member, ask(asked[i]), &events[n])) ++n;
    }
  } while (m != nullptr && n < max);
  return n;
}

int filter(EpollSet* set, epoll_event* events, int n) {
  int kept = 0;
  const LockGuard guard(set->lock);
  for (int i = 0; i < n; ++i) {
    if (is_tag(events[i].data.u64)) {
      note_event(set, events[i]);
    } else {
      events[kept++] = events[i];
    }
  }
  return kept;
}

std::int64_t look_again_ns(EpollSet* set) {
  // A full ring: the peer may have no descriptor left for our bell, or die after its FIN, of which the kernel says nothing.
  std::int64_t least = set->slow_members.load_relaxed() != 0 ? kSlowLookNs : set->wants_space ? kSpaceLookNs : -1;  // relaxed: a change nudges
  if (set->links.load_relaxed() == 0) return least;  // relaxed: as above
  const LockGuard guard(set->lock);
  for_each_link(set, [&](EpollMember* m) {
    const std::int64_t inner = look_again_ns(m->inner);
    if (inner >= 0 && (least < 0 || inner < least)) least = inner;
  });
  return least;
}

}  // namespace mpklink
