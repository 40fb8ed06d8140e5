// SPDX-License-Identifier: MIT
// The registrations of all epoll sets: a slab that is never returned, so that a stale pointer is harmless; and the sets' ready lists.
#include <sys/mman.h>

#include "preload/epoll_set.h"
#include "preload/epoll_tag.h"

namespace mpklink {
namespace {

constexpr std::size_t kMemberChunk = 1024;
constexpr std::size_t kMemberChunks = 127;
static_assert(kMemberChunk * kMemberChunks < kUnderTag);

SpinLock g_members_lock;
EpollMember* g_member_chunks[kMemberChunks];
EpollMember* g_free_members;
Atomic<std::uint32_t> g_member_count;

}  // namespace

EpollMember* make_member() {
  const LockGuard guard(g_members_lock);
  if (g_free_members == nullptr) {
    const std::uint32_t count = g_member_count.load_relaxed();  // relaxed: under the lock
    const std::uint32_t chunk = count / kMemberChunk;
    if (chunk == kMemberChunks) return nullptr;
    void* at = ::mmap(nullptr, sizeof(EpollMember) * kMemberChunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                      -1, 0);
    if (at == MAP_FAILED) return nullptr;
    g_member_chunks[chunk] = static_cast<EpollMember*>(at);
    for (std::uint32_t i = kMemberChunk; i-- > 0;) {
      g_member_chunks[chunk][i].index = count + i;
      g_member_chunks[chunk][i].ready_next = g_free_members;
      g_free_members = &g_member_chunks[chunk][i];
    }
    g_member_count.store_release(count + kMemberChunk);  // SYNC: members made
  }
  EpollMember* m = g_free_members;
  g_free_members = m->ready_next;
  m->ready_next = m->ready_previous = m->next_in_stream = nullptr;
  m->inner = nullptr;
  m->managed = m->ready = m->disabled = m->slow = m->wants_space = m->kernel_in = false;
  return m;
}

void free_member(EpollMember* m) {
  const LockGuard guard(g_members_lock);
  m->set = nullptr;
  m->stream = nullptr;
  m->inner = nullptr;
  ++m->uses;
  m->ready_next = g_free_members;
  g_free_members = m;
}

std::uint32_t member_count() { return g_member_count.load_acquire(); }  // SYNC: members made

EpollMember* member_at(std::uint32_t index) {
  if (index >= g_member_count.load_acquire()) return nullptr;
  return &g_member_chunks[index / kMemberChunk][index % kMemberChunk];
}

void push_ready(EpollSet* set, EpollMember* m) {
  if (m->ready) return;
  m->ready = true;
  m->ready_next = nullptr;
  m->ready_previous = set->ready_tail;
  if (set->ready_tail != nullptr) {
    set->ready_tail->ready_next = m;
  } else {
    set->ready_head = m;
  }
  set->ready_tail = m;
}

void renew(EpollSet* set, EpollMember* m) {
  m->causes = ~std::uint32_t{0};
  push_ready(set, m);
}

void remove_ready(EpollSet* set, EpollMember* m) {
  if (!m->ready) return;
  m->ready = false;
  if (m->ready_previous != nullptr) {
    m->ready_previous->ready_next = m->ready_next;
  } else {
    set->ready_head = m->ready_next;
  }
  (m->ready_next != nullptr ? m->ready_next->ready_previous : set->ready_tail) = m->ready_previous;
  m->ready_next = m->ready_previous = nullptr;
}

void push_members_without_space(EpollSet* set) {
  for (std::uint32_t i = 0; i < member_count(); ++i) {
    EpollMember* m = member_at(i);
    if (m->set == set && m->wants_space) push_ready(set, m);
  }
}

void push_slow_members(EpollSet* set) {
  for (std::uint32_t i = 0; i < member_count(); ++i) {
    EpollMember* m = member_at(i);
    if (m->set == set && m->slow) push_ready(set, m);
  }
}

SpinLock& epoll_members_lock() { return g_members_lock; }

}  // namespace mpklink
