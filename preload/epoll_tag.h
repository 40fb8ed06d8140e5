// SPDX-License-Identifier: MIT
// Between epoll_set.cc (registrations) and epoll_wait.cc (waiting): tags, ready list, pairs of a set.
#pragma once
#include <cstdint>

#include "preload/epoll_set.h"

namespace mpklink {

// What we put into epoll_event.data of registrations of ours: 39 random bits, the top bit, and the member's index. A program's
// own data equals one with a chance of 2^-40 per registration.
constexpr std::uint64_t kTagIndexMask = (std::uint64_t{1} << 24) - 1;
constexpr std::uint64_t kBellTag = kTagIndexMask;
std::uint64_t tag_prefix();
inline std::uint64_t tag_of_member(std::uint32_t index) { return tag_prefix() | index; }
inline bool is_tag(std::uint64_t data) { return (data & ~kTagIndexMask) == tag_prefix(); }

EpollMember* member_at(std::uint32_t index);  // null: no such member was ever made

// set->lock held. On the ready list, members wait for a look; `renew`: what is true then is an edge.
void push_ready(EpollSet* set, EpollMember* m);
void renew(EpollSet* set, EpollMember* m);
void remove_ready(EpollSet* set, EpollMember* m);
void push_slow_members(EpollSet* set);
void push_members_without_space(EpollSet* set);
// Wakes a sleeper of the set when there is one (or a watcher, when it is nested).
void nudge(EpollSet* set);

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
