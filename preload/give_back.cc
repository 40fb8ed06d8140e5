// SPDX-License-Identifier: MIT
#include "preload/give_back.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#include "preload/log.h"
#include "preload/patience.h"
#include "preload/revoke.h"
#include "preload/status.h"
#include "preload/transfer_lock.h"
#include "preload/transfer_step.h"
#include "shm/stop_point.h"

namespace mpklink {
namespace {

constexpr std::size_t kChunk = 8192;  // on the stack: programs run us on small ones
constexpr int kRoundMs = 10;
constexpr int kRounds = 100;

struct Chunk {
  bool lied = false;
  bool any = false;
  std::size_t size = 0;
  std::uint64_t tail = 0;
  unsigned char bytes[kChunk];
};

// What comes next, copied out. One gate.
void next_chunk(Stream* s, Chunk* c) {
  const Gate gate;
  SendState& state = s->core->send;
  RingProducer producer = producer_of(s);
  if (stop_at_shut_peer(&state, outgoing(s))) return;
  c->lied = !producer.refresh() || !producer.frozen();
  c->any = !c->lied && begin_return(&state, &outgoing(s).producer, producer.head(), producer.used());
  if (!c->any) return;
  c->tail = s->core->producer.tail.load_relaxed();  // relaxed: under the send lock
  c->size = producer.read_back(state.return_at.load_relaxed(), c->bytes, kChunk);
}

// The first `n` bytes went.
void advance(Stream* s, const Chunk& c, std::size_t n, int flags) {
  const Gate gate;
  gave_back(&s->core->send, &outgoing(s).producer, n, c.tail, (flags & MSG_MORE) != 0);
  tcp_sent(&s->core->send, n);
}

// TCP takes nothing more. Not `returned`: a peer that is ours finds the rest in the ring.
void stop_returning(Stream* s) {
  const Gate gate;
  s->core->send.path.store_relaxed(static_cast<std::uint32_t>(Path::kTcpAgain));  // relaxed: under the send lock
}

// Room for a whole ring, so that it fits even where the program asked for a small buffer.
void make_room(int fd, const Stream* s) {
  int size = 0;
  socklen_t length = sizeof size;
  if (real().getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, &length) != 0) return;
  const int more = size + static_cast<int>(s->capacity);
  real().setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &more, sizeof more);
}

// `lock` makes a TransferLock: the stream may have left the table already.
template <class Lock>
bool give_back_patiently(int fd, Stream* s, Lock lock) {
  for (int round = 0; round < kRounds; ++round) {
    {
      const auto held = lock();
      if (!held.held() || s->core == nullptr || give_back(fd, s)) return true;
    }
    if (round == 0) {
      make_room(fd, s);
      continue;
    }
    if (!patience_left()) break;
    pollfd p = {fd, POLLOUT, 0};
    quiet().poll(&p, 1, kRoundMs);
    if (round == kRounds - 1) patience_lost(kRounds * kRoundMs * std::uint64_t{1000000});
  }
  log(LogLevel::kError, FMT_COMPILE("fd {}: the peer does not take the bytes that go back to TCP"), fd);
  return false;
}

}  // namespace

bool give_back(int fd, Stream* s, int flags) {
  const ErrnoSaver keep;
  note_revoked(s);
  bool made_room = false;
  for (;;) {
    Chunk c;
    next_chunk(s, &c);
    if (c.lied) poison(fd, s);
    if (!c.any) return true;
    STOP_POINT("chunk-copied");
    const ssize_t n = quiet().send(fd, c.bytes, c.size, MSG_DONTWAIT | MSG_NOSIGNAL | flags);
    if (n < 0 && errno == EAGAIN) {
      // All of it now, where it can be: whoever was told of these bytes does not wait for our next operation.
      if (made_room) return false;
      make_room(fd, s);
      made_room = true;
      continue;
    }
    if (n < 0) {
      if (errno != EPIPE) s->pending_error.store_release(static_cast<std::uint32_t>(errno));
      stop_returning(s);
      return true;
    }
    STOP_POINT("chunk-sent");
    process().counters.tcp_tx.fetch_add(static_cast<std::uint64_t>(n));
    // The ring has not carried them after all; a forked child gives back what its parent counts.
    if (ours(s)) process().counters.ring_tx.fetch_add(~static_cast<std::uint64_t>(n) + 1);
    show_tcp_sent(s, static_cast<std::uint64_t>(n));
    process().counters.ring_returned.fetch_add(static_cast<std::uint64_t>(n));
    advance(s, c, static_cast<std::size_t>(n), flags);
    STOP_POINT("chunk-counted");
  }
}

namespace {

// Freezes a ring with unread bytes in it; *own: nobody had asked for it. True: there are bytes to give back. Send lock held.
bool freeze_unread(Stream* s, bool* own) {
  const Gate gate;
  const auto path = static_cast<Path>(s->core->send.path.load_relaxed());  // relaxed: under the send lock
  if (path != Path::kRing) return path == Path::kReturning;
  RingProducer producer = producer_of(s);
  if (!producer.refresh() || producer.used() == 0 || outgoing(s).consumer.closed.load_acquire() != 0) return false;  // SYNC: closed
  *own = !producer.frozen();
  freeze(&outgoing(s).consumer);
  return true;
}

}  // namespace

void leave_to_kernel(int fd, Stream* s, TransferLock::When when, int flags) {
  constexpr int kTries = 2;  // the second one with more room
  bool own = false;
  for (int i = 1; i <= kTries; ++i) {
    const TransferLock lock(fd, s, TransferLock::kSend, when);
    if (!lock.held() || s->core == nullptr) return;
    if (s->forked.load_relaxed() || s->send_over_tcp.load_relaxed()) return;  // relaxed: another process sends; TCP takes no more
    if (!freeze_unread(s, &own) || give_back(fd, s, flags)) return;
    make_room(fd, s);
    // Behind a FIN nothing can follow. At the last close a peer that asked for its bytes is waited for (give_back_at_end).
    if (i == kTries && (own || when == TransferLock::kInUse)) stop_returning(s);
  }
}

void returned_with_fin(int fd, Stream* s) {
  const TransferLock lock(fd, s, TransferLock::kSend);
  if (!lock.held() || s->core == nullptr) return;
  const Gate gate;
  returned_with_fin(s->core->send, &outgoing(s).producer, s->core->producer.tail.load_relaxed());  // relaxed: under the send lock
}

bool give_back_all(int fd, Stream* s) {
  return give_back_patiently(fd, s, [&] { return TransferLock(fd, s, TransferLock::kSend); });
}

void give_back_at_end(int fd, Stream* s) {
  if (fd < 0 || s->core == nullptr) return;
  {
    const Gate gate;
    const auto path = static_cast<Path>(s->core->send.path.load_relaxed());  // relaxed: nobody sends any more
    const bool frozen = (outgoing(s).consumer.head.load_acquire() & kFrozenBit) != 0;  // SYNC: frozen
    if (!frozen || path == Path::kTcpAgain) return;
  }
  if (give_back_patiently(fd, s, [&] { return TransferLock(fd, s, TransferLock::kSend, TransferLock::kEnding); })) return;
  const linger reset = {1, 0};  // an end that looks like one would hide the loss
  real().setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
}

}  // namespace mpklink
