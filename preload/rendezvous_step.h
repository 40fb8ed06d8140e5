// SPDX-License-Identifier: MIT
// Between rendezvous.cc (when a step is due), rendezvous_connect.cc and rendezvous_accept.cc (what each end does): what both ends share.
// Every function takes a stream whose step lock the caller holds.
#pragma once
#include "preload/eligibility.h"
#include "preload/pair.h"
#include "preload/rendezvous.h"

namespace mpklink {

// What the next step is. The connector: meet, hello, offer, await. The acceptor (which listens at once): accept, take.
enum Step : std::uint8_t { kBegin, kMeet, kHello, kOffer, kAwaitAccept, kAccept, kTake };

void next_try_in(Stream* s, std::uint32_t operations);
void drop_socket(Stream* s);
void give_up(Stream* s, Reason reason);
// Nobody there, or nothing arrived yet: again later, with growing distance.
void retry_or_give_up(Stream* s, Reason reason);
Reason reason_of(int error);
Reason segment_reason(int error);  // of memory to be shared

ProcessId random_id();
ProcessId own_id();
bool send_hello(int socket);
int unix_socket();  // not hidden yet; -1 with errno
// The uid that SO_PEERCRED shows must be the owner of the other end of the TCP connection, and both sockets of one network namespace.
bool peer_allowed(int fd, const Addresses& addresses, int socket, Stream* s, Reason* why);  // *why when not

// Takes both locks and closes the kernel path. False: some thread is still inside a kernel call on the socket. The stream
// then stays in kSettling, where operations no longer block inside such calls, so that a later claim finds none.
bool claim(Stream* s);
// The same where a channel comes next: the guard is decided, and no registration is in the way. False: not now, or given up.
bool claim_for_channel(Stream* s);
void settle(Stream* s, State state);  // gives the locks back with the stream in `state`
void settle_plain(Stream* s, Reason reason);
// Sets up the channel's memory as this side's. Claimed. The mapping holds the core page, then the memfd.
void attach_channel(Stream* s, unsigned char* at, std::uint64_t capacity, std::uint32_t slot, std::uint32_t side, Pair* pair);
// Back to TCP. Claimed or both locks held; the caller releases the channel (release_stream) outside of the locks.
void detach_channel(Stream* s);
// The offer could not be made or taken after all: no trace of the channel is left.
void abandon_offer(Stream* s, bool new_pair, Reason reason);
void read_flags(int fd, Stream* s);    // O_NONBLOCK
void read_options(int fd, Stream* s);  // and the timeouts

void connector_meet(int fd, Stream* s, const Addresses& addresses);
void connector_meet_again(int fd, Stream* s);
void connector_hello(Stream* s);
void connector_offer(int fd, Stream* s);
void connector_await(int fd, Stream* s);
void acceptor_listen(Stream* s, const Addresses& addresses);
void acceptor_accept(int fd, Stream* s);
void acceptor_take(int fd, Stream* s);

}  // namespace mpklink
