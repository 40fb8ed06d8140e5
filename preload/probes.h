// SPDX-License-Identifier: MIT
// Probes for bpftrace, perf and gdb (USDT, provider "mpklink"): a nop each, and a note in the file that says where it is and where its
// arguments are. tools/bpftrace has scripts for them. Without <sys/sdt.h> at compile time there are none.
//
//   upgrade(fd, row)    a stream is shared from now on
//   revoke(fd, reason)  a shared stream goes back to TCP; reason: the slug of reasons.def, or "peer": the other end asked
//   plain(fd, reason)   a stream stays on TCP, or goes back, for that reason
//   bell()              a peer is woken
//   sleep(), wake()     a thread goes to sleep in poll, epoll_wait, recv or send, and is back
//   ring__full(fd)      a send found no room in the ring
#pragma once
#ifdef MPKLINK_USDT
#include <sys/sdt.h>
#ifdef __clang__
#pragma clang diagnostic ignored "-Wgnu-zero-variadic-macro-arguments"  // of sdt.h's macros, which are expanded where a probe is
#endif
#define PROBE0(name) DTRACE_PROBE(mpklink, name)
#define PROBE1(name, a) DTRACE_PROBE1(mpklink, name, a)
#define PROBE2(name, a, b) DTRACE_PROBE2(mpklink, name, a, b)
#else
#define PROBE0(name) static_cast<void>(0)
#define PROBE1(name, a) static_cast<void>(a)
#define PROBE2(name, a, b) static_cast<void>(a), static_cast<void>(b)
#endif
