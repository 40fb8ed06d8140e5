// SPDX-License-Identifier: MIT
#include "tools/doctor_streams.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>

#include "preload/reasons.h"
#include "tools/doctor_peer.h"
#include "tools/status_reader.h"
#include "tools/text.h"

namespace mpklink {
namespace {

constexpr std::size_t kMostNamed = 4;  // connections of a group that are named; the others are counted

std::string stream_text(const StreamInfo& s) {
  return fmt::format("{} -> {}", endpoint_text(s.local), endpoint_text(s.peer));
}

/// A reason that nothing can be done about is no warning.
bool can_be_helped(const std::string& remedy) {
  return remedy.rfind("None", 0) != 0;
}

// ---- the guard ----

Finding check_guard_of(const PageContent& page, const ProcessFacts& process) {
  static const char* const kNames[] = {"undecided", "off", "pkey", "mprotect", "refused"};
  const bool known = page.guard < std::size(kNames);
  Finding found{"process",  "guard",
                Level::kOk, "",
                "",         {{"guard", std::string(known ? kNames[page.guard] : "?")}, {"guard_why", page.guard_why}}};
  const Explanation why = explain_no_guard(page.guard_why);
  switch (page.guard) {
    case 0:
      found.sentence = "No connection has been upgraded yet, so nothing is guarded yet.";
      break;
    case 2:
      found.sentence = "Its shared memory is guarded by a protection key.";
      break;
    case 3:
      found.level = Level::kNote;
      found.sentence = "Its shared memory is guarded by mprotect, which is slow: it is for tests.";
      found.remedy = "Unset MPKLINK_GUARD.";
      break;
    case 1:
      found.level = page.guard_why == "asked-for" ? Level::kNote : Level::kWarn;
      found.sentence = fmt::format("Its shared memory has no guard ({}). {}", printable(page.guard_why), why.sentence);
      found.remedy = why.remedy.empty() ? "mpklink doctor" : why.remedy;
      break;
    default:
      found.level = Level::kFail;
      found.sentence = fmt::format(
          "It demands a guard (MPKLINK_GUARD={}) and there is none ({}), so its connections stay on TCP. {}",
          printable(process.variable("MPKLINK_GUARD")), printable(page.guard_why), why.sentence);
      found.remedy = why.remedy.empty() ? "Set MPKLINK_GUARD=auto." : why.remedy;
  }
  return found;
}

// ---- connections ----

/// Those of one kind: the same mode, reason and port of the service, the same process at the other end.
struct Group {
  std::vector<const StreamInfo*> streams;
  Peer peer;
};
using Key = std::tuple<RowMode, std::uint32_t, std::uint16_t, pid_t>;

Key key_of(const StreamInfo& stream, const Peer& peer) {
  const RowMode mode = stream.mode == RowMode::kUpgrading ? RowMode::kCandidate : stream.mode;
  return {mode, mode == RowMode::kPlain ? stream.reason : 0, stream.connector ? stream.peer.port : stream.local.port,
          peer.pid};
}

std::string named(const std::vector<const StreamInfo*>& streams) {
  std::string text;
  for (std::size_t i = 0; i < std::min(streams.size(), kMostNamed); ++i)
    text += (i == 0 ? "" : ", ") + stream_text(*streams[i]);
  return streams.size() > kMostNamed ? fmt::format("{} and {} more", text, streams.size() - kMostNamed) : text;
}

Facts group_facts(const Group& group, const std::string& mode, const std::string& reason) {
  const StreamInfo& first = *group.streams.front();
  return {{"mode", mode},
          {"reason", reason},
          {"count", static_cast<std::int64_t>(group.streams.size())},
          {"local", endpoint_text(first.local)},
          {"peer", endpoint_text(first.peer)},
          {"fd", std::int64_t{first.fd}},
          {"peer_pid", std::int64_t{group.peer.pid}},
          {"peer_program", group.peer.program},
          {"peer_uid", group.peer.uid == kNobodys ? std::int64_t{-1} : std::int64_t{group.peer.uid}},
          {"peer_other_namespaces", group.peer.other_namespaces},
          {"peer_library", group.peer.has_library},
          {"peer_version", group.peer.version.text},
          {"peer_layout", std::int64_t{group.peer.version.layout}}};
}

/// Does this reason come from the other end, so that what is known of that helps?
bool is_about_peer(std::uint32_t reason) {
  const auto is = [reason](Reason r) { return reason == static_cast<std::uint32_t>(r) + 1; };
  return is(Reason::kPeerAbsent) || is(Reason::kPeerUid) || is(Reason::kPeerUnknown) || is(Reason::kPeerVersion);
}

Finding explain_plain(const Group& group, std::uint32_t reason, const ProcessFacts& process) {
  const std::string slug = reason_slug(reason);
  Finding found{"streams", slug, Level::kWarn, "", reason_remedy(reason), group_facts(group, "plain", slug)};
  found.sentence = fmt::format("{} stay{} on TCP: {}", named(group.streams), group.streams.size() == 1 ? "s" : "",
                               reason_sentence(reason));
  if (!can_be_helped(found.remedy)) found.level = Level::kNote;
  if (is_about_peer(reason)) {
    const Explanation about = explain_peer(group.peer, process);
    found.sentence += " " + about.sentence;
    if (!about.remedy.empty()) found.remedy = about.remedy;
  } else if (group.peer.pid != 0) {
    found.sentence += fmt::format(" The other end is {}.", group.peer.title());
  }
  return found;
}

/// Not decided yet; but what stands against it can be seen already.
Finding explain_candidates(const Group& group, const ProcessFacts& process) {
  Finding found{"streams", "candidate", Level::kOk, "", "", group_facts(group, "candidate", "")};
  const char* s = group.streams.size() == 1 ? "s" : "";
  Explanation about = explain_port(*group.streams.front(), group.peer, process);
  if (about.reason.empty() && group.peer.known) about = explain_peer(group.peer, process);
  if (!about.reason.empty()) {
    found.level = Level::kWarn;
    found.name = about.reason;
    found.sentence = fmt::format("{} will stay on TCP. {}", named(group.streams), about.sentence);
    found.remedy = about.remedy;
    return found;
  }
  found.sentence = fmt::format("{} move{} to shared memory when a few messages have gone over {}.",
                               named(group.streams), s, *s != '\0' ? "it" : "them");
  if (group.peer.known)
    found.sentence += fmt::format(" The other end is {}, which has the library.", group.peer.title());
  return found;
}

Finding tell_shared(const Group& group) {
  Finding found{"streams", "shared", Level::kOk, "", "", group_facts(group, "shared", "")};
  found.sentence = fmt::format("{} share{} memory with {}.", named(group.streams), group.streams.size() == 1 ? "s" : "",
                               group.peer.known ? group.peer.title() : "a process that this user cannot see");
  return found;
}

Finding explain(const Key& key, const Group& group, const ProcessFacts& process) {
  switch (std::get<RowMode>(key)) {
    case RowMode::kShared:
      return tell_shared(group);
    case RowMode::kPlain:
      return explain_plain(group, std::get<std::uint32_t>(key), process);
    default:
      return explain_candidates(group, process);
  }
}

Findings check_connections(const PageContent& page, const ProcessFacts& process, const Neighbourhood& around) {
  std::map<Key, Group> groups;
  for (const StreamInfo& stream : page.streams) {
    const Peer peer = around.peer_of(process.pid, stream);
    Group& group = groups[key_of(stream, peer)];
    group.streams.push_back(&stream);
    group.peer = peer;
  }
  Findings findings;
  for (const auto& [key, group] : groups) findings.push_back(explain(key, group, process));
  std::stable_sort(findings.begin(), findings.end(),
                   [](const Finding& a, const Finding& b) { return a.level > b.level; });
  if (groups.empty())
    findings.push_back({"streams", "none", Level::kOk, "It has no TCP connection at the moment.", "", {}});
  if (page.rows_missing > 0) {
    findings.push_back({"streams",
                        "not-shown",
                        Level::kNote,
                        fmt::format("{} more connections have no row on its status page.", page.rows_missing),
                        "",
                        {{"count", std::int64_t{page.rows_missing}}}});
  }
  return findings;
}

}  // namespace

Findings check_live(ProcessFacts* process) {
  const Neighbourhood around;
  const ProcessStatus* status = around.status_of(process->pid);
  if (status == nullptr) {
    if (settings_of(process->environment).disabled) return {};
    return {{"streams", "none", Level::kOk, "It has made no TCP connection so far.", "", {}}};
  }
  if (!status->content) {
    return {
        {"streams",
         "version",
         Level::kNote,
         fmt::format(
             "Its status page is of version {}, and this mpklink reads version {}: its connections cannot be shown.",
             status->version, kStatusVersion),
         "Use the mpklink that came with its library, or: " + restart_advice(*process),
         {{"version", std::int64_t{status->version}}}}};
  }
  process->version = {status->content->library_version, status->content->layout_version};
  Findings findings = {check_guard_of(*status->content, *process)};
  for (Finding& f : check_connections(*status->content, *process, around)) findings.push_back(std::move(f));
  return findings;
}

Findings check_visit(pid_t visitor, std::uint16_t from, const Endpoint& to) {
  ProcessFacts client = look_at(visitor);
  const Neighbourhood around;
  const ProcessStatus* status = around.status_of(visitor);
  const auto fail = [&](const std::string& sentence, const std::string& remedy) {
    return Finding{"connection", "library", Level::kFail, sentence, remedy, {{"peer", endpoint_text(to)}}};
  };
  if (client.library.path.empty())
    return {fail("The library did not get into the client of this test.", "mpklink doctor")};
  if (status == nullptr || !status->content)
    return {fail("The library in the client of this test did not follow its connection.",
                 "Unset MPKLINK_DISABLE; then: mpklink doctor")};
  client.version = {status->content->library_version, status->content->layout_version};
  for (const StreamInfo& stream : status->content->streams) {
    if (stream.local.port != from || stream.peer.port != to.port) continue;
    const Group group{{&stream}, around.peer_of(visitor, stream)};
    Findings findings = {explain(key_of(stream, group.peer), group, client)};
    // The service's own view: its settings may keep the connection on TCP although ours do not.
    if (group.peer.row && group.peer.row->mode == RowMode::kPlain && stream.mode != RowMode::kPlain) {
      const Group other{{&*group.peer.row}, around.peer_of(group.peer.pid, *group.peer.row)};
      findings = {explain_plain(other, group.peer.row->reason, look_at(group.peer.pid))};
    }
    for (Finding& f : findings) f.section = "connection";
    return findings;
  }
  return {
      fail("The client's connection is on no status page.", "Please report it, with the output of: mpklink doctor")};
}

}  // namespace mpklink
