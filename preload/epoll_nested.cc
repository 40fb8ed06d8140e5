// SPDX-License-Identifier: MIT
// Epoll sets that are watched themselves: by another set, by poll, by select.
//
// The kernel shows such a set readable while anything is on its list, also an edge of ours that is no news to the program. So our
// registrations move to an instance of their own (`under`), hidden, level-triggered in the program's: it can be emptied without
// taking an event of the program's descriptors. What the set would tell is then known exactly: the ready list, looked at but not
// told (set_shows), and what poll says of the program's instance once `under` is empty. Whoever watches is woken by the kernel as
// before and asks set_shows before it believes it: poll and select directly, an outer set through a member like that of a stream
// (`inner`), registered with our tag: level-triggered in the program's instance when it is level-triggered for the program (the
// kernel allows five sets in each other, so `under` must not add one for each), otherwise as a stream is.
#include <errno.h>

#include "preload/epoll_set.h"
#include "preload/epoll_tag.h"
#include "preload/fd_table.h"
#include "preload/pollers.h"
#include "shm/user_copy.h"

namespace mpklink {
namespace {

EpollMember* find_link(const EpollSet* set, const EpollSet* inner, int fd) {
  EpollMember* found = nullptr;
  for_each_link(set, [&](EpollMember* m) {
    if (m->inner == inner && m->fd == fd) found = m;
  });
  return found;
}

// Registered in the program's instance: nothing lingers there when the inner set has nothing.
bool plain_link(const EpollMember* m) {
  return m->inner != nullptr && !(m->events & (EPOLLET | EPOLLONESHOT)) && (m->events & (EPOLLIN | EPOLLRDNORM));
}

int register_link(EpollSet* set, const EpollMember* m) {
  epoll_event event = managed_registration(m);
  if (!plain_link(m)) return real().epoll_ctl(own_instance(set), EPOLL_CTL_ADD, m->fd, &event);
  event.events = EPOLLIN;
  return real().epoll_ctl(set->epfd, EPOLL_CTL_ADD, m->fd, &event);
}

int add_link(EpollSet* set, EpollSet* inner, int fd, const epoll_event& event) {
  EpollMember* m = make_member();
  if (m == nullptr) {
    errno = ENOMEM;  // as epoll_ctl(2) when the kernel has none
    return -1;
  }
  m->set = set;
  m->inner = inner;
  m->fd = fd;
  m->events = event.events;
  m->data = event.data.u64;
  if (register_link(set, m) != 0) {
    free_member(m);
    return -1;
  }
  m->managed = true;
  set->links.fetch_add(1);
  set->managed_members.fetch_add(1);
  renew(set, m);
  return 0;
}

int modify_link(EpollSet* set, EpollMember* m, const epoll_event& event) {
  if (event.events & EPOLLEXCLUSIVE) {
    errno = EINVAL;
    return -1;
  }
  const EpollMember before = *m;
  m->events = event.events;
  m->data = event.data.u64;
  m->disabled = false;
  if (plain_link(m) != plain_link(&before)) {
    drop_registration(set, m->fd);
    if (register_link(set, m) != 0) return -1;
  }
  renew(set, m);
  return 0;
}

int control_link(EpollSet* set, int op, int fd, EpollSet* inner, epoll_event* event) {
  EpollMember* m = find_link(set, inner, fd);
  if (m == nullptr) {
    if (op == EPOLL_CTL_ADD) return add_link(set, inner, fd, *event);
    return real().epoll_ctl(set->epfd, op, fd, event);
  }
  switch (op) {
    case EPOLL_CTL_ADD: errno = EEXIST; return -1;
    case EPOLL_CTL_MOD: return modify_link(set, m, *event);
    case EPOLL_CTL_DEL: {
      const int result = drop_registration(set, fd);
      if (result == 0) remove_link(m);
      return result;
    }
    default: return real().epoll_ctl(set->epfd, op, fd, event);
  }
}

// Our registrations leave the program's instance. set->lock held.
void move_under(EpollSet* set) {
  std::uint32_t plain = 0;
  for_each_link(set, [&](EpollMember* m) { plain += plain_link(m); });
  if (set->poller == kNoPoller && set->managed_members.load_relaxed() == plain) return;  // relaxed: under set->lock
  const int under = own_instance(set);
  if (under == set->epfd) return;
  if (set->poller != kNoPoller) {
    const int bell = bell_of(set->poller);
    epoll_event event = {};
    event.events = EPOLLIN | EPOLLET;
    event.data.u64 = kBellTag | tag_prefix();
    real().epoll_ctl(set->epfd, EPOLL_CTL_DEL, bell, nullptr);
    real().epoll_ctl(under, EPOLL_CTL_ADD, bell, &event);
  }
  for (std::uint32_t i = 0; i < member_count(); ++i) {
    EpollMember* m = member_at(i);
    if (m->set != set || !m->managed || plain_link(m)) continue;
    // A number that names something else by now: the registration stays, and may show outside once too often.
    const bool named = m->inner != nullptr ? fd_table().epoll(m->fd) == m->inner : fd_table().names(m->fd, m->stream);
    epoll_event event = managed_registration(m);
    if (!named || real().epoll_ctl(set->epfd, EPOLL_CTL_DEL, m->fd, nullptr) != 0) continue;
    if (real().epoll_ctl(under, EPOLL_CTL_ADD, m->fd, &event) == 0) continue;
    real().epoll_ctl(set->epfd, EPOLL_CTL_ADD, m->fd, &event);
  }
}

}  // namespace

// What the kernel is asked for a managed member. Edge-triggered: an idle TCP socket under the ring then says nothing.
epoll_event managed_registration(const EpollMember* m) {
  epoll_event event = {};
  event.events = EPOLLIN | EPOLLOUT | EPOLLET;
  // The kernel takes nothing but IN and OUT along with EPOLLEXCLUSIVE (EPOLLEXCLUSIVE_OK_BITS); a FIN shows as IN then.
  event.events |= m->events & EPOLLEXCLUSIVE ? EPOLLEXCLUSIVE : EPOLLRDHUP;
  event.data.u64 = tag_of_member(m);
  return event;
}

epoll_event program_registration(const EpollMember* m) {
  epoll_event event = {};
  event.events = m->disabled ? m->events & (EPOLLET | EPOLLONESHOT | EPOLLWAKEUP) : m->events;
  event.data.u64 = m->data;
  return event;
}

int own_instance(EpollSet* set) {
  if (set->nested.load_relaxed() == 0) return set->epfd;  // relaxed: under set->lock
  if (set->under >= 0) return set->under;
  const ErrnoSaver keep;
  const int fd = real().epoll_create1(EPOLL_CLOEXEC);
  const int under = fd < 0 ? -1 : hide_fd(fd);
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.u64 = kUnderTag | tag_prefix();
  if (under >= 0 && real().epoll_ctl(set->epfd, EPOLL_CTL_ADD, under, &event) == 0) {
    set->under = under;
    return under;
  }
  close_hidden(under);
  return set->epfd;  // it works, and may show outside once too often
}

// EPOLLEXCLUSIVE cannot be modified, only removed and added (epoll_ctl(2), EINVAL).
static int move_registration(int from, int to, const EpollMember* m, epoll_event old, epoll_event next) {
  if (from == to && !(m->events & EPOLLEXCLUSIVE)) return real().epoll_ctl(to, EPOLL_CTL_MOD, m->fd, &next);
  if (real().epoll_ctl(from, EPOLL_CTL_DEL, m->fd, nullptr) != 0) return -1;
  if (real().epoll_ctl(to, EPOLL_CTL_ADD, m->fd, &next) == 0) return 0;
  real().epoll_ctl(from, EPOLL_CTL_ADD, m->fd, &old);
  return -1;
}

int take_registration(EpollSet* set, const EpollMember* m) {
  return move_registration(set->epfd, own_instance(set), m, program_registration(m), managed_registration(m));
}

int give_registration(EpollSet* set, const EpollMember* m) {
  return move_registration(own_instance(set), set->epfd, m, managed_registration(m), program_registration(m));
}

int drop_registration(const EpollSet* set, int fd) {
  if (set->under >= 0 && real().epoll_ctl(set->under, EPOLL_CTL_DEL, fd, nullptr) == 0) return 0;
  return real().epoll_ctl(set->epfd, EPOLL_CTL_DEL, fd, nullptr);
}

void remove_link(EpollMember* m) {
  EpollSet* set = m->set;
  remove_ready(set, m);
  if (m->slow) set->slow_members.fetch_add(~0u);
  set->managed_members.fetch_add(~0u);
  set->links.fetch_add(~0u);
  free_member(m);
}

void push_links(EpollSet* set) {
  if (set->links.load_relaxed() == 0) return;  // relaxed: under set->lock
  for_each_link(set, [&](EpollMember* m) { push_ready(set, m); });
}

void forget_links_to(EpollSet* inner) {
  if (inner->nested.load_relaxed() == 0) return;  // relaxed: nobody can add it any more
  for (std::uint32_t i = 0; i < member_count(); ++i) {
    EpollMember* m = member_at(i);
    EpollSet* set = m->set;
    if (set == nullptr || m->inner != inner) continue;
    const LockGuard guard(set->lock);
    if (m->set == set && m->inner == inner) remove_link(m);
  }
}

void mark_nested(EpollSet* set) {
  if (set->nested.load_acquire() != 0) return;
  const LockGuard guard(set->lock);
  if (set->nested.exchange(1) != 0) return;
  const ErrnoSaver keep;
  move_under(set);
  if (set->poller == kNoPoller) return;
  {
    const Gate gate;
    for_each_pair(set, [&](Pair* pair) { arm_board(set, pair); });
  }
  nudge(set);
}

int epoll_ctl_set(int epfd, int op, int fd, EpollSet* inner, epoll_event* event) {
  if (sections_here() != 0) return kUnhandled;  // in a handler that interrupted us
  if (op == EPOLL_CTL_ADD) mark_nested(inner);
  EpollSet* set = fd_table().epoll(epfd);
  epoll_event copy = {};
  if (set == nullptr || set == inner || (op != EPOLL_CTL_DEL && user_copy(&copy, event, sizeof copy) != 0)) return kUnhandled;
  event = &copy;
  if (op == EPOLL_CTL_ADD && (event->events & EPOLLEXCLUSIVE)) return kUnhandled;  // EINVAL, for a set
  int result = 0;
  {
    const LockGuard guard(set->lock);
    result = control_link(set, op, fd, inner, event);
  }
  // Ready already, perhaps, while another thread sleeps in the outer set: the kernel knows only what the bell says.
  if (result == 0 && op != EPOLL_CTL_DEL) nudge(inner);
  return result;
}

}  // namespace mpklink
