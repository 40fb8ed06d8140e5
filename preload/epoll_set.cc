// SPDX-License-Identifier: MIT
// Registrations of streams in epoll sets; the waiting is in epoll_wait.cc.
#include "preload/epoll_set.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>

#include "preload/assert.h"
#include "preload/epoll_tag.h"
#include "preload/fd_table.h"
#include "preload/pollers.h"
#include "preload/rendezvous.h"
#include "preload/revoke.h"
#include "shm/raw_syscall.h"
#include "shm/user_copy.h"

namespace mpklink {
namespace {

constexpr std::uint32_t kSetsMax = 4096;
constexpr unsigned kMembersOfStreamMax = 8;

SpinLock g_sets_lock;     // creation of sets
Atomic<EpollSet*> g_sets;  // kSetsMax of them, address space until used

EpollMember* find_member(const EpollSet* set, Stream* s, int fd) {
  const LockGuard guard(s->members_lock);
  for (EpollMember* m = s->members; m != nullptr; m = m->next_in_stream) {
    if (m->set == set && m->fd == fd) return m;
  }
  return nullptr;
}

void link_member(Stream* s, EpollMember* m) {
  const LockGuard guard(s->members_lock);
  m->next_in_stream = s->members;
  s->members = m;
}

void unlink_member(Stream* s, EpollMember* m) {
  const LockGuard guard(s->members_lock);
  for (Hint<EpollMember*>* at = &s->members; *at != nullptr; at = &(*at)->next_in_stream) {
    if (*at == m) {
      *at = m->next_in_stream;
      return;
    }
  }
}

bool other_members_of_poller(Stream* s, const EpollSet* set) {
  const LockGuard guard(s->members_lock);
  for (EpollMember* m = s->members; m != nullptr; m = m->next_in_stream) {
    if (m->set == set) return true;
  }
  return false;
}

// The set's poller exists, the peer has its bell, its board line is armed when somebody sleeps. set->lock held.
bool attach_pair(EpollSet* set, Pair* pair) {
  const bool own = pair->generation == process().generation.load_relaxed();  // relaxed: changes by fork only
  if (!own) return false;
  if (set->poller == kNoPoller) {
    const std::uint32_t id = take_poller(true);
    if (id == kNoPoller) return false;
    const int bell = bell_of(id);
    epoll_event event = {};
    event.events = EPOLLIN | EPOLLET;
    event.data.u64 = kBellTag | tag_prefix();
    if (bell < 0 || real().epoll_ctl(own_instance(set), EPOLL_CTL_ADD, bell, &event) != 0) {
      give_poller(id);
      return false;
    }
    set->poller = id;
  }
  if (!send_bell(pair, set->poller, bell_of(set->poller))) return false;
  const std::uint64_t bit = std::uint64_t{1} << (pair->index % 64);
  set->pairs[pair->index / 64].fetch_or(bit);
  const std::uint32_t words = pair->index / 64 + 1;
  if (set->pair_words.load_relaxed() < words) set->pair_words.store_release(words);  // relaxed: under set->lock
  const Gate gate;
  disarm(&pair->board->side[pair->side].armed[set->poller]);
  // A thread that was asleep in the kernel before this board existed cannot arm it: it is born armed. The sleeper counts
  // itself before it looks for boards to arm; we enter the board before we look at the count.
  thread_fence_seq_cst();
  if (always_armed(set)) arm_board(set, pair);
  return true;
}

// Makes the set hear of the stream's ring. set->lock held. False: it must be looked at by time.
bool listen_to(EpollSet* set, Stream* s) {
  // NOLINTNEXTLINE(clang-analyzer-core.NullDereference): no caller has a null stream
  if (s->pair == nullptr || !attach_pair(set, s->pair)) return false;
  const Gate gate;
  return add_waiter(&s->channel->waiters[s->side].ids, set->poller);
}

void stop_listening(EpollSet* set, Stream* s) {
  if (s->channel == nullptr || set->poller == kNoPoller || other_members_of_poller(s, set)) return;
  const Gate gate;
  remove_waiter(&s->channel->waiters[s->side].ids, set->poller);
}

void set_slow(EpollSet* set, EpollMember* m, bool slow) {
  if (m->slow == slow) return;
  m->slow = slow;
  if (slow) process().counters.slow_waits.fetch_add(1);
  set->slow_members.fetch_add(slow ? 1u : ~0u);
}

// set->lock held.
void remove_member(EpollSet* set, Stream* s, EpollMember* m) {
  if (m->inner != nullptr) {
    remove_link(m);
    return;
  }
  remove_ready(set, m);
  set_slow(set, m, false);
  if (m->managed) set->managed_members.fetch_add(~0u);
  unlink_member(s, m);
  if (m->managed) stop_listening(set, s);
  free_member(m);
}

int add_managed(EpollSet* set, Stream* s, int fd, const epoll_event& event) {
  EpollMember* m = make_member();
  if (m == nullptr) {
    errno = ENOMEM;  // as epoll_ctl(2) when the kernel has none
    return -1;
  }
  m->set = set;
  m->stream = s;
  m->fd = fd;
  m->events = event.events;
  m->data = event.data.u64;
  m->managed = true;
  epoll_event registration = managed_registration(m);
  if (real().epoll_ctl(own_instance(set), EPOLL_CTL_ADD, fd, &registration) != 0) {
    free_member(m);
    return -1;
  }
  link_member(s, m);
  set->managed_members.fetch_add(1);
  if (!listen_to(set, s)) set_slow(set, m, true);
  renew(set, m);
  nudge(set);
  return 0;
}

int add_unmanaged(EpollSet* set, Stream* s, int fd, epoll_event* event) {
  if (real().epoll_ctl(set->epfd, EPOLL_CTL_ADD, fd, event) != 0) return -1;
  EpollMember* m = make_member();
  if (m == nullptr) {
    make_plain(s, Reason::kLimit);  // it would be upgraded behind this set's back
    return 0;
  }
  m->set = set;
  m->stream = s;
  m->fd = fd;
  m->events = event->events;
  m->data = event->data.u64;
  link_member(s, m);
  return 0;
}

int modify(EpollSet* set, Stream* s, EpollMember* m, epoll_event* event) {
  (void)s;
  if (!m->managed) {
    const int result = real().epoll_ctl(set->epfd, EPOLL_CTL_MOD, m->fd, event);
    if (result != 0) return result;
  } else if ((event->events | m->events) & EPOLLEXCLUSIVE) {
    errno = EINVAL;
    return -1;
  }
  m->events = event->events;
  m->data = event->data.u64;
  m->disabled = false;
  if (m->managed) {
    renew(set, m);  // re-arms: what is ready now is told again
    nudge(set);
  }
  return 0;
}

// What the kernel takes along with EPOLLEXCLUSIVE (EPOLLEXCLUSIVE_OK_BITS in fs/eventpoll.c).
constexpr std::uint32_t kExclusiveBits = EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE;

int control(EpollSet* set, int op, int fd, Stream* s, epoll_event* event) {
  if (op == EPOLL_CTL_ADD && (event->events & EPOLLEXCLUSIVE) && (event->events & ~kExclusiveBits)) {
    errno = EINVAL;
    return -1;
  }
  EpollMember* m = find_member(set, s, fd);
  switch (op) {
    case EPOLL_CTL_ADD:
      if (m != nullptr) {
        errno = EEXIST;
        return -1;
      }
      return s->channel != nullptr && managed(state_of(s)) ? add_managed(set, s, fd, *event) : add_unmanaged(set, s, fd, event);
    case EPOLL_CTL_MOD:
      if (m == nullptr) return real().epoll_ctl(set->epfd, op, fd, event);
      return modify(set, s, m, event);
    case EPOLL_CTL_DEL: {
      const bool ours = m != nullptr && m->managed;
      const int result = ours ? drop_registration(set, fd) : real().epoll_ctl(set->epfd, op, fd, event);
      if (result == 0 && m != nullptr) remove_member(set, s, m);
      return result;
    }
    default: return real().epoll_ctl(set->epfd, op, fd, event);
  }
}

// A consistent copy of a stream's registrations. False: more than we handle.
bool members_of(Stream* s, EpollMember* (&out)[kMembersOfStreamMax], unsigned* count) {
  const LockGuard guard(s->members_lock);
  *count = 0;
  for (EpollMember* m = s->members; m != nullptr; m = m->next_in_stream) {
    if (*count == kMembersOfStreamMax) return false;
    out[(*count)++] = m;
  }
  return true;
}

bool manage_member(EpollSet* set, Stream* s, EpollMember* m) {
  // The number must still name this stream: a registration outlives its descriptor when there is a dup.
  if (!fd_table().names(m->fd, s) || fd_table().epoll(set->epfd) != set) return false;
  if (!listen_to(set, s)) return false;
  if (take_registration(set, m) != 0) {
    stop_listening(set, s);
    return false;
  }
  m->managed = true;
  set->managed_members.fetch_add(1);
  renew(set, m);
  nudge(set);
  return true;
}

void unmanage_member(EpollSet* set, Stream* s, EpollMember* m) {
  if (!m->managed) return;
  m->managed = false;
  set->managed_members.fetch_add(~0u);
  remove_ready(set, m);
  m->wants_space = false;  // or it would be looked at again, and told beside what the kernel tells of it
  set_slow(set, m, false);
  give_registration(set, m);
  if (s->channel == nullptr || set->poller == kNoPoller) return;
  const Gate gate;
  remove_waiter(&s->channel->waiters[s->side].ids, set->poller);
}

// Locks the set of a member copied without a lock, and makes sure that it is still the stream's.
template <class Action>
bool with_set_of(EpollMember* m, Stream* s, Action action) {
  EpollSet* set = m->set;
  if (set == nullptr) return true;
  const LockGuard guard(set->lock);
  if (m->set != set || m->stream != s) return true;
  return action(set);
}

// The stream's registrations, each under its set's lock; of more than kMembersOfStreamMax the first.
template <class Action>
void for_each_member(Stream* s, Action action) {
  EpollMember* members[kMembersOfStreamMax];
  unsigned count = 0;
  if (s->members == nullptr) return;
  members_of(s, members, &count);
  for (unsigned i = 0; i < count; ++i) {
    EpollMember* m = members[i];
    with_set_of(m, s, [&](EpollSet* set) {
      action(set, m);
      return true;
    });
  }
}

void release_set(EpollSet* set) {
  const LockGuard guard(set->lock);
  // Its registrations go with the kernel's instance.
  for (std::uint32_t i = 0; i < member_count(); ++i) {
    EpollMember* m = member_at(i);
    if (m->set == set) remove_member(set, m->stream, m);
  }
  if (set->poller != kNoPoller) {
    const std::uint32_t id = set->poller;
    set->poller = kNoPoller;
    give_poller(id);
  }
  close_hidden(set->under);
  set->under = -1;
  for (auto& word : set->pairs) word.store_relaxed(0);  // relaxed: under set->lock
  set->pair_words.store_relaxed(0);
  set->used = false;
}

bool allocate_sets() {
  if (g_sets.load_relaxed() != nullptr) return true;  // relaxed: under the lock
  void* at = ::mmap(nullptr, sizeof(EpollSet) * kSetsMax, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return false;
  g_sets.store_release(static_cast<EpollSet*>(at));  // SYNC: sets made
  return true;
}

}  // namespace

void arm_board(EpollSet* set, Pair* pair) { arm(&pair->board->side[pair->side].armed[set->poller]); }

bool always_armed(const EpollSet* set) {
  return set->sleepers.load_relaxed() != 0 || set->nested.load_relaxed() != 0;  // relaxed: behind the caller's exchange
}

std::uint64_t tag_prefix() {
  static Atomic<std::uint64_t> prefix;
  std::uint64_t known = prefix.load_acquire();
  if (known != 0) return known;
  std::uint64_t random = 0;
  const ErrnoSaver keep;
  if (quiet().getrandom(&random, sizeof random, GRND_NONBLOCK) != sizeof random) random = now_ns() * 0x9e3779b97f4a7c15u;
  random = (random | (std::uint64_t{1} << 63)) & ~kTagBelowPrefix;
  return prefix.compare_exchange(known, random) ? random : known;
}

void nudge(EpollSet* set) {
  const std::uint32_t poller = set->poller;  // once: pass_on() has no lock, and the set may be going
  if (poller == kNoPoller) return;
  thread_fence_seq_cst();  // the ready list, written before, against the sleeper's count (SYNC: sleepers)
  if (!always_armed(set)) return;
  const ErrnoSaver keep;
  const std::uint64_t one = 1;
  if (quiet().write(bell_of(poller), &one, sizeof one) == sizeof one) process().counters.bells.fetch_add(1);
}

EpollSet* make_epoll_set(int epfd) {
  if (g_sets_lock.held_by_this_thread()) return nullptr;
  const LockGuard guard(g_sets_lock);
  if (!allocate_sets()) return nullptr;
  for (std::uint32_t i = 0; i < kSetsMax; ++i) {
    EpollSet* set = &g_sets.load_relaxed()[i];  // relaxed: under the lock
    if (set->used) continue;
    set->used = true;
    set->epfd = epfd;
    set->nested.store_relaxed(0);
    set->inherited.store_relaxed(0);
    set->links.store_relaxed(0);
    set->under = -1;
    set->fds.store_relaxed(1);
    set->ready_head = set->ready_tail = nullptr;
    set->managed_members.store_relaxed(0);
    set->slow_members.store_relaxed(0);
    set->sleepers.store_relaxed(0);
    set->poller = kNoPoller;
    set->spin.forget();
    if (fd_table().set_epoll(epfd, set)) return set;
    set->used = false;
    return nullptr;
  }
  return nullptr;
}

void share_epoll_fd(EpollSet* set, int fd) {
  set->fds.fetch_add(1);
  fd_table().set_epoll(fd, set);
}

void forget_epoll_fd(EpollSet* set, int fd) {
  if (set->fds.fetch_add(~0u) == 1) {
    forget_links_to(set);
    release_set(set);
    return;
  }
  if (set->epfd != fd) return;
  // The instance lives on under another number.
  for (int other = 0; other <= fd_table().highest(); ++other) {
    if (fd_table().epoll(other) == set) set->epfd = other;
  }
}

namespace {

// False, with errno as epoll_ctl(2) for such an epfd. An address that is never mapped: if there are events none is taken
// (EFAULT), if there are none the answer is 0 (ep_send_events in fs/eventpoll.c).
bool is_epoll(int epfd) {
  const long result = raw_syscall(SYS_epoll_wait, epfd, sizeof(epoll_event), 1, 0);
  if (result >= 0 || result == -EFAULT) return true;
  errno = static_cast<int>(-result);
  return false;
}

}  // namespace

int epoll_ctl_stream(int epfd, int op, int fd, Stream* s, epoll_event* event) {
  if (state_of(s) == State::kPlain && op != EPOLL_CTL_DEL) return kUnhandled;
  epoll_event copy = {};
  if (op != EPOLL_CTL_DEL && user_copy(&copy, event, sizeof copy) != 0) return kUnhandled;  // EFAULT
  event = &copy;
  EpollSet* set = fd_table().epoll(epfd);
  if (set == nullptr) {
    if (!is_epoll(epfd)) return -1;
    // An epoll descriptor we did not see made (inherited over exec). Somebody may be asleep in it uncounted.
    set = make_epoll_set(epfd);
    if (set == nullptr) {
      if (s->channel == nullptr) return make_plain(s, Reason::kLimit), kUnhandled;
      errno = ENOMEM;
      return -1;
    }
    set->sleepers.fetch_add(1);
  }
  if (sections_here() != 0) {  // in a handler that interrupted us: what the kernel is told here no member would know
    if (s->channel == nullptr) return make_plain(s, Reason::kLimit), kUnhandled;
    errno = ENOMEM;
    return -1;
  }
  if (op == EPOLL_CTL_MOD) {
    if (EpollMember* m = find_member(set, s, fd)) {
      if ((m->events & EPOLLONESHOT) && !m->managed) before_rearm(fd, s, m);
    }
  }
  const LockGuard stream_guard(s->receive_lock);  // an upgrade step of another thread is over, or has not begun
  if (!fd_table().names(fd, s)) return kUnhandled;
  const LockGuard guard(set->lock);
  return control(set, op, fd, s, event);
}

bool may_manage_now(Stream* s) {
  const LockGuard guard(s->members_lock);
  for (EpollMember* m = s->members; m != nullptr; m = m->next_in_stream) {
    if ((m->events & EPOLLONESHOT) && m != s->rearming) return false;
  }
  return true;
}

bool manage_members(Stream* s) {
  EpollMember* members[kMembersOfStreamMax];
  unsigned count = 0;
  if (!members_of(s, members, &count)) return false;
  for (unsigned i = 0; i < count; ++i) {
    EpollMember* m = members[i];
    if (with_set_of(m, s, [&](EpollSet* set) { return manage_member(set, s, m); })) continue;
    unmanage_members(s);
    return false;
  }
  return true;
}

void unmanage_members(Stream* s) {
  for_each_member(s, [s](EpollSet* set, EpollMember* m) { unmanage_member(set, s, m); });
}

void refresh_members(Stream* s) {
  if (s->members == nullptr) return;
  if (sections_here() != 0) {
    defer(s, kDeferredRefresh);
    return;
  }
  for_each_member(s, [](EpollSet* set, EpollMember* m) {
    if (!m->managed) return;
    renew(set, m);
    nudge(set);
  });
}

void members_want_space(Stream* s) {
  if (sections_here() > 1) return;  // in a handler that interrupted us, perhaps with the set's lock
  for_each_member(s, [](EpollSet* set, EpollMember* m) {
    if (!m->managed || !(m->events & EPOLLOUT)) return;
    m->wants_space = true;
    set->wants_space = true;
  });
}

void detach_members(Stream* s) {
  while (true) {
    EpollMember* m = nullptr;
    {
      const LockGuard guard(s->members_lock);
      m = s->members;
    }
    if (m == nullptr) return;
    with_set_of(m, s, [&](EpollSet* set) {
      remove_member(set, s, m);
      return true;
    });
  }
}

void epoll_sets_forget_pair(Pair* pair) {
  EpollSet* const sets = g_sets.load_acquire();  // SYNC: sets made
  if (sets == nullptr) return;
  const std::uint64_t bit = std::uint64_t{1} << (pair->index % 64);
  for (std::uint32_t i = 0; i < kSetsMax; ++i) {
    EpollSet* set = &sets[i];
    if (set->epfd == 0 && !set->used) return;  // never used: the rest is not either
    if (!(set->pairs[pair->index / 64].load_relaxed() & bit)) continue;  // relaxed: no stream of the pair is left to add it
    const LockGuard guard(set->lock);
    set->pairs[pair->index / 64].fetch_and(~bit);
  }
}

SpinLock& epoll_sets_lock() { return g_sets_lock; }

void epoll_sets_forked_child() {
  EpollSet* const sets = g_sets.load_relaxed();  // relaxed: one thread here
  for (std::uint32_t i = 0; sets != nullptr && i < kSetsMax; ++i) {
    EpollSet* set = &sets[i];
    if (set->epfd == 0 && !set->used) break;
    set->lock.reset();
    set->sleepers.store_relaxed(0);
    set->inherited.store_relaxed(1);
    set->poller = kNoPoller;  // the bell in the kernel's instance is the parent's
    for (auto& word : set->pairs) word.store_relaxed(0);
    set->pair_words.store_relaxed(0);
  }
  for (std::uint32_t i = 0; i < member_count(); ++i) {
    EpollMember* m = member_at(i);
    if (m->set != nullptr && m->managed) set_slow(m->set, m, true);
  }
}

void epoll_sets_move_hidden(int from, int to) {
  EpollSet* const sets = g_sets.load_acquire();  // SYNC: sets made
  for (std::uint32_t i = 0; sets != nullptr && i < kSetsMax; ++i) {
    EpollSet* set = &sets[i];
    if (set->epfd == 0 && !set->used) return;
    if (set->under == from) set->under = to;
  }
}

void tell_again(EpollSet* set, std::uint64_t data) {
  const LockGuard guard(set->lock);
  for (std::uint32_t i = 0; i < member_count(); ++i) {
    EpollMember* m = member_at(i);
    if (m->set != set || !m->managed || m->data != data) continue;
    m->causes = ~std::uint32_t{0};
    m->disabled = false;
    push_ready(set, m);
  }
}

void leave_inherited_streams(EpollSet* set) {
  if (set->inherited.exchange(0) == 0) return;
  for (std::uint32_t i = 0; i < member_count(); ++i) {
    EpollMember* m = member_at(i);
    Stream* s = nullptr;
    if (m->set == set && m->managed) s = m->stream;
    if (s == nullptr || ours(s)) continue;
    const int fd = fd_of(s);
    if (fd >= 0) leave_softly(fd, s);
  }
}

}  // namespace mpklink
