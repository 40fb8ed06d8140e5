// SPDX-License-Identifier: MIT
// What is sent, made so that lost, doubled, swapped or stale bytes are noticed at little cost.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace bench {

/// A message that carries its number at its beginning, every 4096 bytes and at its end; its other bytes never change. Of a number that
/// does not fit, the lowest bytes count.
class Message {
 public:
  explicit Message(std::size_t size);

  void set_number(std::uint64_t number);
  const unsigned char* data() const { return bytes_.data(); }
  std::size_t size() const { return bytes_.size(); }

  /// Fails unless `received` holds the `size` bytes at `offset` of this message.
  void check(std::size_t offset, const unsigned char* received, std::size_t size) const;

 private:
  void stamp(std::size_t offset);

  std::vector<unsigned char> bytes_;
  std::uint64_t number_ = 0;
};

/// A stream without end whose bytes follow from their offset, in pieces of at most `max_piece` bytes.
class StreamBytes {
 public:
  explicit StreamBytes(std::size_t max_piece);

  /// The stream from `offset` on, `max_piece` bytes of it.
  const unsigned char* at(std::uint64_t offset) const { return bytes_.data() + offset % kPeriod; }
  /// Looks at both ends of `received` and every 4096 bytes: pieces of other offsets differ there.
  bool is_right(std::uint64_t offset, const unsigned char* received, std::size_t size) const;

 private:
  static constexpr std::size_t kPeriod = 65521;  // a prime: a shift by any usual buffer size is seen

  std::vector<unsigned char> bytes_;
};

}  // namespace bench
