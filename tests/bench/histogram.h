// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace bench {

/// Counts of 64-bit values, log-linear: 64 buckets per power of two, so a percentile is at most 1/64 above the value it stands for.
/// Never allocates.
class Histogram {
 public:
  void add(std::uint64_t value);
  void add(const Histogram& other);

  std::uint64_t count() const { return count_; }
  std::uint64_t max() const { return max_; }  // exact
  /// The value that `fraction` (0…1) of all values do not exceed; 0 when there are none.
  std::uint64_t percentile(double fraction) const;

 private:
  static constexpr unsigned kSubBits = 6;
  static constexpr std::size_t kSub = 1u << kSubBits;
  static constexpr std::size_t kBuckets = kSub * (64 - kSubBits + 1);

  static std::size_t bucket_of(std::uint64_t value);
  static std::uint64_t highest_of(std::size_t bucket);

  std::array<std::uint64_t, kBuckets> buckets_{};
  std::uint64_t count_ = 0, max_ = 0;
};

}  // namespace bench
