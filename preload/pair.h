// SPDX-License-Identifier: MIT
// This process and one peer process: the board they share, the control channel that carries bells, the peer's bells.
#pragma once
#include <cstdint>

#include "preload/process.h"
#include "preload/stream.h"
#include "shm/ready.h"

namespace mpklink {

struct Pair {
  Hint<bool> used;
  std::uint32_t side;   // ours on the board
  std::uint32_t index;  // in the table of pairs
  std::uint32_t generation;  // process().generation of its maker: a forked child must not use its control channel
  ProcessId peer;
  std::uint32_t peer_uid, peer_pid;  // as SO_PEERCRED shows: an id is only a word of the peer
  ProcessId nonce;      // names the pair to its two processes and to nobody else
  Board* board;
  Hint<int> control_fd;
  Hint<bool> established;  // the peer has accepted a stream on it; under pairs_lock to act on it
  std::uint32_t streams;
  std::uint64_t made_ns;  // as now_ns()
  SpinLock lock;        // control channel, bell tables
  Atomic<std::uint64_t> slots_taken[kSlots / 64];  // side 0 hands them out
  Atomic<std::uintptr_t> stream_of_slot[kSlots];
  Atomic<std::uint32_t> peer_bell[kPollers];       // fd + 1
  std::uint64_t bell_sent[kPollers / 64];          // our pollers whose bell the peer has
  std::uint32_t bells_kept;
  std::uint32_t nonsense;                          // messages on the control channel that brought no bell
  bool trusted;                                    // could_stop_us
  bool offering;                                   // new: bells go with the offer, which opens the control channel
  std::uint32_t offer_bell_count;
  std::uint32_t offer_bells[8];
};

constexpr std::uint32_t kPairsMax = 1024;
constexpr std::uint32_t kPeerBellsMax = 512;      // descriptors one peer may park with us
constexpr std::uint32_t kAllPeerBellsMax = 4096;  // … and all of them
constexpr std::uint32_t kNonsenseMax = 64;        // messages without a bell, after which a control channel is read no more

// All of these under pairs_lock().
SpinLock& pairs_lock();
// The pair with the process at the other end of `s`, which says that its id is `peer`. nonce null: any, an established one first.
Pair* find_pair(const Stream* s, const ProcessId& peer, std::uint32_t side, const ProcessId* nonce);
Pair* make_pair(const Stream* s, const ProcessId& peer, std::uint32_t side, Board* board);  // null: limit or no memory
void release_pair(Pair* pair);   // one stream less; the last one lets the pair be collected when the peer is gone
void collect_pairs();            // frees the pairs without streams whose peer is gone
void destroy_pair(Pair* pair);
void forget_peer_bells(Pair* pair);
Pair* pair_at(std::uint32_t index);

bool peer_gone(const Pair* pair);  // its process has ended, as the control channel shows

// The other end of an upgraded stream when it is in this very process; null otherwise.
Stream* twin_stream(const Stream* s);

int take_slot(Pair* pair, Stream* stream);  // -1: none free
void give_slot(Pair* pair, const Stream* stream, bool keep);  // keep: the number is not given to another stream

// The peer's bell of poller `id`, fetched from the control channel when it is new; -1: it cannot be had.
int peer_bell(Pair* pair, std::uint32_t id);
bool keep_peer_bell(Pair* pair, std::uint32_t id, int fd);  // takes the descriptor over; false: it is of no use
// Makes sure the peer has the bell of our poller before the poller's number is published. False: it cannot be sent.
// *fresh (when not null): it was sent just now. A peer that cannot take it (EMFILE) leaves the ring with its next message;
// one that was between its look at the waiters and its publish is covered by the sleeper, which does not sleep long at once.
bool send_bell(Pair* pair, std::uint32_t id, int bell_fd, bool* fresh = nullptr);
// Whether all pollers that wait for the stream at the peer can be rung, without asking the control channel. Gate open.
bool bells_at_hand(Stream* s);
// The same, having asked it. Gate closed, send lock held.
bool fetch_bells(Stream* s);

// Before a fork: takes in the bells that have arrived. A child cannot: it may have to wake somebody all the same.
void pairs_before_fork();
void pairs_forked_child();

// The pollers of the peer to wake after a publish: collected inside the gate, rung outside of it while the stream's lock
// still keeps the pair alive (writing to an eventfd does not block).
class Wakeups {
 public:
  // Gate open. Behind a full fence (RingProducer::publish, RingConsumer::publish).
  void collect(Stream* s);
  void ring();

 private:
  Pair* pair_ = nullptr;
  std::uint32_t count_ = 0;
  std::uint32_t ids_[kWaitersMax] = {};
};

}  // namespace mpklink
