-- SPDX-License-Identifier: MIT
-- Makes wrk print what it has measured as one line of JSON.
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('RESULT {"requests":%d,"duration_us":%d,"bytes":%d,', summary.requests, summary.duration, summary.bytes))
  io.write(string.format('"latency_us":{"p50":%d,"p90":%d,"p99":%d,"p999":%d,"max":%d},', latency:percentile(50), latency:percentile(90),
    latency:percentile(99), latency:percentile(99.9), latency.max))
  io.write(string.format('"errors":{"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}}\n', errors.connect, errors.read,
    errors.write, errors.timeout, errors.status))
end
