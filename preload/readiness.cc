// SPDX-License-Identifier: MIT
#include "preload/readiness.h"

#include <sys/epoll.h>

#include "preload/fd_table.h"

namespace mpklink {
namespace {

constexpr std::uint32_t kReads = EPOLLIN | EPOLLRDNORM;
constexpr std::uint32_t kWrites = EPOLLOUT | EPOLLWRNORM;

// As tcp_poll (net/ipv4/tcp.c): HUP means that both directions are shut, and then both are "ready".
std::uint32_t sticky_events(std::uint32_t sticky) {
  std::uint32_t events = 0;
  if (sticky & kStickyRdhup) events |= kReads | EPOLLRDHUP;
  if (sticky & (kStickyHup | kStickyErr)) events |= kReads | kWrites;
  if (sticky & kStickyHup) events |= EPOLLHUP | EPOLLRDHUP;
  return events;
}

Path path_of(const Atomic<std::uint32_t>& word) { return static_cast<Path>(word.load_relaxed()); }  // relaxed: a look

// SO_RCVLOWAT at the switch: the bytes are there, some of them still in TCP, which alone has too few. Bytes in the ring say that
// all of TCP's have been sent. A peer that lies here makes us ready too early, no more.
bool enough_in_both(Stream* s) {
  if (s->channel == nullptr || low_water(s) <= 1 || path_of(s->core->receive.path) != Path::kTcp) return false;
  const std::uint64_t at = incoming(s).producer.switch_at.load_acquire();  // SYNC: switch_at
  RingConsumer consumer = consumer_of(s);
  if (at == 0 || consumer.frozen() || !consumer.refresh() || consumer.available() == 0) return false;
  return at - 1 - s->core->receive.tcp_received.load_relaxed() + consumer.available() >= low_water(s);  // relaxed: a look
}

void look_at_input(Stream* s, Readiness* r) {
  if (s->channel == nullptr || path_of(s->core->receive.path) != Path::kRing) {
    r->ask_kernel |= EPOLLIN;
    if (enough_in_both(s)) r->events |= kReads;
    return;
  }
  RingConsumer consumer = consumer_of(s);
  if (consumer.frozen()) {
    r->ask_kernel |= EPOLLIN;
    return;
  }
  // A lie is reported as an error by the read that the program will do now, also when it has been taken back by then. No lock is held here:
  // an impossible tail may be that of another moment than our head.
  const bool sound = consumer.refresh();
  if (!sound || consumer.available() >= low_water(s)) {
    r->events |= kReads;
    if (sound || !consumer.overtaken()) s->told.store_release(sound ? consumer.end() : kToldLie);
  } else if ((s->sticky.load_relaxed() & kStickyIn) != 0) {  // relaxed: a look
    r->ask_kernel |= EPOLLIN;
  }
}

void look_at_output(Stream* s, Readiness* r) {
  const bool ring = s->channel != nullptr && path_of(s->core->send.path) == Path::kRing;
  if (!ring || s->send_over_tcp.load_relaxed()) {  // relaxed: a look
    r->ask_kernel |= EPOLLOUT;
    return;
  }
  RingProducer producer = producer_of(s);
  bool corrupt = !producer.refresh();
  if (producer.frozen()) {
    r->give_back = true;
    r->ask_kernel |= EPOLLOUT;
    return;
  }
  const std::uint32_t end = outgoing(s).consumer.closed.load_relaxed();  // relaxed: behind the acquire in refresh
  const bool closed = end == kShut || end == kClosed;                    // nothing else makes a send go on
  if (corrupt || closed || producer.writable() || producer.wish_space(&corrupt) || corrupt) {
    r->events |= kWrites;
  } else if (note_full(s, producer.head())) {
    r->give_back = true;
    r->ask_kernel |= EPOLLOUT;
  }
}

}  // namespace

Readiness ring_readiness(Stream* s, std::uint32_t interest) {
  Readiness r;
  if (interest & (kReads | EPOLLRDHUP)) look_at_input(s, &r);
  if (interest & kWrites) look_at_output(s, &r);
  if (s->channel != nullptr) {
    const bool asked = incoming(s).producer.look_back.load_relaxed() != 0 && !s->answered.load_relaxed();  // relaxed: hints
    r.give_back = r.give_back || asked || path_of(s->core->send.path) == Path::kReturning;
  }
  const std::uint32_t sticky = s->sticky.load_relaxed();  // relaxed: set before this thread was sent to look
  r.events |= sticky_events(sticky);
  // The error has been told by now, perhaps: by any call on the socket.
  if (sticky & kStickyErr) r.ask_kernel |= EPOLLERR;
  const bool own_error = s->pending_error.load_relaxed() != 0 || s->poisoned.load_relaxed() != 0;  // relaxed: a look
  if (own_error) r.events |= EPOLLERR | kReads | kWrites;
  return r;
}

std::uint32_t kernel_readiness(Stream* s, int fd, std::uint32_t ask) {
  pollfd p = {fd, static_cast<short>(POLLRDHUP | (ask & EPOLLIN ? POLLIN : 0) | (ask & EPOLLOUT ? POLLOUT : 0)), 0};
  const ErrnoSaver keep;
  const int n = quiet().poll(&p, 1, 0);
  auto revents = n <= 0 ? 0u : static_cast<std::uint32_t>(static_cast<unsigned short>(p.revents));
  // Not readable now: the edge we remember was for bytes that have been taken. A later one will be told anew.
  if ((ask & EPOLLIN) && !(revents & EPOLLIN)) s->sticky.fetch_and(~std::uint32_t{kStickyIn});
  if ((ask & EPOLLERR) && !(revents & EPOLLERR)) s->sticky.fetch_and(~std::uint32_t{kStickyErr});
  if (revents & EPOLLIN) revents |= EPOLLRDNORM;  // TCP knows no difference
  if (revents & EPOLLOUT) revents |= EPOLLWRNORM;
  // Closed meanwhile: the number may be another file's, and its news.
  if (fd_table().names(fd, s)) note_kernel_events(s, revents & (EPOLLRDHUP | EPOLLHUP | EPOLLERR));
  return revents;
}

void note_kernel_events(Stream* s, std::uint32_t events) {
  std::uint32_t sticky = 0;
  if (events & EPOLLIN) sticky |= kStickyIn;
  if (events & EPOLLRDHUP) sticky |= kStickyRdhup;
  if (events & EPOLLHUP) sticky |= kStickyHup;
  if (events & EPOLLERR) sticky |= kStickyErr;
  if ((s->sticky.load_relaxed() & sticky) != sticky) s->sticky.fetch_or(sticky);  // relaxed: the or decides
}

}  // namespace mpklink
