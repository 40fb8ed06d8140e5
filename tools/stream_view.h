// SPDX-License-Identifier: MIT
// What `ss`, `top`, `metrics` and `off` say about streams, from what was read: which to show, in which words, and how much lies in a ring,
// which takes both ends. No system calls.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tools/json_object.h"
#include "tools/status_reader.h"

namespace mpklink {

/// "candidate", "upgrading", "shared", "plain"
const char* state_text(RowMode mode);
/// "guarded" and "shared": its bytes go through shared memory, with and without a guard; "tcp".
const char* mode_text(RowMode mode, const PageContent& content);
/// "pkey", "mprotect", "off", "undecided", "required and missing", …
std::string guard_text(const PageContent& content);
/// "123", "4.0K", "17M": at most five characters.
std::string short_number(std::uint64_t number);

/// By what way bytes went, of streams that are open and that have ended: the process counts only the latter itself.
struct PathBytes {
  std::uint64_t ring_tx = 0, ring_rx = 0, tcp_tx = 0, tcp_rx = 0;
};
PathBytes path_bytes(const PageContent& content);

/// A stream and whose it is; valid as long as the statuses that it was taken from.
struct StreamView {
  const ProcessStatus* process = nullptr;
  const StreamInfo* stream = nullptr;
  std::optional<std::uint64_t> send_queue, receive_queue;  // sent and not read yet by the other end; only if that is visible, too
};

struct StreamFilter {
  std::vector<int> ports;  // at either end
  std::vector<std::string> modes, reasons;
  bool matches(const ProcessStatus& process, const StreamInfo& stream) const;
};

/// In the order of processes and rows.
std::vector<StreamView> view_streams(const std::vector<ProcessStatus>& processes, const StreamFilter& filter);

/// "5 streams (3 guarded, 2 tcp) of 2 processes"
std::string totals_text(const std::vector<StreamView>& streams, std::size_t processes);
/// How to go on with a process whose library has another version than this tool.
std::string other_version_text(const ProcessStatus& process);

/// The members that `ss` and `top` have in common.
JsonObject process_json(const ProcessStatus& process);
JsonObject stream_json(const StreamView& view);

}  // namespace mpklink
