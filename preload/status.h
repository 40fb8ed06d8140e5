// SPDX-License-Identifier: MIT
// The library's side of shm/status.h: what this process shows to tools, and what they ask of it.
//
// The page is made once and stays where it is until the process ends. In a forked child other memory takes its place at once, before any
// thread can store into it: a child that goes on in the middle of its parent's operation (fork in a signal handler) stores into that.
// A stream's row has the stream's own number in the slab: it is nobody else's as long as the stream's memory is not.
#pragma once
#include <sys/socket.h>

#include "preload/stream.h"
#include "shm/status.h"

namespace mpklink {

struct Addresses;

extern StatusRow g_no_row;         // of streams that are not shown; nobody reads it
extern StatusRow g_inherited_row;  // of streams that came over a fork: they get one of this process's when they are used here

StatusHeader* shown_page();  // null: there is none

void show_process();  // makes the page, unless there is one or cannot be one
void show_guard();    // it has been decided
void show_stream(int fd, Stream* s, const Addresses& addresses);  // once; takes its row
void show_if_loopback(int fd, Stream* s, const sockaddr* peer, socklen_t size);  // a new connection; `peer` is the program's
void show_inherited(int fd, Stream* s);
void hide_stream(Stream* s);  // it has ended: the row is free
void show_state(Stream* s);   // its state or `why` has changed
void show_upgrade(Stream* s);
void show_revoke(Stream* s);
void show_other_fd(int closed, Stream* s);  // one of several descriptors was closed

// A tool asks for something, or this is a forked child that nothing of ours has seen yet. Before an operation, no lock held.
void attend(int fd, Stream* s);
// Returns Requests::wanted, or a word in its place, for a look when the operation is over.
inline const Atomic<std::uint32_t>* look_at_requests(int fd, Stream* s) {
  const Atomic<std::uint32_t>* word = own_memory().wanted.load_acquire();          // SYNC: status page
  if (__builtin_expect(word != nullptr && word->load_relaxed() == 0, 1)) return word;  // relaxed: a wish
  attend(fd, s);
  return own_memory().wanted.load_acquire();  // there is one now
}

// One of several threads that do so at once may be lost; none of them waits for the others.
inline void add_to(Atomic<std::uint64_t>* count, std::uint64_t n) {
  count->store_relaxed(count->load_relaxed() + n);  // relaxed: see above
}
// This process's, or one that is nobody's. Not kept over a call: a handler in it may fork.
inline StatusRow* row_now(const Stream* s) { return s->row.load_relaxed(); }  // relaxed: whole or none
// Streams that are not shown share nothing, or their threads would take a line from each other with each call.
inline void show_sent(const Stream* s, std::uint64_t n) {
  StatusRow* const row = row_now(s);
  if (__builtin_expect(row == &g_no_row, 0)) return;
  add_to(&row->tx_bytes, n);
  add_to(&row->tx_calls, 1);
}
inline void show_received(const Stream* s, std::uint64_t n) {
  StatusRow* const row = row_now(s);
  if (__builtin_expect(row == &g_no_row, 0)) return;
  add_to(&row->rx_bytes, n);
  add_to(&row->rx_calls, 1);
}
inline void show_tcp_sent(const Stream* s, std::uint64_t n) {
  if (row_now(s) != &g_no_row) add_to(&row_now(s)->tcp_tx_bytes, n);
}
inline void show_tcp_received(const Stream* s, std::uint64_t n) {
  if (row_now(s) != &g_no_row) add_to(&row_now(s)->tcp_rx_bytes, n);
}

void status_move_hidden(int from, int to);  // our descriptor has another number now
void status_forked_child();

}  // namespace mpklink
