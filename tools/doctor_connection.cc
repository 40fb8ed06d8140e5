// SPDX-License-Identifier: MIT
// A real connection between two wrapped programs: does it move to shared memory, do the bytes come through, and how
// fast.
#include <fmt/format.h>

#include <cstdlib>
#include <cstring>

#include "preload/reasons.h"
#include "tools/doctor_checks.h"
#include "tools/doctor_child.h"
#include "tools/refusal.h"
#include "tools/text.h"

namespace mpklink {
namespace {

constexpr int kTimeoutMs = 15000;

/// What one run of server and client gave.
struct Trial {
  bool ran = false;     // all bytes came back as they were
  std::string problem;  // of the trial that did not
  std::int64_t round_trip_ns = 0;
  std::string server, client;  // their lines of statistics; "" without the library
};

Environment with_statistics(Environment environment, const Scratch& file) {
  environment.emplace_back("MPKLINK_STATS", file.path());
  return environment;
}

Trial run_trial(const Environment& environment) {
  const Scratch server_file, client_file;
  Trial trial;
  Child server("server", with_statistics(environment, server_file));
  const std::string port = server.line(kTimeoutMs);
  if (port.empty()) return trial.problem = fmt::format("the server did not start: {}", server.errors()), trial;
  Child client("client:" + port, with_statistics(environment, client_file));
  const std::string answer = client.line(kTimeoutMs);
  const int client_code = client.finish(kTimeoutMs);
  const int server_code = server.finish(client_code == 0 ? kTimeoutMs : 0);  // nobody may have come
  trial.server = server_file.content();
  trial.client = client_file.content();
  trial.round_trip_ns = atoll(answer.c_str());
  trial.ran = client_code == 0 && server_code == 0 && trial.round_trip_ns > 0;
  if (!trial.ran) {
    const std::string said = client.errors().empty() ? server.errors() : client.errors();
    trial.problem = fmt::format("the client ended with {}, the server with {}{}{}", client_code, server_code,
                                said.empty() ? "" : ": ", said);
  } else if (trial.client.empty() || trial.server.empty()) {
    trial.problem = client.errors().empty() ? server.errors() : client.errors();  // ld.so's complaint
  }
  return trial;
}

/// What is missing to try it at all is a result, too: the other checks say why.
Trial try_trial(const Environment& environment) {
  try {
    return run_trial(environment);
  } catch (const Refusal& refusal) {
    Trial trial;
    trial.problem = refusal.what();
    return trial;
  }
}

// ---- the statistics' one line, whose form preload/stats.cc is ----

std::int64_t number_of(const std::string& line, const std::string& key) {
  const std::size_t at = line.find("\"" + key + "\":");
  return at == std::string::npos ? 0 : atoll(line.c_str() + at + key.size() + 3);
}

std::string text_of(const std::string& line, const std::string& key) {
  const std::size_t at = line.find("\"" + key + "\":\"");
  if (at == std::string::npos) return {};
  const std::size_t from = at + key.size() + 4;
  return line.substr(from, line.find('"', from) - from);
}

/// The first reason that a line counts, or null.
const ReasonText* reason_of(const std::string& line) {
  const std::size_t at = line.find("\"plain\":{\"");
  if (at == std::string::npos) return nullptr;
  const std::size_t from = at + strlen("\"plain\":{\"");
  const std::string slug = line.substr(from, line.find('"', from) - from);
  for (const ReasonText& text : kReasonTexts) {
    if (slug == text.slug) return &text;
  }
  return nullptr;
}

std::string fact_of(const ReasonText* reason) {
  return reason == nullptr ? std::string() : reason->slug;
}

void explain_plain(const Trial& trial, const ReasonText* reason, Finding* found) {
  found->level = Level::kFail;
  if (reason != nullptr) {
    found->sentence = fmt::format("It stays on TCP ({}): {}", reason->slug, reason->sentence);
    found->remedy = reason->remedy;
  } else if (trial.client.empty() || trial.server.empty()) {
    found->sentence = fmt::format("The library did not get into the test's programs{}{}.",
                                  trial.problem.empty() ? "" : ": ", printable(trial.problem));
    found->remedy =
        "Look at what the section \"environment\" says of the library; or name another one: export "
        "MPKLINK_LIBRARY=PATH";
  } else {
    found->sentence = "It stays on TCP, and the library counted no reason.";
    found->remedy = "To see what it says: MPKLINK_LOG=debug mpklink run -- PROGRAM";
  }
}

Finding judge(const Trial& trial) {
  Finding found{"connection", "upgrade", Level::kOk, "", "", {}};
  const std::int64_t ring = number_of(trial.client, "ring_tx_bytes") + number_of(trial.client, "ring_rx_bytes");
  const bool upgraded = number_of(trial.client, "upgraded") > 0 && number_of(trial.server, "upgraded") > 0 && ring > 0;
  const std::string guard = text_of(trial.client, "guard"), why = text_of(trial.client, "guard_why");
  const ReasonText* client_reason = reason_of(trial.client);
  const ReasonText* server_reason = reason_of(trial.server);
  found.facts = {{"upgraded", upgraded},
                 {"guard", guard},
                 {"guard_why", why},
                 {"ring_bytes", ring},
                 {"client_reason", fact_of(client_reason)},
                 {"server_reason", fact_of(server_reason)}};
  if (!trial.ran) {
    found.level = Level::kFail;
    found.sentence = fmt::format("The test connection failed: {}.", printable(trial.problem));
    found.remedy =
        "Try the same without the library: MPKLINK_DISABLE=1 mpklink doctor. If that works, please report it with this "
        "output.";
  } else if (!upgraded) {
    explain_plain(trial, client_reason != nullptr ? client_reason : server_reason, &found);
  } else if (guard == "off") {
    found.level = Level::kNote;
    found.sentence = fmt::format("It moved to shared memory, without a guard ({}), and every byte came through.", why);
  } else {
    found.sentence = fmt::format("It moved to shared memory behind a guard ({}), and every byte came through.", guard);
  }
  return found;
}

}  // namespace

Findings check_connection(const std::string& library) {
  Environment environment = with_library(library);
  // What would keep this one connection on TCP although those of services are not; check_settings() tells of it.
  environment.emplace_back("MPKLINK_PORTS", "");
  environment.emplace_back("MPKLINK_RULES", "");
  environment.emplace_back("MPKLINK_WARMUP", "");
  const Trial with = try_trial(environment);
  const Trial without = try_trial(without_library());
  Findings findings = {judge(with)};
  if (with.ran && without.ran) {
    findings.push_back(
        {"connection",
         "round-trips",
         Level::kOk,
         fmt::format("A round trip of 64 bytes takes {:.1f} us; over TCP {:.1f} us.",
                     static_cast<double>(with.round_trip_ns) / 1000, static_cast<double>(without.round_trip_ns) / 1000),
         "",
         {{"with_ns", with.round_trip_ns}, {"tcp_ns", without.round_trip_ns}}});
  }
  return findings;
}

}  // namespace mpklink
