// SPDX-License-Identifier: MIT
// Between epoll_set.cc (registrations) and epoll_wait.cc (waiting): tags, ready list, pairs of a set.
#pragma once
#include <cstdint>

#include "preload/epoll_set.h"

namespace mpklink {

// What we put into epoll_event.data of registrations of ours: the top bit, 30 random bits, 16 that count how often the member was used,
// and its index. A program's own data (pointers and descriptors have no top bit) equals one with a chance of 2^-31 per registration.
// The count: an event that a thread has got from the kernel and not looked at yet may be of a registration that is gone, its member another's.
constexpr unsigned kTagIndexBits = 17;
constexpr std::uint64_t kTagIndexMask = (std::uint64_t{1} << kTagIndexBits) - 1;
constexpr std::uint64_t kTagBelowPrefix = (std::uint64_t{1} << (kTagIndexBits + 16)) - 1;
constexpr std::uint64_t kBellTag = kTagIndexMask;
constexpr std::uint64_t kUnderTag = kTagIndexMask - 1;
std::uint64_t tag_prefix();
inline std::uint64_t tag_of_member(const EpollMember* m) { return tag_prefix() | std::uint64_t{m->uses} << kTagIndexBits | m->index; }
inline bool is_tag(std::uint64_t data) { return (data & ~kTagBelowPrefix) == tag_prefix(); }

EpollMember* member_at(std::uint32_t index);  // null: no such member was ever made
EpollMember* make_member();  // null: no memory
void free_member(EpollMember* m);
std::uint32_t member_count();

// set->lock held. On the ready list, members wait for a look; `renew`: what is true then is an edge.
void push_ready(EpollSet* set, EpollMember* m);
void renew(EpollSet* set, EpollMember* m);
void remove_ready(EpollSet* set, EpollMember* m);
void push_slow_members(EpollSet* set);
void push_members_without_space(EpollSet* set);
void push_links(EpollSet* set);
void remove_link(EpollMember* m);
void drain_under(EpollSet* set);
// Looks at the ready list and tells up to `max` of it. Members of which a direction is on TCP need the kernel's word and are looked
// at with the gate closed. Returns the events told.
int collect_locked(EpollSet* set, epoll_event* events, int max);
// The instance that takes our own registrations.
int own_instance(EpollSet* set);
// Moves a registration between the program's instance, under the program's own events, and ours.
int take_registration(EpollSet* set, const EpollMember* m);
int give_registration(EpollSet* set, const EpollMember* m);
int drop_registration(const EpollSet* set, int fd);
epoll_event managed_registration(const EpollMember* m);
epoll_event program_registration(const EpollMember* m);
bool always_armed(const EpollSet* set);
void arm_board(EpollSet* set, Pair* pair);
// Wakes a sleeper of the set when there is one (or a watcher, when it is nested).
void nudge(EpollSet* set);

// Takes our own events out of what the kernel returned. Returns what is left for the program. No lock held.
int filter(EpollSet* set, epoll_event* events, int n);
// A set that goes away leaves the sets it is in. No lock held.
void forget_links_to(EpollSet* inner);

template <class Visit>
void for_each_link(const EpollSet* set, Visit visit) {
  for (std::uint32_t i = 0; i < member_count(); ++i) {
    EpollMember* m = member_at(i);
    if (m->set == set && m->inner != nullptr) visit(m);
  }
}

template <class Visit>
void for_each_pair(EpollSet* set, Visit visit) {
  const std::uint32_t words = set->pair_words.load_acquire();
  for (std::uint32_t w = 0; w < words; ++w) {
    for (std::uint64_t bits = set->pairs[w].load_acquire(); bits != 0; bits &= bits - 1) {
      visit(pair_at(w * 64 + static_cast<std::uint32_t>(__builtin_ctzll(bits))));
    }
  }
}

}  // namespace mpklink
