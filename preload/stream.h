// SPDX-License-Identifier: MIT
// One TCP socket as this process sees it: one object per open file description.
#pragma once
#include <cstdint>

#include "preload/process.h"
#include "preload/spin.h"
#include "shm/handover.h"
#include "shm/ring.h"

namespace mpklink {

struct Pair;
struct EpollMember;
struct StatusRow;

enum class State : std::uint32_t {
  kFree,
  kFresh,      // made by socket(); not connected as far as we know
  kCandidate,  // connected; the kernel carries it, operations are counted
  kPlain,      // TCP for ever
  // From here on no thread of this process begins a kernel data call on the socket that may block ("managed").
  kSettling,   // an upgrade step waits until those begun before have returned
  kClaimed,    // one thread is taking an upgrade step; it holds both locks
  kOffered,    // connector: the channel is with the peer
  kShared,     // accepted: each direction switches when its sender likes
};

inline bool managed(State s) { return s >= State::kSettling; }

// What a forked child shares with its parent and the peer must not see or touch: a page of its own in front of the
// channel, MAP_SHARED | MAP_ANONYMOUS, so that both processes move the same indices, as they do in the kernel.
struct StreamCore {
  SendState send;
  ReceiveState receive;
  ProducerState producer;
  ConsumerState consumer;
  Atomic<std::uint32_t> send_owner;     // thread id; taken besides the private lock once the stream is forked
  Atomic<std::uint32_t> receive_owner;
  Atomic<std::uint32_t> holders;        // processes that have the stream; one that was killed is never taken off
  Atomic<std::uint32_t> uncounted;      // Uncounted
  Atomic<std::uint32_t> shut_begun, shut_done;  // Shut: what shutdown(2), of any process, is about to do, and what it did
};
static_assert(sizeof(StreamCore) <= kPage);

constexpr std::uint64_t kToldLie = ~std::uint64_t{0};  // Stream::told: the tail was impossible

// What the kernel has told us of the TCP connection, kept because edge-triggered news come once.
enum Sticky : std::uint32_t {
  kStickyIn = 1,      // an edge said readable: ask the kernel when the ring is empty (FIN, error, bytes after the ring)
  kStickyRdhup = 2,   // FIN received
  kStickyHup = 4,
  kStickyErr = 8,
};

// Who takes bytes out of the kernel past our count of them, in any of the processes that have the stream.
enum Uncounted : std::uint32_t {
  kByPasser = 1,  // stdio, splice, aio, io_uring; a process that has left the channel and reads the socket as an ordinary one
  kByOthers = 2,  // programs without us, or with a library of their own: the stream's end is theirs, too
};

enum Shut : std::uint32_t { kShutRead = 1, kShutWrite = 2, kShutBoth = 3 };

struct Stream {
  Atomic<std::uint32_t> state;  // State
  SpinLock send_lock;           // order: send_lock before receive_lock
  SpinLock receive_lock;

  // Valid while managed with a channel; changed only under both locks.
  StreamCore* core;
  ChannelHeader* channel;
  std::uint64_t capacity;
  Pair* pair;
  std::uint32_t slot;
  std::uint32_t side;  // ours: 0 connector, 1 acceptor
  Hint<std::uint32_t> owner_generation;  // process().generation of the process that upgraded it

  Atomic<std::uint32_t> forked;        // another process has it too
  Atomic<std::uint32_t> nonblocking;   // O_NONBLOCK, followed through fcntl and ioctl
  Atomic<std::uint32_t> low_water;     // SO_RCVLOWAT; 0 is 1
  Atomic<std::uint32_t> inq;           // TCP_INQ: recvmsg tells how much is left
  Atomic<std::uint32_t> zero_copy;     // SO_ZEROCOPY: MSG_ZEROCOPY is more than a wish
  Atomic<std::uint64_t> receive_timeout_ns, send_timeout_ns;  // SO_RCVTIMEO, SO_SNDTIMEO; 0 = none
  Atomic<std::uint32_t> sticky;        // Sticky
  Atomic<std::uint32_t> pending_error;  // errno to report once
  Atomic<std::uint32_t> send_over_tcp;  // the peer will not read the ring again, or we shut down: TCP answers
  Atomic<std::uint32_t> bells_lost;     // a poller of the peer cannot be rung: the ring has to end
  Atomic<std::uint64_t> told;           // how far into the incoming ring there was something to read, as a look for the program said
  Atomic<std::uint32_t> poisoned;       // the peer lied in shared memory: every operation is ECONNRESET
  Atomic<std::uint32_t> stay_plain;     // once off the ring, for ever
  Hint<std::uint32_t> refusals;         // sends that found too little room for them: more of it is an edge
  Atomic<std::uint64_t> full_head, full_since_ns;  // the ring was found full with its head there, since then
  Atomic<std::uint32_t> stalled;        // … for so long that the stream goes back to TCP, whose buffers hold more
  Atomic<std::uint32_t> answered;       // what the peer's look_back asked for was done
  Atomic<std::uint32_t> revoke_noted;   // counted
  Atomic<std::uint32_t> shut;           // Shut: what our own shutdown(2) did
  Atomic<std::uint32_t> ended;          // … and the program has been told the end of what it could still read
  Atomic<std::uint32_t> end_reported;   // the reset a dead peer's unread ring stands for has been told
  Hint<bool> late;                     // bytes on their way were waited for in vain
  Atomic<std::uint32_t> empty_reads;   // non-blocking reads that found nothing since the kernel was last asked
  Atomic<std::uint32_t> sends_after_fin;
  Atomic<std::uint64_t> patience_ns;   // how long to sleep on TCP alone before looking again
  SpinHistory spin;                    // waits for data

