// SPDX-License-Identifier: MIT
#include "tools/run_report.h"

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <map>
#include <sstream>
#include <vector>

#include "preload/reasons.h"
#include "tools/text.h"

namespace mpklink {
namespace {

/// The number behind "key": in a line that the library wrote (no quote of a program's is in it unescaped); 0: none.
std::uint64_t number_in(const std::string& line, const std::string& key) {
  const std::string quoted = "\"" + key + "\":";
  const std::size_t at = line.find(quoted);
  std::uint64_t value = 0;
  for (std::size_t i = at == std::string::npos ? line.size() : at + quoted.size(); i < line.size() && line[i] >= '0' && line[i] <= '9'; ++i) {
    value = value * 10 + static_cast<std::uint64_t>(line[i] - '0');
  }
  return value;
}

std::string word_in(const std::string& line, const std::string& key) {
  const std::string quoted = "\"" + key + "\":\"";
  const std::size_t at = line.find(quoted);
  if (at == std::string::npos) return {};
  const std::size_t start = at + quoted.size();
  return line.substr(start, line.find('"', start) - start);
}

struct Sums {
  std::uint64_t processes = 0, upgraded = 0, revoked = 0, ring = 0, tcp = 0, plain = 0;
  std::map<std::string, std::uint64_t> names, guards;
  std::vector<std::uint64_t> reasons = std::vector<std::uint64_t>(static_cast<std::size_t>(Reason::kCount));
};

Sums sums_of(const std::string& lines) {
  Sums sums;
  std::istringstream stream(lines);
  for (std::string line; std::getline(stream, line);) {
    if (line.empty() || line[0] != '{') continue;
    ++sums.processes;
    ++sums.names[printable(word_in(line, "comm"))];
    const std::string why = word_in(line, "guard_why");
    ++sums.guards[word_in(line, "guard") + (why.empty() ? "" : " (" + why + ")")];
    sums.upgraded += number_in(line, "upgraded");
    sums.revoked += number_in(line, "revoked");
    sums.ring += number_in(line, "ring_tx_bytes") + number_in(line, "ring_rx_bytes");
    sums.tcp += number_in(line, "tcp_tx_bytes") + number_in(line, "tcp_rx_bytes");
    const std::size_t plain = line.find("\"plain\":{");
    const std::string reasons = plain == std::string::npos ? "" : line.substr(plain, line.find('}', plain) - plain);
    for (std::size_t i = 0; i < sums.reasons.size(); ++i) {
      const std::uint64_t n = number_in(reasons, kReasonTexts[i].slug);
      sums.reasons[i] += n;
      sums.plain += n;
    }
  }
  return sums;
}

std::string size_text(std::uint64_t bytes) {
  static const char* const kUnits[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1024 && unit < 4; ++unit) value /= 1024;
  char text[48];
  snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

std::string counted(const std::map<std::string, std::uint64_t>& names) {
  std::string text;
  for (const auto& [name, n] : names) text += (text.empty() ? "" : ", ") + name + (n > 1 ? " x" + std::to_string(n) : "");
  return text;
}

std::string json_of(const Sums& sums) {
  std::string plain;
  for (std::size_t i = 0; i < sums.reasons.size(); ++i) {
    if (sums.reasons[i] == 0) continue;
    plain += (plain.empty() ? "" : ",") + json_string(kReasonTexts[i].slug) + ":" + std::to_string(sums.reasons[i]);
  }
  const auto field = [](const char* name, std::uint64_t value) { return "\"" + std::string(name) + "\":" + std::to_string(value) + ","; };
  return "{" + field("processes", sums.processes) + field("upgraded", sums.upgraded) + field("revoked", sums.revoked) +
         field("ring_bytes", sums.ring) + field("tcp_bytes", sums.tcp) + "\"plain\":{" + plain + "}}\n";
}

}  // namespace

std::string report_of(const std::string& lines, bool json) {
  const Sums sums = sums_of(lines);
  if (json) return json_of(sums);
  if (sums.processes == 0) {
    return "mpklink: no process has left statistics: it was killed, still runs, or ended by _exit(2) in another library; try mpklink run --log info\n";
  }
  std::string text = "mpklink: " + std::to_string(sums.processes) + (sums.processes == 1 ? " process" : " processes") + " (" +
                     counted(sums.names) + "), guard " + counted(sums.guards) + "\n";
  text += "  upgraded  " + std::to_string(sums.upgraded) + (sums.upgraded == 1 ? " stream; " : " streams; ") + size_text(sums.ring) +
          " through the ring, " + size_text(sums.tcp) + " over TCP";
  if (sums.revoked > 0) text += "; " + std::to_string(sums.revoked) + " came back to TCP";
  text += "\n  on TCP    " + std::to_string(sums.plain) + (sums.plain == 1 ? " stream\n" : " streams\n");
  for (std::size_t i = 0; i < sums.reasons.size(); ++i) {
    if (sums.reasons[i] == 0) continue;
    const auto& reason = kReasonTexts[i];
    text += "    " + std::to_string(sums.reasons[i]) + " " + reason.slug + ": " + reason.sentence + "\n      Remedy: " + reason.remedy + "\n";
  }
  return text;
}

}  // namespace mpklink
