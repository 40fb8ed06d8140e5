// SPDX-License-Identifier: MIT
#include "tools/status_page.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "preload/reasons.h"

namespace mpklink {
namespace {

constexpr int kReadTries = 64;  // of a row that is being changed; a process stopped in the middle of it never finishes

/// The part that every version begins with.
constexpr std::size_t kPrefixBytes = offsetof(StatusHeader, header_bytes);

std::string text_of(const char* bytes, std::size_t size) {
  return {bytes, strnlen(bytes, size)};
}

Endpoint endpoint(const Atomic<std::uint64_t> (&address)[2], std::uint32_t port) {
  Endpoint end;
  for (std::size_t i = 0; i < 2; ++i) {
    const std::uint64_t half = address[i].load_relaxed();  // relaxed: ordered by the row's sequence
    memcpy(end.address.data() + 8 * i, &half, 8);
  }
  end.port = static_cast<std::uint16_t>(port);
  return end;
}

StreamInfo copy_row(const StatusRow& row) {
  // relaxed throughout: ordered by the sequence around it; counters move on their own
  StreamInfo stream;
  stream.mode = static_cast<RowMode>(row.mode.load_relaxed());
  stream.reason = row.reason.load_relaxed();
  stream.fd = row.fd.load_relaxed();
  const std::uint32_t ports = row.ports.load_relaxed();
  stream.local = endpoint(row.local_address, ports >> 16);
  stream.peer = endpoint(row.peer_address, ports & 0xffff);
  stream.connector = row.connector.load_relaxed() != 0;
  stream.since_ns = row.since_ns.load_relaxed();
  stream.upgrades = row.upgrades.load_relaxed();
  stream.revokes = row.revokes.load_relaxed();
  stream.tx_bytes = row.tx_bytes.load_relaxed();
  stream.rx_bytes = row.rx_bytes.load_relaxed();
  stream.tx_calls = row.tx_calls.load_relaxed();
  stream.rx_calls = row.rx_calls.load_relaxed();
  stream.tcp_tx_bytes = row.tcp_tx_bytes.load_relaxed();
  stream.tcp_rx_bytes = row.tcp_rx_bytes.load_relaxed();
  return stream;
}

/// Nothing: free, impossible, or never at rest.
std::optional<StreamInfo> read_row(const StatusRow& row) {
  for (int i = 0; i < kReadTries; ++i) {
    const std::uint32_t before = row.sequence.load_acquire();  // SYNC: row written
    if (before % 2 != 0) continue;
    StreamInfo stream = copy_row(row);
    thread_fence_seq_cst();                               // the copy before the second look
    if (row.sequence.load_relaxed() != before) continue;  // relaxed: behind the fence
    if (stream.mode == RowMode::kFree || stream.mode > RowMode::kPlain) return std::nullopt;
    return stream;
  }
  return std::nullopt;
}

ProcessCounters copy_counters(const StatusCounters& from) {
  // relaxed: numbers that move on their own
  ProcessCounters to;
  to.upgraded = from.upgraded.load_relaxed();
  to.revoked = from.revoked.load_relaxed();
  to.ring_tx = from.ring_tx.load_relaxed();
  to.ring_rx = from.ring_rx.load_relaxed();
  to.ring_returned = from.ring_returned.load_relaxed();
  to.tcp_tx = from.tcp_tx.load_relaxed();
  to.tcp_rx = from.tcp_rx.load_relaxed();
  to.bells = from.bells.load_relaxed();
  to.sleeps = from.sleeps.load_relaxed();
  to.spin_hits = from.spin_hits.load_relaxed();
  to.gates = from.gates.load_relaxed();
  to.gate_found_open = from.gate_found_open.load_relaxed();
  to.tap_records = from.tap_records.load_relaxed();
  to.tap_dropped = from.tap_dropped.load_relaxed();
  for (std::size_t i = 0; i < kStatusReasons; ++i) to.plain[i] = from.plain[i].load_relaxed();
  return to;
}

std::array<std::uint64_t, 4> bytes_of_ended(const ProcessCounters& counters) {
  return {counters.ring_tx, counters.ring_rx, counters.tcp_tx, counters.tcp_rx};
}

bool layout_is_ours(const StatusHeader& header) {
  return header.header_bytes == sizeof(StatusHeader) && header.row_bytes == sizeof(StatusRow) && header.rows == kStatusRows;
}

}  // namespace

// ---- the page ----

std::optional<StatusPage> StatusPage::map(int fd, Access access) {
  struct stat st;
  if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size < static_cast<off_t>(kPrefixBytes)) return std::nullopt;
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) return std::nullopt;
  // Of another version only the prefix is looked at, which is in the first page of whatever it is.
  const std::size_t bytes = std::min(static_cast<std::size_t>(st.st_size), kStatusBytes);
  const int protection = access == Access::kRequest ? PROT_READ | PROT_WRITE : PROT_READ;
  void* memory = mmap(nullptr, bytes, protection, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return std::nullopt;
  auto* header = static_cast<StatusHeader*>(memory);
  // Read once: the owner may change it under us.
  StatusPage page(header, bytes, __atomic_load_n(&header->version, __ATOMIC_RELAXED));
  if (header->magic != kStatusMagic) return std::nullopt;
  if (page.same_version() && (bytes < kStatusBytes || !layout_is_ours(*header))) return std::nullopt;
  return page;
}

