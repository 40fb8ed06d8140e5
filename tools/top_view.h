// SPDX-License-Identifier: MIT
// What `top` says: the difference of two looks, per second. Pure.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "tools/stream_view.h"

namespace mpklink {

struct Look {
  std::chrono::steady_clock::time_point time;
  std::vector<ProcessStatus> processes;
};

struct StreamRate {
  StreamView view;
  double tx_bytes = 0, rx_bytes = 0, calls = 0;  // per second
};

struct ProcessRate {
  const ProcessStatus* process = nullptr;
  double ring_bytes = 0, tcp_bytes = 0, calls = 0, bells = 0, sleeps = 0, spin_hits = 0;  // per second
};

/// Busiest first. Valid as long as `now`.
struct Rates {
  double interval_s = 0;  // 0: there was no look before, and no rate is known
  std::vector<ProcessRate> processes;
  std::vector<StreamRate> streams;
};
Rates rates_between(const Look& before, const Look& now, const StreamFilter& filter);

/// `rows` > 0: the lines of a screen, of which processes get a third at most; `width` > 0: its columns.
std::string top_text(const Rates& rates, const std::string& time_of_day, std::size_t rows, std::size_t width);
/// One object on one line.
std::string top_json(const Rates& rates, double time_s);

}  // namespace mpklink
