// SPDX-License-Identifier: MIT
// Lies in shared memory: every word of the channel and of the board, ours and the victim's, set to random and boundary values and in a race
// with the victim, while it works.
#include <sched.h>

#include "hostile.h"

namespace hostile {
namespace {

struct Word {
  void* at;
  unsigned bytes;

  std::uint64_t get() const {
    return bytes == 8 ? static_cast<Atomic<std::uint64_t>*>(at)->load_relaxed() : static_cast<Atomic<std::uint32_t>*>(at)->load_relaxed();
  }
  void set(std::uint64_t value) const {
    if (bytes == 8) {
      static_cast<Atomic<std::uint64_t>*>(at)->store_relaxed(value);
    } else {
      static_cast<Atomic<std::uint32_t>*>(at)->store_relaxed(static_cast<std::uint32_t>(value));
    }
  }
};

template <class T>
Word word(T* at) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  return {at, sizeof(T)};
}

// Board words are many: one of them at random.
Word board_word(Attack* a, Peer* p, unsigned kind) {
  BoardSide& side = p->board->side[a->below(2)];
  const auto poller = static_cast<std::uint32_t>(a->below(4));
  switch (kind) {
    case 0: return word(&p->board->header.magic);
    case 1: return word(&p->board->header.version);
    case 2: return word(&side.cpu);
    case 3: return word(&side.armed[a->below(8) == 0 ? a->below(kPollers) : poller + (a->below(2) != 0 ? kBitmapPollers : 0)].armed);
    case 4: return word(&side.ready[poller].summary[a->below(kSummaryWords)]);
    default: return word(&side.ready[poller].leaf[a->below(kLeafWords)]);
  }
}

enum : unsigned {
  kMagic, kVersion, kSlot, kCapacity, kAcceptState, kWaitersOurs, kWaitersTheirs,
  kOutTail, kOutBase, kOutSwitchAt, kOutWantSpace, kOutReturned, kOutLookBack, kOutHead, kOutClosed,
  kInTail, kInBase, kInSwitchAt, kInWantSpace, kInReturned, kInLookBack, kInHead, kInClosed,
  kBoardMagic_, kBoardVersion, kCpu, kArmed, kSummary, kLeaf,
  kWords,
};

Word direction_word(Direction* d, unsigned which) {
  switch (which) {
    case 0: return word(&d->producer.tail);
    case 1: return word(&d->producer.base);
    case 2: return word(&d->producer.switch_at);
    case 3: return word(&d->producer.want_space);
    case 4: return word(&d->producer.returned);
    case 5: return word(&d->producer.look_back);
    case 6: return word(&d->consumer.head);
    default: return word(&d->consumer.closed);
  }
}

Word find_word(Attack* a, Peer* p, unsigned which) {
  switch (which) {
    case kMagic: return word(&p->channel->magic);
    case kVersion: return word(&p->channel->version);
    case kSlot: return word(&p->channel->slot);
    case kCapacity: return word(&p->channel->ring_capacity);
    case kAcceptState: return word(&p->channel->accept_state);
    case kWaitersOurs: return word(&p->channel->waiters[p->side].ids);
    case kWaitersTheirs: return word(&p->channel->waiters[1 - p->side].ids);
    default: break;
  }
  if (which >= kBoardMagic_) return board_word(a, p, which - kBoardMagic_);
  return which >= kInTail ? direction_word(&p->in(), which - kInTail) : direction_word(&p->out(), which - kOutTail);
}

constexpr unsigned kAnyWord = kWords;

std::uint64_t lie_for(Attack* a, const Peer& p, const Word& w) {
  if (w.bytes == 4 && a->below(2) != 0) return a->below(9);  // small states
  return boundary(a, w.get(), p.capacity);
}

// In a race: true and false by turns, as fast as it goes.
struct Race {
  Word word;
  std::uint64_t truth, lie;
  volatile bool stop;
};

void* race(void* argument) {
  auto* r = static_cast<Race*>(argument);
  while (!r->stop) {
    for (int i = 0; i < 1000; i++) {
      r->word.set(r->lie);
      r->word.set(r->truth);
    }
    sched_yield();
  }
  return nullptr;
}

void race_once(Attack* a, Peer* p, unsigned which) {
  Race r = {find_word(a, p, which), 0, 0, false};
  r.truth = r.word.get();
  r.lie = lie_for(a, *p, r.word);
  const pthread_t thread = testlib::start_thread(race, &r);
  for (int i = 0; i < 5 && !p->over(); i++) {
    p->turn(2);
    p->wake();
  }
  r.stop = true;
  testlib::join_thread(thread);
}

void lie(Attack* a, Peer* p, unsigned which) {
  for (int i = 0; i < 12 && !p->over() && !a->over(); i++) {
    const unsigned one = which == kAnyWord ? static_cast<unsigned>(a->below(kWords)) : which;
    if (a->below(6) == 0) {
      race_once(a, p, one);
      continue;
    }
    const Word w = find_word(a, p, one);
    const std::uint64_t before = w.get();
    w.set(lie_for(a, *p, w));
    p->wake();
    p->turn(2);
    if (a->below(2) != 0) w.set(before);
  }
}

// Streams of which one after the other is upgraded, used, lied to, and closed in one of the ways there are.
void lie_in(Attack* a, unsigned which) {
  while (!a->over()) {
    Peer p(a);
    if (!p.upgrade()) continue;
    for (int i = 0; i < 4 && !p.over(); i++) p.turn(100);
    p.answers = a->below(4) != 0;  // or the victim's ring gets full
    for (int i = 0; !p.answers && i < 60; i++) p.ask();
    lie(a, &p, which);
    const struct linger reset = {1, 0};
    switch (a->below(3)) {
      case 0: setsockopt(p.tcp, SOL_SOCKET, SO_LINGER, &reset, sizeof reset); break;
      case 1: shutdown(p.tcp, SHUT_WR); break;
      default: break;
    }
    for (int i = 0; i < 20 && p.take() > 0; i++) {
    }
  }
}

template <unsigned kWhich>
void lie_in_word(Attack* a) {
  lie_in(a, kWhich);
}

// ---- what went wrong once -----------------------------------------------------------------------------------------------

constexpr int kLiars = 6;

// Keeps several streams upgraded, each of which has done `begin`, and has them do `go_on` every few milliseconds until the end.
template <class Begin, class GoOn>
void together(Attack* a, Begin begin, GoOn go_on) {
  Peer* liars[kLiars] = {};
  while (!a->over()) {
    for (Peer*& p : liars) {
      if (p == nullptr) {
        p = new Peer(a);
        if (p->upgrade() && p->turn() && p->turn()) begin(p);
      } else if (p->over() || p->channel == nullptr) {
        delete p;
        p = nullptr;
      } else {
        go_on(p);
      }
    }
    testlib::sleep_ms(2);
  }
  for (Peer* p : liars) delete p;
}

void claim_bytes(Peer* p, std::uint64_t n) {
  p->out().producer.tail.store_release((p->out().consumer.head.load_relaxed() & kPositionMask) + n);
  p->wake();
}

void linger_a_little(Attack* a, std::uint64_t most) {
  for (std::uint64_t i = a->below(most); i > 0; i--) cpu_relax();
}

// Freezes its own ring with bytes in it that it never gives back, and sends one byte over TCP now and then: each of them makes a receiver that
// must not wait wait for the rest.
void freeze_and_drip(Attack* a) {
  together(
      a, [](Peer* p) {
        claim_bytes(p, p->capacity / 2);
        p->out().consumer.head.fetch_or(kFrozenBit);
      },
      [](Peer* p) {
        if (send(p->tcp, "x", 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) return;
        p->wake();
      });
}

// Announces bytes, so that poll says "readable", and takes them back before they are read: a receive that blocks would then block all others.
// Back and forth, as the moment between the two calls is short.
void told_and_taken_back(Attack* a) {
  together(
      a, [](Peer*) {},
      [a](Peer* p) {
        Atomic<std::uint64_t>& tail = p->out().producer.tail;
        const std::uint64_t before = tail.load_relaxed();
        claim_bytes(p, 4);
        for (int i = 0; i < 2000; i++) {
          tail.store_release(before);
          linger_a_little(a, 8);
          tail.store_release(before + 4);
          linger_a_little(a, 8);
        }
        tail.store_release(before);
        p->take();
      });
}

// The same, but they are frozen and do not come over TCP either.
void told_and_frozen(Attack* a) {
  together(
      a, [](Peer*) {},
      [a](Peer* p) {
        Atomic<std::uint64_t>& head = p->out().consumer.head;
        claim_bytes(p, 4);
        for (int i = 0; i < 2000; i++) {
          head.fetch_or(kFrozenBit);
          linger_a_little(a, 8);
          head.fetch_and(kPositionMask);
          linger_a_little(a, 8);
        }
        head.fetch_or(kFrozenBit);
        p->take();
      });
}

// A full ring whose reader is "closed" by a number that is none: writable for those who look, full for those who write.
void fill_and_close_oddly(Peer* p) {
  p->answers = false;
  for (int i = 0; i < 40; i++) {
    for (int k = 0; k < 1000 && p->ask(); k++) {
    }
    testlib::sleep_ms(1);
  }
  p->in().consumer.closed.store_relaxed(7);
  p->wake();
}

void closed_odd(Attack* a) {
  together(a, fill_and_close_oddly, [](Peer*) {});
}

// A lie, and then silence: the victim must not run in circles over it.
void still(Attack* a) {
  while (!a->over()) {
    Peer* liars[kLiars];
    for (Peer*& p : liars) {
      p = new Peer(a);
      if (!p->upgrade() || !p->turn() || !p->turn()) continue;
      p->answers = a->below(2) != 0;
      for (int i = 0; !p->answers && i < 2000 && p->ask(); i++) {
      }
      for (int i = 0; i < 2; i++) {
        const Word w = find_word(a, p, static_cast<unsigned>(a->below(kWords)));
        w.set(lie_for(a, *p, w));
      }
      p->wake();
    }
    testlib::sleep_ms(200);
    for (Peer* p : liars) delete p;
  }
}

// The words that say who sleeps, changed as fast as it goes, while the victim changes them, too.
void waiters_race(Attack* a) {
  while (!a->over()) {
    Peer p(a);
    if (!p.upgrade()) continue;
    race_once(a, &p, kWaitersTheirs);
    race_once(a, &p, kWaitersOurs);
  }
}

constexpr Case kCases[] = {
    {"words", lie_in_word<kAnyWord>},
    {"word-magic", lie_in_word<kMagic>},
    {"word-version", lie_in_word<kVersion>},
    {"word-slot", lie_in_word<kSlot>},
    {"word-capacity", lie_in_word<kCapacity>},
    {"word-accept-state", lie_in_word<kAcceptState>},
    {"word-waiters-ours", lie_in_word<kWaitersOurs>},
    {"word-waiters-theirs", lie_in_word<kWaitersTheirs>},
    {"word-out-tail", lie_in_word<kOutTail>},
    {"word-out-base", lie_in_word<kOutBase>},
    {"word-out-switch-at", lie_in_word<kOutSwitchAt>},
    {"word-out-want-space", lie_in_word<kOutWantSpace>},
    {"word-out-returned", lie_in_word<kOutReturned>},
    {"word-out-look-back", lie_in_word<kOutLookBack>},
    {"word-out-head", lie_in_word<kOutHead>},
    {"word-out-closed", lie_in_word<kOutClosed>},
    {"word-in-tail", lie_in_word<kInTail>},
    {"word-in-base", lie_in_word<kInBase>},
    {"word-in-switch-at", lie_in_word<kInSwitchAt>},
    {"word-in-want-space", lie_in_word<kInWantSpace>},
    {"word-in-returned", lie_in_word<kInReturned>},
    {"word-in-look-back", lie_in_word<kInLookBack>},
    {"word-in-head", lie_in_word<kInHead>},
    {"word-in-closed", lie_in_word<kInClosed>},
    {"word-board-magic", lie_in_word<kBoardMagic_>},
    {"word-board-version", lie_in_word<kBoardVersion>},
    {"word-cpu", lie_in_word<kCpu>},
    {"word-armed", lie_in_word<kArmed>},
    {"word-summary", lie_in_word<kSummary>},
    {"word-leaf", lie_in_word<kLeaf>},
    {"waiters-race", waiters_race},
    {"freeze-and-drip", freeze_and_drip},
    {"told-and-taken-back", told_and_taken_back},
    {"told-and-frozen", told_and_frozen},
    {"closed-odd", closed_odd},
    {"still", still},
};

}  // namespace

Cases word_cases() { return {kCases, sizeof kCases / sizeof *kCases}; }

}  // namespace hostile
