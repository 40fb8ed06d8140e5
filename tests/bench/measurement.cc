// SPDX-License-Identifier: MIT
#include "measurement.h"

#include <fmt/format.h>

namespace bench {
namespace {

double seconds(const timeval& time) { return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6; }

std::string latency_json(const Histogram& h) {
  return fmt::format(R"({{"p50":{},"p90":{},"p99":{},"p999":{},"max":{}}})", h.percentile(0.5), h.percentile(0.9), h.percentile(0.99),
                     h.percentile(0.999), h.max());
}

std::string usage_json(const rusage& before, const rusage& after) {
  return fmt::format(R"("user_seconds":{:.6f},"system_seconds":{:.6f},"voluntary_switches":{},"involuntary_switches":{})",
                     seconds(after.ru_utime) - seconds(before.ru_utime), seconds(after.ru_stime) - seconds(before.ru_stime),
                     after.ru_nvcsw - before.ru_nvcsw, after.ru_nivcsw - before.ru_nivcsw);
}

}  // namespace

void Measurement::start() {
  getrusage(RUSAGE_SELF, &before_);
  start_ns_ = now_ns();
}

void Measurement::stop() {
  end_ns_ = now_ns();
  getrusage(RUSAGE_SELF, &after_);
}

std::string Measurement::json() const {
  const double elapsed = static_cast<double>(end_ns_ - start_ns_) / 1e9;
  const std::uint64_t operations = latency_ns_.count();
  const double per_second = elapsed > 0 ? static_cast<double>(operations) / elapsed : 0;
  return fmt::format(
      R"({{"kind":"{}","mode":"{}","bytes":{},"operations":{},"seconds":{:.6f},"operations_per_second":{:.3f},"bytes_per_second":{:.1f},)"
      R"("latency_ns":{},"errors":{},{}}})",
      kind_, mode_, bytes_, operations, elapsed, per_second, per_second * static_cast<double>(bytes_), latency_json(latency_ns_), errors_,
      usage_json(before_, after_));
}

}  // namespace bench