  // Before the upgrade.
  bool connector;
  Atomic<std::uint32_t> operations;    // that moved bytes
  Hint<std::uint16_t> server_port;     // 0: not known yet
  Atomic<std::uint32_t> kernel_calls;  // threads inside (or about to enter) a kernel call on it that may block
  Atomic<std::uint64_t> tcp_sent, tcp_received;
  Atomic<std::uint32_t>* holders;      // processes that have it (preload/holders.h); null: only this one ever had
  SpinLock step_lock;                  // one thread takes its upgrade step; whoever finds it taken passes on
  Atomic<std::uint32_t> next_try;      // operation number of the next upgrade step
  std::uint32_t tries;
  std::uint32_t returns;               // how often it came back from a ring
  std::uint32_t absences;              // how often it was tried in vain
  Hint<std::uint32_t> refused;         // Reason + 1 for which somebody who came was sent away
  std::uint64_t first_try_ns;
  Hint<bool> last_was_in;              // the last operation received
  Hint<std::uint32_t> turns;           // answers received; a lost count is a later end of trying
  std::uint32_t first_turns;           // as of the first try
  int rendezvous_fd;                   // the Unix socket of the step in hand, or -1
  std::uint8_t rendezvous_step;        // RendezvousStep
  ProcessId peer_id;
  std::uint32_t peer_uid, peer_pid;    // as SO_PEERCRED shows
  const EpollMember* rearming;         // the registration that the EPOLL_CTL_MOD in hand is re-arming; under step_lock

