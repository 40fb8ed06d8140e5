// SPDX-License-Identifier: MIT
// When an upgrade step is due, and the ways out of an upgrade.
#include "preload/rendezvous.h"

#include "preload/epoll_set.h"
#include "preload/fd_table.h"
#include "preload/holders.h"
#include "preload/lifetime.h"
#include "preload/rendezvous_step.h"
#include "preload/status.h"

namespace mpklink {
namespace {

constexpr std::uint32_t kReturnsMax = 8;   // a stream that keeps coming back is not worth another ring
constexpr std::uint32_t kAgainAfter = 16;  // operations on TCP before the next upgrade, doubled each time

// What went over TCP while the stream was shared was added to the process's counters at once; from here on the stream keeps
// the whole count itself, as counters_agree compares it with the kernel's.
void take_over_counts(Atomic<std::uint64_t>* mine, const Atomic<std::uint64_t>& total, Atomic<std::uint64_t>* counter) {
  const std::uint64_t sum = total.load_relaxed();  // relaxed: both locks are held
  counter->fetch_add(mine->exchange(sum) - sum);
}

// Is the connection one for us, and which end are we?
void begin(int fd, Stream* s) {
  Addresses addresses;
  Reason reason = Reason::kPeerAbsent;  // it has closed already
  const bool connected = addresses_of(fd, &addresses);
  const bool ours = connected && eligible(s, addresses, &reason);
  if (connected && reason != Reason::kNotLocal) show_stream(fd, s, addresses);
  if (!ours) {
    give_up(s, reason);
    return;
  }
  s->server_port = server_port(s, addresses);
  const std::uint32_t operations = s->operations.load_relaxed();  // relaxed: a count
  if (process().settings.warmup_learns && operations < kLateOperations && connections_are_short(s->server_port)) {
    next_try_in(s, kLateOperations - operations);
  } else if (s->connector) {
    connector_meet(fd, s, addresses);
  } else {
    acceptor_listen(s, addresses);
  }
}

void take_step(int fd, Stream* s) {
  if (process().io_uring_seen.load_relaxed()) {  // relaxed: set once
    if (state_of(s) != State::kOffered) give_up(s, Reason::kIoUring);
    return;
  }
  const State state = state_of(s);
  if (state == State::kOffered) {
    connector_await(fd, s);
    return;
  }
  if (held_by_others(s)) {
    retry_or_give_up(s, Reason::kForked);
    return;
  }
  if (state != State::kCandidate && state != State::kSettling) return;
  switch (s->rendezvous_step) {
    case kBegin: begin(fd, s); break;
    case kMeet: connector_meet_again(fd, s); break;
    case kHello: connector_hello(s); [[fallthrough]];
    case kOffer:
      if (s->rendezvous_step == kOffer) connector_offer(fd, s);
      break;
    case kAccept: acceptor_accept(fd, s); break;
    case kTake: acceptor_take(fd, s); break;
    default: break;
  }
}

}  // namespace

void withdraw_offer(Stream* s, Reason reason) {
  s->send_lock.lock();
  s->receive_lock.lock();
  bool withdrawn = false;
  bool accepted = false;
  if (state_of(s) == State::kOffered) {
    const Gate gate;
    std::uint32_t expected = kOffered;
    accepted = !s->channel->accept_state.compare_exchange(expected, kWithdrawn) && expected == kAccepted;
    withdrawn = !accepted;  // also by a peer that wrote what is no answer
  }
  if (withdrawn) {
    detach_channel(s);
    count_plain(s, reason);
  }
  if (accepted) became_shared(s);
  s->receive_lock.unlock();
  s->send_lock.unlock();
  if (withdrawn) release_stream(s, kDropChannel);
  drop_socket(s);
}

void back_to_tcp(Stream* s) {
  const bool again = !s->stay_plain.load_relaxed() && !s->forked.load_relaxed() &&  // relaxed: both locks are held
                     ours(s) && s->returns < kReturnsMax;
  unmanage_members(s);
  if (again) {
    {
      const Gate gate;
      take_over_counts(&s->tcp_sent, s->core->send.tcp_sent, &process().counters.tcp_tx);
      take_over_counts(&s->tcp_received, s->core->receive.tcp_received, &process().counters.tcp_rx);
    }
    s->rendezvous_step = kBegin;
    s->tries = 0;
    next_try_in(s, kAgainAfter << s->returns++);
  } else if (!s->stay_plain.load_relaxed()) {  // relaxed: as above
    count_plain(s, Reason::kReturned);
  }
  s->state.exchange(static_cast<std::uint32_t>(again ? State::kCandidate : State::kPlain));  // SYNC: pins
  show_state(s);
}

void before_rearm(int fd, Stream* s, const EpollMember* member) {
  const State state = state_of(s);
  if (state != State::kCandidate && state != State::kSettling) return;
  if (sections_here() != 0 || in_foreign_child() || !s->step_lock.try_lock()) return;
  const ErrnoSaver keep;
  s->rearming = member;
  if (fd_table().names(fd, s) && (s->rendezvous_step == kOffer || s->rendezvous_step == kTake)) take_step(fd, s);
  s->rearming = nullptr;
  s->step_lock.unlock();
}

void after_operation(int fd, Stream* s) {
  const State state = state_of(s);
  if (state == State::kPlain || state == State::kShared) return;
  const std::uint32_t operations = s->operations.fetch_add(1) + 1;
  std::uint32_t due = s->next_try.load_relaxed();  // relaxed: a count
  if (due == 0) due = process().settings.warmup + (s->connector ? 2 : 1);
  if (operations < due) return;
  const ErrnoSaver keep;
  if (sections_here() != 0 || in_foreign_child()) return;  // in a handler that interrupted us: later
  if (!s->step_lock.try_lock()) return;
  if (fd_table().names(fd, s)) take_step(fd, s);
  s->step_lock.unlock();
}

}  // namespace mpklink
