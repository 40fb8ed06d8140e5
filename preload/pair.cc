// SPDX-License-Identifier: MIT
#include "preload/pair.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "preload/assert.h"
#include "preload/bell.h"
#include "preload/epoll_set.h"
#include "preload/fd_table.h"
#include "preload/log.h"
#include "preload/messages.h"
#include "preload/pollers.h"
#include "preload/probes.h"
#include "shm/stop_point.h"

namespace mpklink {
namespace {

// A peer that has said so much that is none of ours is not listened to any more: it could go on for ever.

SpinLock g_pairs_lock;
Pair* g_pairs[kPairsMax];
Atomic<std::uint32_t> g_bells_kept;

// Reads every bell that has arrived: over its life a pair reads kPeerBellsMax + kNonsenseMax messages at most. pair->lock held.
void drain_control(Pair* pair) {
  while (pair->nonsense < kNonsenseMax) {
    BellMessage message = {};
    int fds[kMessageFdsMax];
    int count = 0;
    const bool whole = receive_message(pair->control_fd, &message, sizeof message, fds, &count);
    if (!whole && errno != EPROTO) return;
    // Else nonsense, or a bell we had no descriptor for: its poller stays unknown.
    const bool bell = whole && message.type == MessageType::kBell && count == 1;
    if (!bell) close_all(fds, count);
    if (!bell || !keep_peer_bell(pair, message.poller, fds[0])) ++pair->nonsense;
  }
}

}  // namespace

// Only what can be a bell is kept: writing to a pipe, a socket or a file of the peer's choosing could block us, kill us with
// SIGPIPE, or change the file. Anonymous inodes have no type in st_mode; those that are no eventfd refuse write(2).
// The first bell of a poller stays: replacing it would close a descriptor under another thread's write.
bool keep_peer_bell(Pair* pair, std::uint32_t id, int fd) {
  struct stat st = {};
  const bool sound = id < kPollers && ::fstat(fd, &st) == 0 && (st.st_mode & S_IFMT) == 0;
  const bool room = pair->bells_kept < kPeerBellsMax && g_bells_kept.load_relaxed() < kAllPeerBellsMax;  // relaxed: one more or less
  if (!sound || pair->peer_bell[id].load_acquire() != 0 || !room) {
    close_all(&fd, 1);
    return false;
  }
  const int hidden = hide_fd(fd);
  if (hidden < 0) return false;
  ++pair->bells_kept;
  g_bells_kept.fetch_add(1);
  pair->peer_bell[id].store_release(static_cast<std::uint32_t>(hidden) + 1);
  return true;
}

bool peer_gone(const Pair* pair) {
  if (pair->control_fd < 0) return pair->generation == process().generation.load_relaxed();  // relaxed: changes by fork only
  pollfd end = {pair->control_fd, POLLRDHUP, 0};  // whatever it has left unread
  return quiet().poll(&end, 1, 0) == 1 && end.revents != 0;
}

SpinLock& pairs_lock() { return g_pairs_lock; }
Pair* pair_at(std::uint32_t index) { return g_pairs[index]; }

Pair* find_pair(const Stream* s, const ProcessId& peer, std::uint32_t side, const ProcessId* nonce) {
  Pair* found = nullptr;
  for (Pair* pair : g_pairs) {
    if (pair == nullptr) break;
    const bool fits = pair->used && pair->side == side && pair->peer == peer && pair->peer_uid == s->peer_uid && pair->peer_pid == s->peer_pid &&
                      pair->generation == process().generation.load_relaxed();  // relaxed: changes by fork only
    if (!fits || (nonce != nullptr && !(pair->nonce == *nonce))) continue;
    const bool newer = found != nullptr && !pair->established && !found->established && pair->made_ns > found->made_ns;
    if (found == nullptr || (pair->established && !found->established) || newer) found = pair;
  }
  return found;
}

Pair* make_pair(const Stream* s, const ProcessId& peer, std::uint32_t side, Board* board) {
  for (std::uint32_t i = 0; i < kPairsMax; ++i) {
    if (g_pairs[i] != nullptr && g_pairs[i]->used) continue;
    if (g_pairs[i] == nullptr) {
      void* at = real().sys.mmap(nullptr, sizeof(Pair), PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (at == MAP_FAILED) return nullptr;
      g_pairs[i] = static_cast<Pair*>(at);  // zeroed; never unmapped, scans look at it without a lock
    }
    Pair* pair = g_pairs[i];
    pair->side = side;
    pair->index = i;
    pair->generation = process().generation.load_relaxed();  // relaxed: changes by fork only
    pair->peer = peer;
    pair->peer_uid = s->peer_uid;
    pair->peer_pid = s->peer_pid;
    pair->trusted = could_stop_us(s->peer_uid, s->peer_pid);
    pair->board = board;
    pair->control_fd = -1;
    pair->established = false;
    pair->streams = 0;
    pair->made_ns = now_ns();
    pair->offering = false;
    pair->offer_bell_count = 0;
    pair->bells_kept = pair->nonsense = 0;
    pair->used = true;
    return pair;
  }
  return nullptr;
}

void forget_peer_bells(Pair* pair) {
  g_bells_kept.fetch_add(~pair->bells_kept + 1);
  for (auto& bell : pair->peer_bell) {
    if (bell.load_relaxed() == 0) continue;  // relaxed: nobody else uses a pair without streams
    close_hidden(static_cast<int>(bell.exchange(0)) - 1);
  }
}

void destroy_pair(Pair* pair) {
  const ErrnoSaver keep;
  pair->used = false;
  close_hidden(pair->control_fd);
  pair->control_fd = -1;
  forget_peer_bells(pair);
  memset(pair->bell_sent, 0, sizeof pair->bell_sent);
  for (auto& word : pair->slots_taken) word.store_relaxed(0);
  epoll_sets_forget_pair(pair);  // from here on no scan looks at the board
  process().guard.unmap(real().sys, reinterpret_cast<unsigned char*>(pair->board));
  pair->board = nullptr;
}

void release_pair(Pair* pair) {
  MPKLINK_ASSERT(pair->streams, >, 0u);
  if (--pair->streams == 0 && (!pair->established || peer_gone(pair))) destroy_pair(pair);
}

void collect_pairs() {
  for (Pair* pair : g_pairs) {
    if (pair == nullptr) return;
    if (pair->used && pair->streams == 0 && peer_gone(pair)) destroy_pair(pair);
  }
}

Stream* twin_stream(const Stream* s) {
  const LockGuard guard(g_pairs_lock);
  for (Pair* pair : g_pairs) {
    if (pair == nullptr) break;
    if (!pair->used || pair->side == s->pair->side || !(pair->nonce == s->pair->nonce)) continue;
    return reinterpret_cast<Stream*>(pair->stream_of_slot[s->slot].load_acquire());
  }
  return nullptr;
}

int take_slot(Pair* pair, Stream* stream) {
  for (std::uint32_t w = 0; w < kSlots / 64; ++w) {
    std::uint64_t taken = pair->slots_taken[w].load_relaxed();  // relaxed: the fetch_or decides
    while (taken != ~std::uint64_t{0}) {
      const std::uint64_t bit = std::uint64_t{1} << __builtin_ctzll(~taken);
      taken = pair->slots_taken[w].fetch_or(bit);
      if (taken & bit) continue;
      const std::uint32_t slot = w * 64 + static_cast<std::uint32_t>(__builtin_ctzll(bit));
      pair->stream_of_slot[slot].store_release(reinterpret_cast<std::uintptr_t>(stream));
      return static_cast<int>(slot);
    }
  }
  return -1;
}

void give_slot(Pair* pair, const Stream* stream, bool keep) {
  // The acceptor's number may have been given to a newer stream by now: the connector closed first.
  auto expected = reinterpret_cast<std::uintptr_t>(stream);
  pair->stream_of_slot[stream->slot].compare_exchange(expected, 0);
  if (pair->side == 0 && !keep) pair->slots_taken[stream->slot / 64].fetch_and(~(std::uint64_t{1} << (stream->slot % 64)));
}

int peer_bell(Pair* pair, std::uint32_t id) {
  std::uint32_t known = pair->peer_bell[id].load_acquire();
  if (known == 0 && !pair->lock.held_by_this_thread() && pair->generation == process().generation.load_relaxed()) {  // relaxed: changes by fork only
    const ErrnoSaver keep;
    const LockGuard guard(pair->lock);
    drain_control(pair);
    known = pair->peer_bell[id].load_acquire();
  }
  return static_cast<int>(known) - 1;
}

namespace {

template <class Have>
bool all_waiters(Stream* s, Have have) {
  const std::uint64_t ids = s->channel->waiters[1 - s->side].ids.load_acquire();  // SYNC: waiters registered
  for (unsigned i = 0; i < kWaitersMax; ++i) {
    const std::uint32_t field = waiter_at(ids, i);
    if (field != 0 && field <= kPollers && !have(field - 1)) return false;
  }
  return true;
}

}  // namespace

bool bells_at_hand(Stream* s) {
  return all_waiters(s, [&](std::uint32_t id) { return s->pair->peer_bell[id].load_acquire() != 0; });
}

bool fetch_bells(Stream* s) {
  std::uint32_t missing[kWaitersMax];
  unsigned count = 0;
  {
    const Gate gate;
    all_waiters(s, [&](std::uint32_t id) { return missing[count++] = id, true; });
  }
  bool all = true;
  for (unsigned i = 0; i < count; ++i) all = peer_bell(s->pair, missing[i]) >= 0 && all;
  return all;
}

bool send_bell(Pair* pair, std::uint32_t id, int bell_fd, bool* fresh) {
  const std::uint64_t bit = std::uint64_t{1} << (id % 64);
  const ErrnoSaver keep;
  if (pair->lock.held_by_this_thread()) return false;  // in a handler: it waits by looking now and then
  const LockGuard guard(pair->lock);
  if (pair->bell_sent[id / 64] & bit) return true;
  if (pair->offering) {
    if (pair->offer_bell_count == kOfferBellsMax) return false;
    pair->offer_bells[pair->offer_bell_count++] = id;
    pair->bell_sent[id / 64] |= bit;
    return true;
  }
  BellMessage message = {};
  message.type = MessageType::kBell;
  message.poller = id;
  if (!send_message(pair->control_fd, &message, sizeof message, &bell_fd, 1)) return false;
  pair->bell_sent[id / 64] |= bit;
  if (fresh != nullptr) *fresh = true;
  return true;
}

void pairs_before_fork() {
  for (Pair* pair : g_pairs) {
    if (pair == nullptr) return;
    if (!pair->used || pair->lock.held_by_this_thread() || pair->generation != process().generation.load_relaxed()) continue;  // relaxed: changes by fork only
    const LockGuard guard(pair->lock);
    if (pair->control_fd >= 0) drain_control(pair);
  }
}

// The child has the mappings, to use streams it inherited, but neither speaks nor listens on the parent's channels.
void pairs_forked_child() {
  bells_forked_child();
  for (Pair* pair : g_pairs) {
    if (pair == nullptr) return;
    pair->lock.reset();
    if (!pair->used) continue;
    close_hidden(pair->control_fd);
    pair->control_fd = -1;
  }
}

void Wakeups::collect(Stream* s) {
  pair_ = s->pair;
  const std::uint32_t theirs = 1 - s->side;
  // relaxed: behind the fence of the publish before this call (SYNC: waiters registered)
  const std::uint64_t ids = s->channel->waiters[theirs].ids.load_relaxed();
  BoardSide& side = pair_->board->side[theirs];
  for (unsigned i = 0; i < kWaitersMax && (ids >> (16 * i)) != 0; ++i) {
    const std::uint32_t field = waiter_at(ids, i);
    if (field == 0 || field > kPollers) continue;
    const std::uint32_t id = field - 1;
    if (id < kBitmapPollers) mark_ready(&side.ready[id], s->slot);
    if (take_armed(&side.armed[id])) ids_[count_++] = id;
  }
}

void Wakeups::ring() {
  for (std::uint32_t i = 0; i < count_; ++i) {
    STOP_POINT("bell-taken");
    const ErrnoSaver keep;
    const int bell = peer_bell(pair_, ids_[i]);
    if (bell < 0) {
      log(LogLevel::kWarn, FMT_COMPILE("the bell of poller {} of the peer is not to be had"), ids_[i]);
      continue;
    }
    process().counters.bells.fetch_add(1);
    PROBE0(bell);
    ring_bell(bell, pair_->trusted);
  }
}

}  // namespace mpklink
