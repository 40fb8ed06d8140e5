// SPDX-License-Identifier: MIT
#include "tests/fuzz/hostile.h"

#include <algorithm>

namespace mpklink {
namespace fuzz {
namespace {

Peer* g_peer = nullptr;

std::uint64_t read_word(const void* address, std::size_t size) {
  std::uint64_t value = 0;
  std::memcpy(&value, address, size);
  return value;
}

}  // namespace

void set_peer(Peer* peer) { g_peer = peer; }

unsigned Peer::add(void* address, std::size_t size) {
  const auto index = static_cast<unsigned>(words_.size());
  words_.push_back({address, size, 0, 0, 0, 0});
  const auto before = [&](unsigned i, const void* a) { return words_[i].address < a; };
  by_address_.insert(std::lower_bound(by_address_.begin(), by_address_.end(), address, before), index);
  return index;
}

Peer::Word* Peer::find(const void* address) {
  const auto before = [&](unsigned i, const void* a) { return words_[i].address < a; };
  const auto at = std::lower_bound(by_address_.begin(), by_address_.end(), address, before);
  return at != by_address_.end() && words_[*at].address == address ? &words_[*at] : nullptr;
}

void Peer::attack(const std::uint8_t* data, std::size_t size) {
  script_ = data;
  script_size_ = size;
  next_ = Input(data, size);
}

void Peer::rest() { script_size_ = 0; }

void Peer::forget() {
  steps_ = 0;
  for (Word& word : words_) word.loads = word.stores = 0;
}

void Peer::change(Input* input) {
  const unsigned how = input->byte();
  const std::size_t count = words_.size();
  // The first ones more often.
  Word& word = words_[(count <= 32 || how >> 3 < 24 ? how >> 3 : input->value<std::uint16_t>()) % count];
  std::uint64_t value = read_word(word.address, word.size);
  switch (how & 7) {
    case 0: value += input->byte(); break;
    case 1: value -= input->byte(); break;
    case 2: value ^= std::uint64_t{1} << (input->byte() & 63); break;
    case 3: value ^= kFrozenBit; break;
    case 4: value = input->byte(); break;
    case 5: value = input->value<std::uint64_t>(); break;
    case 6: value = read_word(words_[input->byte() % count].address, word.size); break;
    case 7: value = ~value; break;
  }
  std::memcpy(word.address, &value, word.size);
  ++changes_;
}

void Peer::before(const void* address) {
  if (find(address) == nullptr) return;
  FUZZ_CHECK(++steps_, <, kStepsMax);  // a peer that never rests must not hold us up
  if (script_size_ == 0) return;
  if (next_.empty()) next_ = Input(script_, script_size_);
  if (next_.byte() & 1) change(&next_);
}

void Peer::loaded(const void* address, std::uint64_t value) {
  Word* word = find(address);
  if (word == nullptr) return;
  ++word->loads;
  word->seen = value;
}

void Peer::stored(const void* address, std::uint64_t value) {
  Word* word = find(address);
  if (word == nullptr) return;
  ++word->stores;
  word->written = value;
}

}  // namespace fuzz

namespace model {

Word atomic_load(const void* address, std::size_t size) {
  if (fuzz::g_peer != nullptr) fuzz::g_peer->before(address);
  const Word value = fuzz::read_word(address, size);
  if (fuzz::g_peer != nullptr) fuzz::g_peer->loaded(address, value);
  return value;
}

void atomic_store(void* address, std::size_t size, Word value) {
  if (fuzz::g_peer != nullptr) fuzz::g_peer->before(address);
  std::memcpy(address, &value, size);
  if (fuzz::g_peer != nullptr) fuzz::g_peer->stored(address, value);
}

Word atomic_rmw(Rmw rmw, void* address, std::size_t size, Word operand, Word expected) {
  if (fuzz::g_peer != nullptr) fuzz::g_peer->before(address);
  const Word old = fuzz::read_word(address, size);
  if (fuzz::g_peer != nullptr) fuzz::g_peer->loaded(address, old);
  Word value = operand;
  switch (rmw) {
    case Rmw::kExchange: break;
    case Rmw::kOr: value = old | operand; break;
    case Rmw::kAnd: value = old & operand; break;
    case Rmw::kAdd: value = old + operand; break;
    case Rmw::kCompareExchange:
      if (old != expected) return old;
      break;
  }
  std::memcpy(address, &value, size);
  if (fuzz::g_peer != nullptr) fuzz::g_peer->stored(address, value);
  return old;
}

void fence() {}
void relax() {}

}  // namespace model
}  // namespace mpklink
