// SPDX-License-Identifier: MIT
// An epoll instance of the program that has, or had, streams in it.
//
// The kernel's instance stays the program's: descriptors that are not ours are registered in it untouched. A stream that
// is not managed is, too; its registration is only remembered. When a stream becomes managed its registration in the
// kernel becomes edge-triggered with a tag of ours as data, and the bell of the set's poller joins it; what the program
// is told of the stream then comes from its rings and from those edges (an idle TCP socket has none, so OUT may stay).
// Like the kernel's, the set has a ready list: an item joins it on every event, and stays when level-triggered until a
// look finds it not ready. So readiness costs what is ready, not what is registered.
#pragma once
#include <sys/epoll.h>

#include <cstdint>

#include "preload/pair.h"
#include "preload/pollers.h"
#include "preload/spin.h"
#include "preload/stream.h"

namespace mpklink {

struct EpollSet;

struct EpollMember {
  Hint<EpollSet*> set;
  Hint<Stream*> stream;
  Hint<EpollSet*> inner;  // instead of a stream: a set in this set
  int fd;
  std::uint32_t events;  // as the program asked, flags included
  std::uint64_t data;
  bool managed;   // registered in the kernel with our tag
  bool ready;     // on the ready list
  bool disabled;  // one-shot, has fired
  bool wants_space;  // its ring was full at the last look
  bool slow;      // no bell can tell of its ring: the set looks at it every few milliseconds
  bool kernel_in;  // the kernel said so since the last look
  // What counts as an edge since the last look. A bit on the board or an edge of the idle TCP socket only say "look".
  std::uint32_t causes;       // EPOLL*: to be told if true, whether anything moved or not (added, modified, path moved)
  std::uint32_t seen_sticky;
  std::uint64_t seen_tail;    // of the incoming ring
  std::uint64_t seen_head;    // of the outgoing ring: behind it by a whole ring means it was full in between
  std::uint32_t seen_refusals;  // sends that found too little room
  std::uint32_t index;
  std::uint16_t uses;             // of this piece of memory
  EpollMember* ready_next;
  EpollMember* ready_previous;
  Hint<EpollMember*> next_in_stream;  // as the head, Stream::members
};

struct EpollSet {
  Hint<bool> used;
  Hint<int> epfd;
  Atomic<std::uint32_t> nested;       // watched by another epoll, poll or select: always armed, the bell shows outside
  Atomic<std::uint32_t> fds;          // descriptors of this process that name it
  Atomic<std::uint32_t> inherited;    // by a forked child, which has not waited in it yet
  Hint<int> under;                    // nested: the hidden instance, in the program's, that has our registrations; or -1
  Atomic<std::uint32_t> links;        // sets in this one
  SpinLock lock;                      // members, ready list; before the lock of a set in it and members_lock of a stream
  Hint<EpollMember*> ready_head;
  EpollMember* ready_tail;
  Atomic<std::uint32_t> managed_members;  // 0: epoll_wait is the kernel's
  Atomic<std::uint32_t> slow_members;
  Atomic<std::uint32_t> sleepers;     // threads in, or about to enter, the kernel's wait
  Hint<std::uint32_t> poller;         // kNoPoller until the first managed member
  Atomic<std::uint64_t> pairs[kPairsMax / 64];  // whose boards its poller listens on
  Atomic<std::uint32_t> pair_words;   // how many words of `pairs` are worth a look
  Hint<std::uint32_t> calls_since_kernel;  // fairness between rings and kernel; a lost count is a late look
  Hint<std::uint64_t> kernel_asked_tsc;
  Hint<bool> wants_space;             // the last look left a wish for space in a full ring
  Hint<std::uint64_t> quiet_look_tsc;  // when those were looked at last although nothing had come
  Hint<bool> rings_first;             // the kernel's descriptors filled the last answer
  Hint<bool> kernel_has_more;          // the last answer was full, and some of it was the kernel's
  SpinHistory spin;
};

// epoll_ctl on a descriptor that is one of our streams: the result as epoll_ctl(2), or kUnhandled to ask the kernel alone.
constexpr int kUnhandled = -2;
int epoll_ctl_stream(int epfd, int op, int fd, Stream* s, epoll_event* event);
// The set is being watched itself (epoll_ctl on its descriptor, poll, select): its descriptor becomes readable in the kernel
// whenever there may be news of a stream in it; whether there are says set_shows.
void mark_nested(EpollSet* set);
// Whether the set would tell its program anything now: what poll(2) on its descriptor must say.
bool set_shows(EpollSet* set);
// After how long a sleeper must look again although nothing woke it; -1: never.
std::int64_t look_again_ns(EpollSet* set);
// epoll_ctl on a descriptor that is a set: as epoll_ctl(2), or kUnhandled.
int epoll_ctl_set(int epfd, int op, int fd, EpollSet* inner, epoll_event* event);

// epoll_wait for a set with managed members; timeout in ns, negative: for ever. As epoll_pwait(2).
int epoll_wait_managed(EpollSet* set, epoll_event* events, int maxevents, std::int64_t timeout_ns, const sigset_t* mask);
// Bookkeeping around the kernel's wait for a set that has none (yet): a stream upgraded meanwhile must find the sleeper.
int epoll_wait_kernel(EpollSet* set, epoll_event* events, int maxevents, std::int64_t timeout_ns, const sigset_t* mask);

// Makes all registrations of a stream managed. False: one of them cannot be; none is changed then. Called by the thread
// that takes the upgrade step, both stream locks held, channel and pair in place.
bool manage_members(Stream* s);
// Whether the upgrade may take the stream's registrations over now: a one-shot one only while the program re-arms it.
bool may_manage_now(Stream* s);
// Back to the program's own registrations (the peer declined).
void unmanage_members(Stream* s);
// The receiving direction has moved: earlier news of the new path may have been looked at and dropped; look again.
void refresh_members(Stream* s);
// A send found no room: whoever waits for it looks now and then, as an edge may not come (note_full). Send lock held.
void members_want_space(Stream* s);
// The last descriptor closed: forgets its registrations, as the kernel does.
void detach_members(Stream* s);

EpollSet* make_epoll_set(int epfd);  // entered in the table; null: none to be had
void forget_epoll_fd(EpollSet* set, int fd);
void share_epoll_fd(EpollSet* set, int fd);  // dup
void epoll_sets_forget_pair(Pair* pair);
SpinLock& epoll_sets_lock();
SpinLock& epoll_members_lock();
void tell_again(EpollSet* set, std::uint64_t data);  // what was told with `data` did not reach the program
void epoll_sets_forked_child();
void epoll_sets_move_hidden(int from, int to);  // one of our descriptors has another number now
// A forked child waits in a set of its parent's: the streams in it go back to TCP, whose events the kernel tells both.
void leave_inherited_streams(EpollSet* set);

}  // namespace mpklink
