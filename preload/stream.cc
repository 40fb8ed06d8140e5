// SPDX-License-Identifier: MIT
#include "preload/stream.h"

#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <cstddef>
#include <initializer_list>

#include "preload/assert.h"
#include "preload/epoll_set.h"
#include "preload/fd_table.h"
#include "preload/give_back.h"
#include "preload/holders.h"
#include "preload/lifetime.h"
#include "preload/log.h"
#include "preload/pair.h"
#include "preload/pollers.h"
#include "preload/revoke.h"
#include "preload/sleepers.h"
#include "preload/status.h"
#include "preload/tap.h"

namespace mpklink {

Atomic<Stream*> g_stream_chunks[kStreamChunks];

namespace {

SpinLock g_slab_lock;
Stream* g_free_streams = nullptr;

bool add_chunk() {
  std::uint32_t index = 0;
  for (Atomic<Stream*>& word : g_stream_chunks) {
    index += kStreamChunk;
    if (word.load_relaxed() != nullptr) continue;  // relaxed: under the lock
    void* at = ::mmap(nullptr, sizeof(Stream) * kStreamChunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return false;
    auto* const chunk = static_cast<Stream*>(at);
    for (std::uint32_t i = kStreamChunk; i-- > 0;) {  // low numbers are used first: tools look at all rows below the highest
      chunk[i].index = --index;
      chunk[i].next_free = g_free_streams;
      g_free_streams = &chunk[i];
    }
    word.store_release(chunk);  // SYNC: streams made
    return true;
  }
  return false;
}

// A signal handler that calls socket() while its thread is in here gets an untracked socket, not a deadlock.
bool lock_slab() {
  if (g_slab_lock.held_by_this_thread()) return false;
  g_slab_lock.lock();
  return true;
}

void set_state(Stream* s, State state) { s->state.store_release(static_cast<std::uint32_t>(state)); }

void reset_stream(Stream* s) {
  s->core = nullptr;
  s->channel = nullptr;
  s->pair = nullptr;
  s->connector = false;
  s->server_port = 0;
  s->tries = 0;
  s->returns = 0;
  s->absences = 0;
  s->refused = 0;
  s->holders = nullptr;
  s->owner_generation = process().generation.load_relaxed();  // relaxed: changes by fork only
  s->rendezvous_fd = -1;
  s->rendezvous_step = 0;
  s->peer_uid = s->peer_pid = 0;
  s->rearming = nullptr;
  s->late = false;
  s->members = nullptr;
  s->row.store_relaxed(&g_no_row);  // relaxed: nobody else has it
  s->ports = 0;
  s->why = 0;
  s->held_up = 0;
  s->ring_tx_base = s->ring_rx_base = 0;
  s->tcp_tx_base = s->tcp_rx_base = 0;
  Atomic<std::uint32_t>* const words[] = {
      &s->forked, &s->nonblocking, &s->sticky, &s->pending_error, &s->send_over_tcp, &s->empty_reads, &s->poisoned, &s->end_reported, &s->bells_lost,
      &s->shut, &s->ended, &s->low_water, &s->inq, &s->zero_copy, &s->stay_plain, &s->stalled, &s->answered, &s->revoke_noted, &s->last_fd,
      &s->sends_after_fin, &s->operations, &s->next_try, &s->fds, &s->sleepers, &s->stand_in,
      &s->told_to_tap};
  for (auto* word : words) word->store_relaxed(0);
  s->spin.forget();
  Atomic<std::uint64_t>* const wide[] = {&s->receive_timeout_ns, &s->send_timeout_ns, &s->tcp_sent, &s->tcp_received, &s->patience_ns,
                                         &s->full_head, &s->full_since_ns};
  for (auto* word : wide) word->store_relaxed(0);
}

void account_tcp_bytes(Stream* s) {
  const std::uint64_t sent = s->tcp_sent.load_relaxed();  // relaxed: a statistic
  const std::uint64_t received = s->tcp_received.load_relaxed();
  process().counters.tcp_tx.fetch_add(sent - s->tcp_tx_base);
  process().counters.tcp_rx.fetch_add(received - s->tcp_rx_base);
  s->tcp_tx_base = sent;
  s->tcp_rx_base = received;
}

void free_stream(Stream* s) {
  account_tcp_bytes(s);
  hide_stream(s);
  set_state(s, State::kFree);
  if (!lock_slab()) return;  // lost: one slot, in a handler that closes a socket while socket() is interrupted
  s->next_free = g_free_streams;
  g_free_streams = s;
  g_slab_lock.unlock();
}

// This process has the stream no longer. True: nobody has, its end is ours to make. By the count's own step: of two processes that end
// at once, and both look first, neither would (a peer then saw a reset as an end of file).
bool let_go(Stream* s) {
  const Gate gate;
  return s->core->holders.fetch_add(~std::uint32_t{0}) == 1;  // SYNC: holders
}

// Bytes of the peer that the kernel has got in all, whoever took them (tcp(7), TCP_INFO); as many as there can be where it does not say.
std::uint64_t arrived_over_tcp(int fd) {
  tcp_info info = {};
  socklen_t length = sizeof info;
  if (real().getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return ~std::uint64_t{0};
  if (length < offsetof(tcp_info, tcpi_bytes_received) + sizeof info.tcpi_bytes_received) return ~std::uint64_t{0};
  return info.tcpi_bytes_received;  // and one for a FIN, which comes behind all
}

// The peer's producer may sleep on space that will never come, and its next send must meet TCP's answer.
void tell_peer_we_closed(Stream* s) {
  Wakeups wakeups;
  {
    const Gate gate;
    Direction& in = incoming(s);
    in.consumer.closed.exchange(kClosed);  // SYNC: closed. Exchange: the fence before the look at the waiters
    wakeups.collect(s);
  }
  wakeups.ring();
}

void close_managed(int fd, Stream* s) {
  s->send_lock.lock();
  s->receive_lock.lock();
  bool unread = false;
  if (s->channel != nullptr && let_go(s)) {
    bool theirs = true;
    if (state_of(s) == State::kOffered) {
      const Gate gate;
      std::uint32_t expected = kOffered;
      theirs = !s->channel->accept_state.compare_exchange(expected, kWithdrawn);
    }
    unread = theirs && fd >= 0 && ends_unread(fd, s);
    if (theirs) tell_peer_we_closed(s);
  }
  if (unread) {
    // close(2) with unread data is a reset (RFC 1122 4.2.2.13); the kernel does not know of the bytes in the ring.
    const linger reset = {1, 0};
    real().setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  }
  // SYNC: pins. Exchange: the state is visible before we look at the pins; a pinner counts itself, then looks at the state.
  s->state.exchange(static_cast<std::uint32_t>(State::kPlain));
  s->receive_lock.unlock();
  s->send_lock.unlock();
}

// What TCP's close must look like to the peer, then the end of the object. fd -1: the kernel has closed it already.
__attribute__((cold)) void end_stream(int fd, Stream* s) {
  const ErrnoSaver keep;
  tap_end(s, true, TapKind::kEnd);
  s->step_lock.lock();  // no upgrade step is under way, and none begins: the table no longer knows the stream
  detach_members(s);
  const std::uint32_t operations = s->operations.load_relaxed();  // relaxed: the last descriptor is going
  if (s->server_port != 0 && state_of(s) != State::kPlain) learn_lifetime(s->server_port, operations);
  if (operations != 0) make_plain(s, reason_of_absence(s, s->absences == 0 ? Reason::kShortLived : Reason::kPeerAbsent));
  s->pins.fetch_add(1);  // SYNC: pins. Another thread may be taking it back to TCP: the channel stays for us
  if (managed(state_of(s))) {
    if (fd >= 0) leave_to_kernel(fd, s, TransferLock::kEnding);
    give_back_at_end(fd, s);
    close_managed(fd, s);
  }
  s->state.exchange(static_cast<std::uint32_t>(State::kPlain));
  close_hidden(s->rendezvous_fd);
  s->rendezvous_fd = -1;
  drop_holder(s);
  s->step_lock.unlock();
  unpin(s);
  release_stream(s, kFreeStream);
}

// Whether the peer believes that the slot is still this stream's: a forked child goes on, and nobody has said that we closed.
bool slot_is_the_peers(Stream* s) {
  const Gate gate;
  return s->channel->accept_state.load_acquire() == kAccepted && incoming(s).consumer.closed.load_acquire() != kClosed;
}

void drop_channel(Stream* s) {
  s->send_lock.lock();
  s->receive_lock.lock();
  account_ring_bytes(s);
  const bool keep_slot = slot_is_the_peers(s);
  auto* const memory = reinterpret_cast<unsigned char*>(s->core);
  s->core = nullptr;  // before it is unmapped: a fork may come in between, and its child look
  s->channel = nullptr;
  process().guard.unmap(real().sys, memory);
  Pair* pair = s->pair;
  s->pair = nullptr;
  give_slot(pair, s, keep_slot);
  s->receive_lock.unlock();
  s->send_lock.unlock();
  const LockGuard guard(pairs_lock());
  release_pair(pair);
}

// Nobody has it pinned. One thread at a time; what others ask for meanwhile is the worker's, too, unless it has been pinned
// again: then it is left to the one that lets go. Both look after they have written: one of them sees it.
void finish(Stream* s) {
  do {
    std::uint32_t what = s->after_pins.load_acquire();
    if (what == 0 || (what & kFinishing) || !s->after_pins.compare_exchange(what, kFinishing)) return;  // it is being done
    if (s->channel != nullptr) drop_channel(s);
    if (what & kFreeStream) {
      s->after_pins.store_relaxed(0);  // relaxed: nobody else is left; the slab's lock orders
      free_stream(s);
      return;
    }
  } while ((s->after_pins.fetch_and(~std::uint32_t{kFinishing}) & ~std::uint32_t{kFinishing}) != 0 && s->pins.load_acquire() == 0);
}

}  // namespace

std::uint64_t not_received(Stream* s) {
  const Direction& in = incoming(s);
  RingConsumer consumer = consumer_of(s);
  if (!consumer.refresh()) return 1;
  if (!consumer.frozen()) return consumer.available();
  const std::uint64_t at = in.producer.switch_at.load_acquire();                      // SYNC: switch_at
  const std::uint64_t received = s->core->receive.tcp_received.load_relaxed();        // relaxed: a look, or under the receive lock
  const std::uint64_t got = at == 0 || received < at - 1 ? 0 : received - (at - 1);
  return got < consumer.available() ? consumer.available() - got : 0;
}

bool all_counted(const Stream* s) { return s->core->uncounted.load_acquire() == 0; }

bool ends_unread(int fd, Stream* s) {
  {
    const Gate gate;
    const std::uint32_t uncounted = s->core->uncounted.load_acquire();
    if (uncounted & kByOthers) return false;
    // What the peer gave back counts, too: a busy kernel may not have delivered it yet, and would end the connection in order.
    if (uncounted == 0) return not_received(s) > 0;
  }
  const std::uint64_t arrived = arrived_over_tcp(fd);
  const Gate gate;
  RingConsumer consumer = consumer_of(s);
  if (!consumer.refresh()) return true;
  const std::uint64_t at = incoming(s).producer.switch_at.load_acquire();  // SYNC: switch_at
  return at != 0 && arrived < at - 1 + consumer.available();
}

bool alone(Stream* s) {
  if (!s->forked.load_relaxed()) return true;  // relaxed: set with both locks held
  const Gate gate;
  return s->core->holders.load_acquire() <= 1;  // SYNC: holders
}

Stream* make_stream(State state) {
  notice_fork();
  if (!lock_slab()) return nullptr;
  Stream* s = nullptr;
  if (g_free_streams != nullptr || add_chunk()) {
    s = g_free_streams;
    g_free_streams = s->next_free;
  }
  g_slab_lock.unlock();
  if (s == nullptr) return nullptr;
  reset_stream(s);
  set_state(s, state);
  return s;
}

int fd_of(Stream* s) {
  const int last = static_cast<int>(s->last_fd.load_relaxed());  // relaxed: checked against the table
  if (fd_table().names(last, s)) return last;
  for (int fd = 0; fd <= fd_table().highest(); ++fd) {
    if (fd_table().names(fd, s)) return fd;
  }
  return -1;
}

void enter_stream(int fd, Stream* stream) {
  stream->fds.fetch_add(1);
  stream->last_fd.store_relaxed(static_cast<std::uint32_t>(fd));  // relaxed: a hint
  if (fd_table().set_stream(fd, stream)) return;
  count_plain(fd < FdTable::kMaxFd ? Reason::kNoMemory : Reason::kLimit);
  free_stream(stream);
}

void make_plain(Stream* stream, Reason reason) {
  // kFresh: a socket not connected yet. What it will carry stays on TCP all the same.
  for (const State from : {State::kCandidate, State::kSettling, State::kFresh}) {
    auto expected = static_cast<std::uint32_t>(from);
    if (stream->state.compare_exchange(expected, static_cast<std::uint32_t>(State::kPlain))) return count_plain(stream, reason);
  }
}

bool note_full(Stream* s, std::uint64_t head) {
  constexpr std::uint64_t kStallNs = 500000000;
  const std::uint64_t now = now_ns();
  if (s->full_since_ns.load_relaxed() == 0 || s->full_head.load_relaxed() != head) {  // relaxed: hints about time
    s->full_head.store_relaxed(head);
    s->full_since_ns.store_relaxed(now);
    return false;
  }
  if (now - s->full_since_ns.load_relaxed() < kStallNs) return false;
  s->stalled.store_relaxed(1);
  return true;
}

std::uint64_t low_water(const Stream* s) {
  const std::uint64_t asked = s->low_water.load_relaxed();  // relaxed: an option
  const std::uint64_t most = s->capacity / 2;               // the producer is told of space at half a ring
  return asked <= 1 ? 1 : asked < most ? asked : most;
}

bool hold(int fd, Stream* s) {
  s->pins.fetch_add(1);  // SYNC: pins, before the look at table and state
  if (fd_table().names(fd, s)) return true;
  unpin(s);
  return false;
}

bool pin(int fd, Stream* s) {
  if (!hold(fd, s)) return false;
  const State state = state_of(s);
  if ((state == State::kOffered || state == State::kShared) && s->channel != nullptr) return true;
  unpin(s);
  return false;
}

void unpin(Stream* s) {
  if (s->pins.fetch_add(~std::uint32_t{0}) != 1 || s->after_pins.load_acquire() == 0) return;
  const ErrnoSaver keep;
  if (sections_here() != 0) {
    defer(s, kDeferredRelease);
  } else {
    finish(s);
  }
}

void release_stream(Stream* s, std::uint32_t what) {
  s->after_pins.fetch_or(what);  // SYNC: pins, before the look at them
  if (s->pins.load_acquire() == 0) finish(s);
}

void defer(Stream* s, Deferred what) {
  if (s->deferred.fetch_or(what) != 0) return;  // on the list already
  s->next_deferred = t_state.deferred;
  t_state.deferred = s;
  t_state.after.store_relaxed(1);  // relaxed: this thread's own
}

void run_deferred() {
  while (Stream* s = t_state.deferred) {
    t_state.deferred = s->next_deferred;
    const std::uint32_t what = s->deferred.exchange(0);
    if (what & kDeferredRefresh) refresh_members(s);
    if (what & kDeferredAnswer) answer_freeze(s);
    if (what & kDeferredEnd) {
      end_stream(-1, s);
    } else if (what & kDeferredRelease) {
      finish(s);
    }
  }
}

void became_shared(Stream* s) {
  auto expected = static_cast<std::uint32_t>(State::kOffered);
  if (!s->state.compare_exchange(expected, static_cast<std::uint32_t>(State::kShared))) return;
  process().counters.upgraded.fetch_add(1);
  s->pair->established = true;
  show_upgrade(s);
}

void account_ring_bytes(Stream* s) {
  const Gate gate;
  const std::uint64_t sent = s->core->producer.tail.load_relaxed();  // relaxed: a statistic
  const std::uint64_t received = s->core->consumer.head.load_relaxed();
  process().counters.ring_tx.fetch_add(sent - s->ring_tx_base);
  process().counters.ring_rx.fetch_add(received - s->ring_rx_base);
  s->ring_tx_base = sent;
  s->ring_rx_base = received;
}

void drop_number(int fd, Stream* s) {
  if (s->fds.fetch_add(~std::uint32_t{0}) != 1) return show_other_fd(fd, s);
  if (sections_here() != 0) {
    defer(s, kDeferredEnd);
  } else {
    end_stream(fd, s);
  }
}

void forget_fd(int fd) {
  FdTable& table = fd_table();
  if (fd < 0 || table.empty(fd)) return;
  if (Stream* s = table.stream(fd)) {
    if (table.take(fd, s)) drop_number(fd, s);
  } else if (EpollSet* set = table.epoll(fd)) {
    if (table.take(fd, set)) forget_epoll_fd(set, fd);
  } else if (table.hidden(fd)) {
    table.clear(fd);
  }
}

SpinLock& slab_lock() { return g_slab_lock; }

void account_all_streams() {
  for_each_stream([](Stream* s) {
    account_tcp_bytes(s);
    if (s->send_lock.held_by_this_thread() || s->receive_lock.held_by_this_thread()) return;  // exit from a handler
    const LockGuard send(s->send_lock);
    const LockGuard receive(s->receive_lock);
    if (s->channel != nullptr && state_of(s) != State::kClaimed) account_ring_bytes(s);
  });
}

void streams_before_fork() {
  for_each_stream([](Stream* s) {
    if (state_of(s) == State::kFresh) {
      s->forked.store_release(1);  // connect() will leave it on TCP
      return;
    }
    if (s->send_lock.held_by_this_thread() || s->receive_lock.held_by_this_thread()) return;
    // Both locks, so that no operation is half-way when the other process may start its own, and no upgrade: a claim that began before
    // this is over, none begins until the fork is (fork_under_way).
    s->send_lock.lock();
    s->receive_lock.lock();
    // An epoll instance is shared by parent and child, registrations and all: with one in it, nobody may change it.
    if (state_of(s) != State::kCandidate || s->members != nullptr || !add_holder(s)) make_plain(s, Reason::kForked);
    if (managed(state_of(s)) && s->channel != nullptr) {
      s->forked.store_release(1);  // SYNC: forked
      const Gate gate;
      s->core->holders.fetch_add(1);
    }
    s->receive_lock.unlock();
    s->send_lock.unlock();
  });
}

void streams_at_exit() {
  for_each_stream([](Stream* s) {
    drop_holder(s);
    const int fd = s->channel == nullptr ? -1 : fd_of(s);
    if (fd < 0 || !pin(fd, s)) return;
    if (let_go(s)) end_with_reset(fd, s);
    unpin(s);
  });
}

void streams_forked_child(bool prepared) {
  for_each_stream([prepared](Stream* s) {
    s->send_lock.reset();
    s->receive_lock.reset();
    s->members_lock.reset();
    s->step_lock.reset();
    s->pins.store_relaxed(0);  // the other threads are the parent's
    s->kernel_calls.store_relaxed(0);
    s->deferred.store_relaxed(0);
    close_hidden(s->rendezvous_fd);
    s->rendezvous_fd = -1;
    s->rendezvous_step = 0;
    s->tries = 0;
    s->next_try.store_relaxed(0);                 // relaxed: one thread here
    if (!prepared) s->holders = nullptr;          // the parent counted nobody
    s->tcp_tx_base = s->tcp_sent.load_relaxed();  // relaxed: one thread here
    s->tcp_rx_base = s->tcp_received.load_relaxed();
    if (s->holders == nullptr) make_plain(s, Reason::kForked);
    // A thread that is the parent's alone was at it.
    if (s->after_pins.load_relaxed() & kFinishing) s->after_pins.store_relaxed(s->fds.load_relaxed() != 0 ? kDropChannel : kDropChannel | kFreeStream);
    finish(s);
    if (s->channel == nullptr || !managed(state_of(s))) {
      s->owner_generation = process().generation.load_relaxed();  // relaxed: one thread here
      return;
    }
    s->forked.store_relaxed(1);  // by _Fork or clone no handler ran in the parent
    const Gate gate;
    s->ring_tx_base = s->core->producer.tail.load_relaxed();  // relaxed: a statistic
    s->ring_rx_base = s->core->consumer.head.load_relaxed();
  });
  sleepers_forked_child();
}

}  // namespace mpklink
