// SPDX-License-Identifier: MIT
// What one process shows of its streams to `mpklink ss`, `top`, `metrics`, `doctor` and `dump`, and how `off` and `dump` ask it for
// something: a memfd named kStatusName, one per process, kept open. Tools of the same user find it in /proc/PID/fd and map it.
//
// Invariants.
// * The library only writes what tools read, and only reads `Requests`, which tools write. What stands there, whoever wrote it,
//   can make a stream go back to TCP or copy its bytes to a socket of the same user: never more.
// * No payload, no addresses of memory. It lies outside of the guarded range, as it has to be writable without a gate.
// * A row is whole when its `sequence` is even and the same before and after it was read: then its addresses, ports, connector and since_ns
//   are one stream's. All else in it moves at any time.
// * It is made when the process first listens on TCP, or connects to or accepts from loopback. A forked child has one of its own from the
//   first operation on that it makes on a stream; it is gone with exec. Whoever the process was when it was made owns it, also after setuid.
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
  Atomic<std::uint32_t> sequence;  // odd while the row is taken or given back
  Atomic<std::uint32_t> mode;      // RowMode
  Atomic<std::uint32_t> reason;    // why plain, or why it came back: Reason + 1; 0: none
  Atomic<std::uint32_t> fd;        // a descriptor of this process that names it
  Atomic<std::uint64_t> local_address[2], peer_address[2];  // 16 bytes each, network order
  Atomic<std::uint32_t> ports;      // local << 16 | peer
  Atomic<std::uint32_t> connector;  // 1: this end called connect()
  Atomic<std::uint64_t> since_ns;   // CLOCK_MONOTONIC, when the row was taken
  // Counters, stored at the end of each operation, without a locked instruction: where two threads send (or receive) on one stream at once, one
  // of them may not be counted. In a forked child they begin at 0.
  alignas(64) Atomic<std::uint64_t> tx_bytes;  // what the program sent and received, over either path; a look (MSG_PEEK) does not count
  Atomic<std::uint64_t> rx_bytes;
  Atomic<std::uint64_t> tx_calls, rx_calls;
  Atomic<std::uint64_t> tcp_tx_bytes, tcp_rx_bytes;  // of these what went over TCP; the rest (never below 0) went through a ring
  Atomic<std::uint32_t> upgrades, revokes;
};
static_assert(sizeof(StatusRow) == 128);

// Counters of the process, as in the line of MPKLINK_STATS, but for what is said here.
// * upgraded, revoked, ring_returned, bells, sleeps, spin_hits, plain: at any time.
// * ring_tx, ring_rx, tcp_tx, tcp_rx: only of streams that had a row and have ended. Whoever wants to know them now adds those of the rows.
// * gates, gate_found_open: as of the last time that a stream came, ended or changed its mode.
template <class Word, class Bytes>
struct CountersOf {
  Word upgraded, revoked;
  Bytes ring_tx, ring_rx;
  Word ring_returned;
  Bytes tcp_tx, tcp_rx;
  Word bells, sleeps, spin_hits, gates, gate_found_open;
  Word tap_records, tap_dropped;  // messages of `dump`: sent, and not taken by its socket (or lost on the way there)
  Word plain[kStatusReasons];
};
using StatusCounters = CountersOf<Atomic<std::uint64_t>, Atomic<std::uint64_t>>;

enum Request : std::uint32_t {
  kRequestOff = 1,       // streams go back to TCP and new ones stay there: all, or those of `off_ports`
  kRequestOffPorts = 2,  // only streams one of whose ports is in `off_ports`
  kRequestTap = 4,       // bytes are copied to the abstract SOCK_SEQPACKET socket `tap_name`
};

// Written by tools, read by the library. A process sees them at its next operation on a stream: one that sleeps in poll, epoll_wait or recv goes
// on sleeping, and what it then wakes for is not the next operation yet.
// Off: a stream that is shared leaves its rings within the next few operations; it and all that are met meanwhile stay on TCP to their end
// (reason switched-off), also after `on`, which is `wanted` without kRequestOff; streams made after that are upgraded as ever.
// Tap: where nobody listens any more, the library clears kRequestTap itself.
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
  kReset = 3,   // the connection was reset
};
constexpr std::uint32_t kTapMagic = 0x504b504d;
constexpr std::size_t kTapPayload = 16384;
struct TapRecord {
  std::uint32_t magic;
  TapKind kind;
  std::uint64_t time_ns;         // CLOCK_REALTIME
  std::uint64_t offset;          // of the first byte in this direction, of what this process moved, counted from 0, over both paths
  std::uint64_t dropped;         // records of this process that were not taken before this one
  std::uint32_t pid, row;        // row: number of the stream's row, to tell apart connections that reuse addresses
  std::uint32_t length;          // bytes of payload
  std::uint32_t outgoing;        // 1: sent by this process; 0: received by it
  std::uint8_t local[16], peer[16];
  std::uint16_t local_port, peer_port;
  std::uint8_t connector;
  std::uint8_t shared;           // 1: the stream is shared; its first and last bytes may go over TCP all the same
  std::uint8_t reserved[2];
};
static_assert(sizeof(TapRecord) == 88);

}  // namespace mpklink
