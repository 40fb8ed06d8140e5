// SPDX-License-Identifier: MIT
// What the fuzz targets share: the input, read from its front, and a check that stops the run.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace mpklink::fuzz {

// Says what does not hold, with both values, and aborts: the engine keeps the input.
#define FUZZ_CHECK(a, op, b)                                                                                                          \
  do {                                                                                                                                \
    const auto fuzz_a = (a);                                                                                                          \
    const auto fuzz_b = (b);                                                                                                          \
    if (!(fuzz_a op fuzz_b)) {                                                                                                        \
      std::fprintf(stderr, "%s:%d: %s %s %s does not hold: %lld and %lld\n", __FILE__, __LINE__, #a, #op, #b,                         \
                   static_cast<long long>(fuzz_a), static_cast<long long>(fuzz_b));                                                   \
      std::abort();                                                                                                                   \
    }                                                                                                                                 \
  } while (false)
#define FUZZ_TRUE(a) FUZZ_CHECK(static_cast<bool>(a), ==, true)

// Zeros behind its end.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : at_(data), end_(data + size) {}

  bool empty() const { return at_ == end_; }
  std::size_t left() const { return static_cast<std::size_t>(end_ - at_); }
  std::uint8_t byte() { return empty() ? std::uint8_t{0} : *at_++; }
  std::uint32_t below(std::uint32_t n) { return n <= 256 ? byte() % n : (byte() | byte() * 256u) % n; }
  template <class T>
  T value() {
    T v = {};
    bytes(&v, sizeof v);
    return v;
  }
  // Returns how many there were.
  std::size_t bytes(void* to, std::size_t n) {
    const std::size_t take = n < left() ? n : left();
    if (take != 0) std::memcpy(to, at_, take);
    at_ += take;
    return take;
  }

 private:
  const std::uint8_t* at_;
  const std::uint8_t* end_;
};

}  // namespace mpklink::fuzz
