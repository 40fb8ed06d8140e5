// SPDX-License-Identifier: MIT
#include "message.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "failure.h"

namespace bench {
namespace {

constexpr std::size_t kStride = 4096;
constexpr std::size_t kNumberBytes = sizeof(std::uint64_t);

void fill_random(unsigned char* to, std::size_t size) {
  std::minstd_rand random;  // the same bytes in every process: the seed is a constant
  std::generate(to, to + size, [&random] { return static_cast<unsigned char>(random() >> 8); });
}

}  // namespace

Message::Message(std::size_t size) : bytes_(size) {
  fill_random(bytes_.data(), size);
  set_number(0);
}

void Message::stamp(std::size_t offset) {
  memcpy(bytes_.data() + offset, &number_, std::min(kNumberBytes, bytes_.size() - offset));
}

void Message::set_number(std::uint64_t number) {
  number_ = number;
  for (std::size_t offset = 0; offset < bytes_.size(); offset += kStride) stamp(offset);
  if (bytes_.size() > kNumberBytes) stamp(bytes_.size() - kNumberBytes);
}

void Message::check(std::size_t offset, const unsigned char* received, std::size_t size) const {
  const unsigned char* expected = bytes_.data() + offset;
  if (memcmp(expected, received, size) == 0) return;
  const auto wrong = static_cast<std::size_t>(std::mismatch(expected, expected + size, received).first - expected);
  fail("message {} of {} bytes came back wrong from byte {} on: {:#04x} instead of {:#04x}", number_, bytes_.size(), offset + wrong,
       received[wrong], expected[wrong]);
}

StreamBytes::StreamBytes(std::size_t max_piece) : bytes_(kPeriod + max_piece) {
  fill_random(bytes_.data(), kPeriod);
  for (std::size_t i = kPeriod; i < bytes_.size(); ++i) bytes_[i] = bytes_[i - kPeriod];
}

bool StreamBytes::is_right(std::uint64_t offset, const unsigned char* received, std::size_t size) const {
  const unsigned char* expected = at(offset);
  if (size <= kNumberBytes) return memcmp(expected, received, size) == 0;
  const std::size_t last = size - kNumberBytes;
  for (std::size_t i = 0; i < last; i += kStride) {
    if (memcmp(expected + i, received + i, kNumberBytes) != 0) return false;
  }
  return memcmp(expected + last, received + last, kNumberBytes) == 0;
}

}  // namespace bench
