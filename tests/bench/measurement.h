// SPDX-License-Identifier: MIT
#pragma once

#include <sys/resource.h>
#include <time.h>

#include <cstdint>
#include <string>

#include "histogram.h"

namespace bench {

inline std::uint64_t now_ns() {
  timespec t = {};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1000000000u + static_cast<std::uint64_t>(t.tv_nsec);
}

inline std::uint64_t to_ns(double seconds) { return static_cast<std::uint64_t>(seconds * 1e9); }

/// What one client has measured between `start` and `stop`, and the line of JSON it prints.
class Measurement {
 public:
  Measurement(std::string kind, std::string mode, std::uint64_t bytes) : kind_(std::move(kind)), mode_(std::move(mode)), bytes_(bytes) {}

  void start();
  void stop();
  bool started() const { return start_ns_ != 0; }

  /// One operation of `bytes` bytes.
  void add(std::uint64_t latency_ns) { latency_ns_.add(latency_ns); }
  void add(const Histogram& latency_ns) { latency_ns_.add(latency_ns); }
  void add_error() { ++errors_; }

  std::string json() const;

 private:
  std::string kind_, mode_;
  std::uint64_t bytes_;
  std::uint64_t start_ns_ = 0, end_ns_ = 0;
  rusage before_ = {}, after_ = {};
  Histogram latency_ns_;
  std::uint64_t errors_ = 0;
};

}  // namespace bench