  Atomic<std::uint32_t> pins;          // threads that use the object without a lock; channel and slot stay for them
  Atomic<std::uint32_t> after_pins;    // AfterPins: what the last of them has to do
  Atomic<std::uint32_t> sleepers;      // threads asleep in a receive or send (preload/sleepers.h)
  Atomic<std::uint32_t> stand_in;      // fd + 1 that those whose number was closed go on with
  Atomic<std::uint32_t> deferred;      // Deferred: what a signal handler has put off
  Stream* next_deferred;
  Atomic<std::uint32_t> fds;           // descriptors of this process that name it
  Atomic<std::uint32_t> last_fd;       // the one entered last; perhaps not its any more
  SpinLock members_lock;
  Hint<EpollMember*> members;          // its registrations in epoll sets; under members_lock
  std::uint32_t index;                 // in the slab, and of its row
  Atomic<StatusRow*> row;              // where tools see it (preload/status.h); never null
  Hint<std::uint32_t> ports;           // local << 16 | peer; 0: not known yet
  Hint<std::uint32_t> why;             // Reason + 1 why it is plain or came back last; 0: none of ours
  Atomic<std::uint32_t> told_to_tap;   // ends and resets (preload/tap.h)
  Hint<std::uint32_t> held_up;         // operations that found its ring not empty since it was switched off
  std::uint64_t tcp_tx_base, tcp_rx_base;    // what TCP had carried when this process came to it, or counted last
  std::uint64_t ring_tx_base, ring_rx_base;  // what the ring had carried when this process came to it (fork)
  Stream* next_free;
};

// False: bytes were taken out of the kernel, perhaps, that not_received() has not counted. Gate open, a lock or pin held.
bool all_counted(const Stream* s);
// The last that has the stream ends: bytes are unread of which the kernel does not know. A lock or pin held.
bool ends_unread(int fd, Stream* s);
// Bytes of the incoming ring that this end has not got: of a frozen one, what came neither over TCP nor by rescue (receive.cc). A ring
// whose indices are impossible counts as one byte. Gate open, a lock or pin held.
std::uint64_t not_received(Stream* s);
// Whether no other process has it (any more). Gate closed, the channel kept.
bool alone(Stream* s);
// Whether this process upgraded it. A forked child that uses what it inherited keeps off the board, whose words are its parent's.
inline bool ours(const Stream* s) { return s->owner_generation == process().generation.load_relaxed(); }  // relaxed: changes by fork only

Stream* make_stream(State state);  // null: limit reached or no memory
void enter_stream(int fd, Stream* stream);  // names it by fd; drops it when the table is full
int fd_of(Stream* s);                       // a descriptor of this process that names it, or -1
// Nobody came: or somebody did, who was refused.
inline Reason reason_of_absence(const Stream* s, Reason otherwise) {
  return s->refused == 0 ? otherwise : static_cast<Reason>(s->refused - 1);
}
inline State state_of(const Stream* s) { return static_cast<State>(s->state.load_acquire()); }

// The stream stays on TCP, with the reason counted (once). For streams that are not managed.
void make_plain(Stream* stream, Reason reason);
void count_plain(Reason reason);
void count_plain(Stream* s, Reason reason);  // and tells tools

// The descriptor is gone (closed, overwritten, or found to be something else). The last one ends the stream.
void forget_fd(int fd);
void drop_number(int fd, Stream* s);  // the same, of a stream's number that is out of the table already

// The ring is full and its consumer is at `head`. True: it has not moved for long. A program may rely on TCP's buffers, which hold
// megabytes: one that writes all before it, or its peer, reads would wait for ever on a ring.
bool note_full(Stream* s, std::uint64_t head);
// How many bytes make the ring readable: SO_RCVLOWAT, but never more than fit.
std::uint64_t low_water(const Stream* s);
inline Direction& outgoing(Stream* s) { return s->channel->direction[s->side]; }
inline Direction& incoming(Stream* s) { return s->channel->direction[1 - s->side]; }
inline unsigned char* ring_of(Stream* s, std::uint32_t side) {
  return reinterpret_cast<unsigned char*>(s->channel) + ring_offset(s->capacity, side);
}
inline RingProducer producer_of(Stream* s) {
  Direction& out = outgoing(s);
  return {&out.producer, &out.consumer, &s->core->producer, ring_of(s, s->side), s->capacity};
}
inline RingConsumer consumer_of(Stream* s) {
  Direction& in = incoming(s);
  return {&in.consumer, &in.producer, &s->core->consumer, ring_of(s, 1 - s->side), s->capacity};
}

// Keeps the channel mapped and the slot this stream's while a thread uses them outside of the locks (spinning, asleep,
// poll). Whoever closes meanwhile does not wait: the last one to let go cleans up. False: `fd` names no stream with a channel.
bool pin(int fd, Stream* s);
// The same for a stream without a channel: a kernel call on it. False: `fd` names another stream by now.
bool hold(int fd, Stream* s);
void unpin(Stream* s);

// The peer has accepted: each direction may switch. Counted once.
void became_shared(Stream* s);

enum AfterPins : std::uint32_t { kDropChannel = 1, kFreeStream = 2, kFinishing = 4 };
// The stream no longer uses its channel (its state is kPlain): unmaps it, and with kFreeStream ends it, now or when the last
// pin goes. Outside of the stream's locks.
void release_stream(Stream* stream, std::uint32_t what);

enum Deferred : std::uint32_t { kDeferredEnd = 1, kDeferredRelease = 2, kDeferredRefresh = 4, kDeferredAnswer = 8 };
void defer(Stream* stream, Deferred what);
void run_deferred();
void account_ring_bytes(Stream* stream);  // adds what this process moved to the counters

template <class Visit>
void for_each_stream(Visit visit);

// --- the slab, for the loops over all streams (fork, exit)
constexpr std::uint32_t kStreamChunk = 256;
constexpr std::uint32_t kStreamChunks = 256;
extern Atomic<Stream*> g_stream_chunks[kStreamChunks];

template <class Visit>
void for_each_stream(Visit visit) {
  for (const Atomic<Stream*>& word : g_stream_chunks) {
    Stream* const chunk = word.load_acquire();  // SYNC: streams made
    if (chunk == nullptr) return;
    for (std::uint32_t i = 0; i < kStreamChunk; ++i) {
      if (state_of(&chunk[i]) != State::kFree) visit(&chunk[i]);
    }
  }
}

SpinLock& slab_lock();
void account_all_streams();  // at exit
void streams_before_fork();
// `prepared`: streams_before_fork ran in the parent (it does not for _Fork and clone).
void streams_forked_child(bool prepared);
void streams_at_exit();  // this process holds none of them any longer

}  // namespace mpklink
