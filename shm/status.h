// SPDX-License-Identifier: MIT
// What one process shows of its streams to `mpklink ss`, `top`, `metrics`, `doctor` and `dump`, and how `off` and `dump` ask it for
// something: a memfd named kStatusName, one per process, kept open. Tools of the same user find it in /proc/PID/fd and map it.
//
// Invariants.
// * The library only writes what tools read, and only reads `Requests`, which tools write. What stands there, whoever wrote it,
//   can make a stream go back to TCP or copy its bytes to a socket of the same user: never more.
// * No payload, no addresses of memory. It lies outside of the guarded range, as it has to be writable without a gate.
// * A row is whole when its `sequence` is even and the same before and after it was read; counters in it move at any time.
// * Tools take any content: lengths and numbers are bounds-checked, strings are cut at their array.
//
// kStatusVersion: bump it whenever an offset or a meaning changes. A tool of another version says so and shows only that.
#pragma once
#include <cstddef>
#include <cstdint>

#include "shm/atomic.h"

namespace mpklink {

constexpr char kStatusName[] = "mpklink-status";  // /proc/PID/fd/N -> "/memfd:mpklink-status (deleted)"
constexpr std::uint64_t kStatusMagic = 0x3153544154534b4d;  // "MKSTATS1"
constexpr std::uint32_t kStatusVersion = 1;
constexpr std::uint32_t kStatusRows = 16384;  // streams that are shown; more are counted in rows_missing
constexpr std::uint32_t kStatusReasons = 64;  // at most so many reasons (preload/reasons.def), in their order

enum class RowMode : std::uint32_t {
  kFree = 0,
  kCandidate = 1,  // on TCP, may be upgraded
  kUpgrading = 2,  // on TCP, an upgrade is under way
  kShared = 3,     // its bytes go through shared memory (guarded or not: StatusHeader::guard)
  kPlain = 4,      // on TCP for good: `reason`
};

// One stream. Addresses as sockaddr_in6 has them, IPv4 as v4-mapped.
struct alignas(64) StatusRow {
  Atomic<std::uint32_t> sequence;  // odd while all but the counters is being changed
  Atomic<std::uint32_t> mode;      // RowMode
  Atomic<std::uint32_t> reason;    // why plain, or why it came back: Reason + 1; 0: none
  Atomic<std::uint32_t> fd;        // a descriptor of this process that names it
  Atomic<std::uint64_t> local_address[2], peer_address[2];  // 16 bytes each, network order
  Atomic<std::uint32_t> ports;      // local << 16 | peer
  Atomic<std::uint32_t> connector;  // 1: this end called connect()
  Atomic<std::uint64_t> since_ns;   // CLOCK_MONOTONIC, when the row was taken
  Atomic<std::uint32_t> upgrades, revokes;
  // Counters, stored with each operation.
  alignas(64) Atomic<std::uint64_t> tx_bytes;  // what the program sent and received, over either path
  Atomic<std::uint64_t> rx_bytes;
  Atomic<std::uint64_t> tx_calls, rx_calls;
};

// Counters of the process, as in the line of MPKLINK_STATS.
struct StatusCounters {
  Atomic<std::uint64_t> upgraded, revoked, ring_tx, ring_rx, ring_returned, tcp_tx, tcp_rx, bells, sleeps, spin_hits, gates, gate_found_open;
  Atomic<std::uint64_t> tap_records, tap_dropped;  // messages of `dump`: sent, and not taken by its socket
  Atomic<std::uint64_t> plain[kStatusReasons];
};

enum Request : std::uint32_t {
  kRequestOff = 1,       // streams go back to TCP and new ones stay there: all, or those of `off_ports`
  kRequestOffPorts = 2,  // only streams one of whose ports is in `off_ports`
  kRequestTap = 4,       // bytes are copied to the abstract SOCK_SEQPACKET socket `tap_name`
};

// Written by tools, read by the library.
struct alignas(64) Requests {
  Atomic<std::uint32_t> wanted;    // Request, 0 at rest: the one word that is looked at with each operation
  Atomic<std::uint32_t> tap_length;  // of tap_name, which is complete before kRequestTap is set
  Atomic<std::uint64_t> tap_name[8];  // 64 bytes, without the leading zero byte
  Atomic<std::uint64_t> tap_port;     // 0: all; else only streams with this port at one end
  Atomic<std::uint64_t> off_ports[1024];  // a bit per port
};

struct StatusHeader {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t header_bytes;  // sizeof(StatusHeader), where the rows begin
  std::uint32_t row_bytes, rows;
  Atomic<std::uint32_t> pid;         // as the process sees itself (its pid namespace)
  Atomic<std::uint32_t> layout_version;  // kLayoutVersion: peers of others stay on TCP
  char library_version[16];
  Atomic<std::uint32_t> guard;       // 0 not decided (nothing upgraded yet), 1 off, 2 pkey, 3 mprotect, 4 required and missing
  char guard_why[32];                // why there is none ("no-pku"), or empty
  Atomic<std::uint32_t> disabled;    // MPKLINK_DISABLE
  Atomic<std::uint32_t> rows_used;   // rows below this number may be in use
  Atomic<std::uint32_t> rows_missing;  // streams for which there was no row
  Atomic<std::uint64_t> started_ns;  // CLOCK_MONOTONIC, when the memfd was made
  StatusCounters counters;
  Requests requests;
};

constexpr std::size_t kStatusBytes = sizeof(StatusHeader) + sizeof(StatusRow) * kStatusRows;

// A message to the tap: this header, then `length` bytes of payload. One operation of the program's may be several.
enum class TapKind : std::uint32_t {
  kData = 1,    // `length` bytes of the stream at `offset`
  kEnd = 2,     // this direction has ended (FIN: shutdown, close, or read as the end)
  kReset = 3,
};
constexpr std::uint32_t kTapMagic = 0x504b504d;
constexpr std::size_t kTapPayload = 16384;
struct TapRecord {
  std::uint32_t magic;
  TapKind kind;
  std::uint64_t time_ns;         // CLOCK_REALTIME
  std::uint64_t offset;          // of the first byte in this direction of the connection, counted from 0, over both paths
  std::uint64_t dropped;         // records of this process that were not taken before this one
  std::uint32_t pid, row;        // row: number of the stream's row, to tell apart connections that reuse addresses
  std::uint32_t length;          // bytes of payload
  std::uint32_t outgoing;        // 1: sent by this process; 0: received by it
  std::uint8_t local[16], peer[16];
  std::uint16_t local_port, peer_port;
  std::uint8_t connector;
  std::uint8_t shared;           // 1: went through the ring
  std::uint8_t reserved[2];
};
static_assert(sizeof(TapRecord) == 88);

}  // namespace mpklink
