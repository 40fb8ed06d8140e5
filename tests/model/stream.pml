// SPDX-License-Identifier: MIT
// One direction of a stream: switch to the ring, sleep, freeze by either end, return to TCP, close; once more with a new channel.
//
// The sender sends the bytes 1 … BYTES, one a call, blocking; after any of them it may wait for the peer's reply. The receiver reads
// until EOF. A second thread at each end (R_FREEZE, S_FREEZE: how often at most) freezes at any moment. Errors: a byte out of order, bytes
// missing at EOF, and, as an invalid end state, a thread that waits for ever. Rules that a -D leaves out: see model.sh.
//
// Private words (s_*, r_*) belong to their process and are touched under its lock. What runs between two shared accesses is atomic.

#ifndef BYTES
#define BYTES 4
#endif
#ifndef RING
#define RING 1       /* capacity in bytes */
#endif
#ifndef TCP_ROOM
#define TCP_ROOM 2   /* of both socket buffers together */
#endif
#ifndef CHANNELS
#define CHANNELS 1
#endif
#ifndef R_FREEZE
#define R_FREEZE 0
#endif
#ifndef S_FREEZE
#define S_FREEZE 0
#endif

// Shared words: six of each channel, then those of the two sides, then the private locks.
#define HEAD(c) (6 * (c))           /* bytes taken, top bit FROZEN */
#define TAIL(c) (6 * (c) + 1)
#define SWITCH_AT(c) (6 * (c) + 2)  /* 0: not yet; a switch always has a byte before it */
#define WANT_SPACE(c) (6 * (c) + 3)
#define RETURNED(c) (6 * (c) + 4)
#define ACCEPTED(c) (6 * (c) + 5)   /* the receiver reads by this channel */
#define S_ARMED (6 * CHANNELS)
#define R_ARMED (6 * CHANNELS + 1)
#define LOOK_HERE (6 * CHANNELS + 2)
#define S_LOCK (6 * CHANNELS + 3)
#define R_LOCK (6 * CHANNELS + 4)
#define SHUT_WORD (6 * CHANNELS + 5)  /* the receiver's socket is shut down both ways */
#define MEMORY_WORDS (6 * CHANNELS + 6)
#define FROZEN 128
#define POSITION(head) ((head) & 127)

#include "tso.pml"

// Ring bytes lie outside the store buffers: they are stored before the exchange of TAIL, and nobody looks at them earlier.
byte ring[CHANNELS * RING];
#define AT(c, position) ring[(c) * RING + (position) % RING]

// The kernel: TCP, and an eventfd at each side.
chan tcp = [TCP_ROOM] of { byte };
bool fin, s_bell, r_bell;
bool refused, reset;  // SHUT: TCP delivers what it has and drops the rest; and the sender has been told
bool hung_up;         // SHUT: the receiver, having read its end, closes: that wakes whoever sleeps

mtype = { TCP, DRAINING, IN_RING, RETURNING, TCP_AGAIN, SPACE, ROOM, REPLY, NOTHING };

mtype s_path = TCP;
byte s_channel, s_tail, s_cursor, s_tcp, s_left, s_sent;
bool s_closed;

mtype r_path = TCP;
byte r_channel, r_head, r_tcp, r_received;

byte promised;  // SHUT: sent before the shutdown began
bool crash;  // CRASH: the sending process is killed

// Both ends ------------------------------------------------------------------------------------------------------------

// `which` was published, and the store buffer is empty or what is in it does not matter to the sleeper.
inline ring_if_armed(armed, bell) {
  if
  :: LOAD(armed) == 0
  :: else ->
     XCHG(armed, 0, old);
     if
     :: old -> atomic { FENCED -> bell = true; old = 0 }
     :: else
     fi
  fi
}

// To all who sleep in the sender's process: look at this stream.
inline call_sender() {
#ifdef HINT_STORED
  STORE(LOOK_HERE, 1);
#elif !defined(NO_HINT)
  XCHG(LOOK_HERE, 1, old);
#endif
  old = 0;
#ifndef FREEZE_WITHOUT_BELL
  ring_if_armed(S_ARMED, s_bell)
#endif
}

// The processes; the sender is number 0 ----------------------------------------------------------------------------------

#include "sender.pml"
#include "receiver.pml"

// Those who freeze ------------------------------------------------------------------------------------------------------

#if S_FREEZE
inline freeze_sending() {
#ifdef RETURN_BEFORE_FREEZE
  atomic { s_cursor = POSITION(LOAD(HEAD(s_channel))); if :: s_path == IN_RING -> s_path = RETURNING :: else fi };
  give_back();
#endif
#ifdef CURSOR_FROM_OLD_HEAD
  head = LOAD(HEAD(s_channel));
  atomic { FENCED -> mem[HEAD(s_channel)] = mem[HEAD(s_channel)] | FROZEN; s_path = RETURNING; s_cursor = POSITION(head) };
#else
  atomic { FENCED -> mem[HEAD(s_channel)] = mem[HEAD(s_channel)] | FROZEN };
  look_at_head();
#endif
  give_back();
#ifdef FREEZER_STAYS
  do
  :: s_path == RETURNING -> nfull(tcp); give_back()
  :: else -> break
  od;
#endif
#ifndef NO_OWN_BELL
  call_sender()  // our own threads, asleep for space that will never come or without an eye on TCP's room
#endif
}

active proctype sender_freezes() {
  byte head, old, times;
  {
    do
    :: times < S_FREEZE ->
       times++;
       LOCK(S_LOCK);
       if
       :: s_closed || s_path == RETURNING || s_path == TCP_AGAIN
       :: else -> freeze_sending()
       fi;
       UNLOCK(S_LOCK)
    :: break
    od;
    skip
  } unless { crash -> skip }
}
#endif

#if R_FREEZE
active proctype receiver_freezes() {
  byte old, times;
  do
  :: times < R_FREEZE ->
     times++;
     LOCK(R_LOCK);
     if
     :: r_path == TCP_AGAIN
     :: else ->
        atomic { FENCED -> mem[HEAD(r_channel)] = mem[HEAD(r_channel)] | FROZEN; r_path = TCP_AGAIN };
        call_sender()
     fi;
     UNLOCK(R_LOCK)
  :: break
  od
}
#endif

#ifdef SHUT
// The receiving process shuts its socket down both ways, and says so to the sender.
active proctype receiver_shuts() {
  atomic { FENCED -> promised = s_sent };
#ifdef SHUT_WORD_EARLY
  atomic {
    FENCED ->
    if
    :: mem[HEAD(0)] & FROZEN
    :: else -> mem[SHUT_WORD] = 1
    fi
  };
#endif
  refused = true;
  atomic { FENCED -> mem[SHUT_WORD] = 1 }
}
#endif

#ifdef CRASH
active proctype killer() { crash = true }
#endif

active proctype store_buffers() {
end:
  do
  :: drain(0)
  :: drain(1)
  :: drain(2)
  :: drain(3)
  od
}