StatusPage::StatusPage(StatusPage&& other) noexcept
    : header_(std::exchange(other.header_, nullptr)), bytes_(other.bytes_), version_(other.version_) {}

StatusPage& StatusPage::operator=(StatusPage&& other) noexcept {
  std::swap(header_, other.header_);
  std::swap(bytes_, other.bytes_);
  std::swap(version_, other.version_);
  return *this;
}

StatusPage::~StatusPage() {
  if (header_ != nullptr) munmap(header_, bytes_);
}

std::uint32_t StatusPage::pid() const {
  return header_->pid.load_relaxed();  // relaxed: stored once
}

PageContent StatusPage::read() const {
  // relaxed: numbers that move on their own
  PageContent content;
  content.pid = pid();
  content.layout_version = header_->layout_version.load_relaxed();
  content.library_version = text_of(header_->library_version, sizeof header_->library_version);
  content.guard = header_->guard.load_relaxed();
  content.guard_why = text_of(header_->guard_why, sizeof header_->guard_why);
  content.disabled = header_->disabled.load_relaxed() != 0;
  content.rows_missing = header_->rows_missing.load_relaxed();
  content.started_ns = header_->started_ns.load_relaxed();
  // The bytes of a stream that ends move from its row to the counters: they are to be found in one of the two.
  for (int i = 0; i < kReadTries; ++i) {
    content.counters = counters();
    content.streams = streams();
    if (bytes_of_ended(counters()) == bytes_of_ended(content.counters)) break;
  }
  return content;
}

ProcessCounters StatusPage::counters() const {
  return copy_counters(header_->counters);
}

std::vector<StreamInfo> StatusPage::streams() const {
  const auto* rows = reinterpret_cast<const StatusRow*>(header_ + 1);
  const std::uint32_t used = std::min(header_->rows_used.load_acquire(), kStatusRows);  // SYNC: rows_used raised
  std::vector<StreamInfo> streams;
  for (std::uint32_t i = 0; i < used; ++i) {
    if (std::optional<StreamInfo> stream = read_row(rows[i])) {
      stream->row = i;
      streams.push_back(*stream);
    }
  }
  return streams;
}

// ---- text ----

bool is_ipv4(const std::array<std::uint8_t, 16>& address) {
  static constexpr std::uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  return memcmp(address.data(), kMapped, sizeof kMapped) == 0;
}

std::string address_text(const std::array<std::uint8_t, 16>& address) {
  char text[INET6_ADDRSTRLEN];
  const bool ipv4 = is_ipv4(address);
  inet_ntop(ipv4 ? AF_INET : AF_INET6, address.data() + (ipv4 ? 12 : 0), text, sizeof text);
  return text;
}

std::string endpoint_text(const Endpoint& end) {
  const char* format = is_ipv4(end.address) ? "{}:{}" : "[{}]:{}";
  return fmt::format(fmt::runtime(format), address_text(end.address), end.port);
}

namespace {

const ReasonText* text_of_reason(std::uint32_t reason) {
  return reason >= 1 && reason <= std::size(kReasonTexts) ? &kReasonTexts[reason - 1] : nullptr;
}

}  // namespace

std::string reason_slug(std::uint32_t reason) {
  const ReasonText* text = text_of_reason(reason);
  return text != nullptr ? text->slug : fmt::format("reason-{}", reason);
}

std::string reason_sentence(std::uint32_t reason) {
  const ReasonText* text = text_of_reason(reason);
  return text != nullptr ? text->sentence : "This tool does not know the reason: it is older than the library.";
}

std::string reason_remedy(std::uint32_t reason) {
  const ReasonText* text = text_of_reason(reason);
  return text != nullptr ? text->remedy : "Use the mpklink that came with the library.";
}

}  // namespace mpklink
