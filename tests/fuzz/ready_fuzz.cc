// SPDX-License-Identifier: MIT
// The board's words (shm/ready.h) against a peer that sets, clears and overwrites any of them between any two of our operations: ready
// bitmap, armed word and the waiters of a channel. Whatever it does: few steps, numbers within range, each slot once. As long as it is
// honest nothing that was marked or registered is lost.
#include <set>

#include "shm/ready.h"
#include "tests/fuzz/hostile.h"

namespace mpklink {
namespace {

using fuzz::Input;
using fuzz::Peer;

// Two loads or exchanges a summary word, one exchange a leaf.
constexpr std::uint64_t kTakeSteps = 2 * kSummaryWords + kLeafWords;
constexpr std::uint64_t kWaiterSteps = 1 + kWaiterTries;

struct Words {
  Words() {
    armed = peer.add(&line.armed);
    waiters = peer.add(&ids);
    for (auto& word : map.summary) peer.add(&word);
    for (auto& word : map.leaf) peer.add(&word);
  }
  void reset() {
    fuzz::set_peer(nullptr);
    for (auto& word : map.summary) word.store_relaxed(0);
    for (auto& word : map.leaf) word.store_relaxed(0);
    line.armed.store_relaxed(0);
    ids.store_relaxed(0);
    fuzz::set_peer(&peer);
  }
  ReadyBitmap map;
  ArmedLine line;
  Atomic<std::uint64_t> ids;
  Peer peer;
  unsigned armed, waiters;
};

class Attacked {
 public:
  explicit Attacked(Words* words) : w_(*words), peer_(words->peer), changes_before_(words->peer.changes()) { w_.reset(); }

  void run(const std::uint8_t* attack, std::size_t size, Input* input) {
    for (int i = 0; i < 300 && !input->empty(); ++i) {
      const unsigned op = input->byte();
      if ((op & 0x80) && (op & 7) != 0) peer_.attack(attack, size);
      peer_.forget();
      switch (op & 7) {
        case 0: peer_.change(input); break;
        case 1: case 2: mark(input->value<std::uint16_t>() % kSlots); break;
        case 3: take(); break;
        case 4: arm_and_take(op); break;
        case 5: case 6: add(input->value<std::uint16_t>() % kPollers); break;
        case 7: remove(input->value<std::uint16_t>() % kPollers); break;
      }
      peer_.rest();
    }
    fuzz::set_peer(nullptr);
  }

 private:
  bool honest() const { return peer_.changes() == changes_before_; }

  void mark(std::uint32_t slot) {
    mark_ready(&w_.map, slot);
    FUZZ_CHECK(peer_.steps(), <=, 4u);
    peer_.rest();
    if (honest()) {
      marked_.insert(slot);
      FUZZ_TRUE(anything_ready(w_.map));
    }
  }

  void take() {
    static bool seen[kSlots];
    std::uint32_t order[kSlots];
    std::uint32_t count = 0;
    take_ready(&w_.map, [&](std::uint32_t slot) {
      FUZZ_CHECK(slot, <, kSlots);
      FUZZ_TRUE(!seen[slot]);
      seen[slot] = true;
      order[count++] = slot;
    });
    FUZZ_CHECK(peer_.steps(), <=, kTakeSteps);
    peer_.rest();
    if (honest()) {
      FUZZ_CHECK(count, ==, marked_.size());
      for (const std::uint32_t slot : marked_) FUZZ_TRUE(seen[slot]);
      FUZZ_TRUE(!anything_ready(w_.map));
    }
    marked_.clear();
    for (std::uint32_t i = 0; i < count; ++i) seen[order[i]] = false;
  }

  void arm_and_take(unsigned how) {
    if (how & 8) arm(&w_.line);
    if (how & 16) disarm(&w_.line);
    const bool rings = take_armed(&w_.line);
    FUZZ_CHECK(peer_.steps(), <=, 4u);
    if (honest()) FUZZ_CHECK(rings, ==, (how & 24) == 8);
    if (rings) FUZZ_TRUE(peer_.seen(w_.armed) != 0);
  }

  void add(std::uint32_t poller) {
    const bool added = add_waiter(&w_.ids, poller);
    FUZZ_CHECK(peer_.steps(), <=, kWaiterSteps);
    peer_.rest();
    if (honest()) {
      FUZZ_CHECK(added, ==, registered_.count(poller) != 0 || registered_.size() < kWaitersMax);
      if (added) registered_.insert(poller);
      waiters_are_registered();
    } else if (added) {
      // By our own compare-exchange, or because it was there: seen last either way.
      bool there = false;
      const std::uint64_t word = peer_.stores(w_.waiters) != 0 ? peer_.written(w_.waiters) : peer_.seen(w_.waiters);
      for (unsigned i = 0; i < kWaitersMax; ++i) there = there || waiter_at(word, i) == poller + 1;
      FUZZ_TRUE(there);
    }
  }

  void remove(std::uint32_t poller) {
    remove_waiter(&w_.ids, poller);
    FUZZ_CHECK(peer_.steps(), <=, kWaiterSteps);
    peer_.rest();
    if (!honest()) return;
    registered_.erase(poller);
    waiters_are_registered();
  }

  void waiters_are_registered() {
    std::set<std::uint32_t> there;
    const std::uint64_t word = w_.ids.load_relaxed();
    for (unsigned i = 0; i < kWaitersMax; ++i) {
      if (waiter_at(word, i) != 0) FUZZ_TRUE(there.insert(waiter_at(word, i) - 1).second);
    }
    FUZZ_TRUE(there == registered_);
  }

  Words& w_;
  Peer& peer_;
  const std::uint64_t changes_before_;
  std::set<std::uint32_t> marked_;
  std::set<std::uint32_t> registered_;
};

}  // namespace
}  // namespace mpklink

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace mpklink;
  static Words words;
  fuzz::Input input(data, size);
  std::uint8_t attack[32];
  const std::size_t attack_size = input.bytes(attack, input.below(sizeof attack + 1));
  Attacked(&words).run(attack, attack_size, &input);
  return 0;
}
