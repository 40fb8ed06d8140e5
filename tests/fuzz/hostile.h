// SPDX-License-Identifier: MIT
// A peer that changes shared words between any two of our operations on them, as the input says. For sources compiled with
// MPKLINK_MODEL: their Atomic is that of tests/model/model_atomic.h, and hostile.cc is what it calls.
#pragma once
#include <vector>

#include "shm/layout.h"
#include "tests/fuzz/fuzz.h"

namespace mpklink::fuzz {

class Peer {
 public:
  static constexpr std::uint64_t kStepsMax = 100000;

  // The words the peer can write. What else is atomic is ours alone, and not counted.
  template <class T>
  unsigned add(Atomic<T>* word) {
    return add(static_cast<void*>(word), sizeof(T));
  }

  // From now on, before each of our operations on a shared word: one byte of the input decides whether a word changes, and how. When it
  // is used up the peer does it all again from `data`, so that a loop that waits for it to rest does not end.
  void attack(const std::uint8_t* data, std::size_t size);
  void rest();  // the peer is honest, or asleep
  // Changes one word.
  void change(Input* input);
  std::uint64_t changes() const { return changes_; }

  // What our side saw and did since `forget`.
  void forget();
  unsigned loads(unsigned word) const { return words_[word].loads; }    // read-modify-writes too
  unsigned stores(unsigned word) const { return words_[word].stores; }
  std::uint64_t seen(unsigned word) const { return words_[word].seen; }        // by the last of those loads
  std::uint64_t written(unsigned word) const { return words_[word].written; }  // by the last of those stores
  std::uint64_t steps() const { return steps_; }

  // For hostile.cc: an operation of ours.
  void before(const void* address);
  void loaded(const void* address, std::uint64_t value);
  void stored(const void* address, std::uint64_t value);

 private:
  struct Word {
    void* address;
    std::size_t size;
    unsigned loads, stores;
    std::uint64_t seen, written;
  };
  unsigned add(void* address, std::size_t size);
  Word* find(const void* address);

  std::vector<Word> words_;
  std::vector<unsigned> by_address_;
  std::uint64_t steps_ = 0;
  std::uint64_t changes_ = 0;
  const std::uint8_t* script_ = nullptr;
  std::size_t script_size_ = 0;
  Input next_{nullptr, 0};
};

// The peer of the operations from here on; null: none.
void set_peer(Peer* peer);

}  // namespace mpklink::fuzz
