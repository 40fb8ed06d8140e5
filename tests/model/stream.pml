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
#define MEMORY_WORDS (6 * CHANNELS + 5)
#define FROZEN 128
#define POSITION(head) ((head) & 127)

#include "tso.pml"

// Ring bytes lie outside the store buffers: they are stored before the exchange of TAIL, and nobody looks at them earlier.
byte ring[CHANNELS * RING];
#define AT(c, position) ring[(c) * RING + (position) % RING]

// The kernel: TCP, and an eventfd at each side.
chan tcp = [TCP_ROOM] of { byte };
bool fin, s_bell, r_bell;

mtype = { TCP, DRAINING, IN_RING, RETURNING, TCP_AGAIN, SPACE, ROOM, REPLY, NOTHING };

mtype s_path = TCP;
byte s_channel, s_tail, s_cursor, s_tcp, s_left, s_sent;
bool s_closed;

mtype r_path = TCP;
byte r_channel, r_head, r_tcp, r_received;

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

// The sender -----------------------------------------------------------------------------------------------------------

// Send lock held. Looks at the head word; a freeze met in TCP or DRAINING has nothing to return (head == tail == 0).
inline look_at_head() {
  atomic {
    head = LOAD(HEAD(s_channel));
    if
    :: (head & FROZEN) && s_path != RETURNING && s_path != TCP_AGAIN -> s_path = RETURNING; s_cursor = POSITION(head)
    :: else
    fi
  }
}

// Send lock held. Gives back what TCP takes now.
inline give_back() {
  do
  :: atomic { s_path == RETURNING && s_cursor < s_tail && nfull(tcp) && FENCED ->
              tcp!AT(s_channel, s_cursor); s_cursor++; s_tcp++ }
  :: atomic { s_path == RETURNING && s_cursor == s_tail -> STORE(RETURNED(s_channel), 1); s_path = TCP_AGAIN; s_cursor = 0 }
  :: s_path != RETURNING || (s_cursor < s_tail && full(tcp)) -> break
  od
}

// After a return the sender may go on by a new channel that the receiver reads by already.
inline renew_sender() {
#if CHANNELS > 1
  if
#ifdef RENEW_UNASKED
  :: atomic { s_path == TCP_AGAIN && s_channel + 1 < CHANNELS -> s_channel++; s_path = TCP; s_tail = 0 }
#else
  :: atomic { s_path == TCP_AGAIN && s_channel + 1 < CHANNELS && LOAD(ACCEPTED(s_channel + 1)) -> s_channel++; s_path = TCP; s_tail = 0 }
#endif
  :: else
  fi;
  look_at_head();
  give_back()
#else
  skip
#endif
}

// Promises that the ring comes after the next one or two bytes.
inline begin_switch() {
  atomic {
#ifdef SWITCH_WITHOUT_BYTES
    s_path = IN_RING
#else
    if
    :: s_left = 1
    :: s_sent + 2 <= BYTES -> s_left = 2
    fi;
    s_path = DRAINING
#endif
  };
#ifndef SWITCH_AT_LATE
  STORE(SWITCH_AT(s_channel), s_tcp + s_left)
#endif
}

inline send_over_tcp() {
  if
  :: atomic { nfull(tcp) && FENCED -> s_sent++; tcp!s_sent; s_tcp++;
       if
       :: s_path == DRAINING -> s_left--;
          if
          :: s_left == 0 -> s_path = IN_RING
          :: else
          fi
       :: else
       fi }
  :: full(tcp) -> why = ROOM
  fi;
#ifdef SWITCH_AT_LATE
  if
  :: s_path == IN_RING && s_tail == 0 -> STORE(SWITCH_AT(s_channel), s_tcp)
  :: else
  fi
#endif
}

inline send_by_ring() {
  if
  :: s_tail - POSITION(head) < RING ->
#ifdef TAIL_STORED
     atomic { s_sent++; AT(s_channel, s_tail) = s_sent; s_tail++; STORE(TAIL(s_channel), s_tail) };
#else
     AT(s_channel, s_tail) = s_sent + 1;
     atomic { FENCED -> s_tail++; s_sent++; mem[TAIL(s_channel)] = s_tail; late = (mem[HEAD(s_channel)] & FROZEN) != 0 };
#endif
#ifndef NO_LOOK_AFTER_PUBLISH
     look_at_head();
     give_back();
#endif
     assert(!late || s_path != IN_RING);  // a byte published after the freeze must not stay where nobody reads
     late = false;
     ring_if_armed(R_ARMED, r_bell)
  :: else ->
#ifdef WISH_BEFORE_ARMED
     XCHG(WANT_SPACE(s_channel), 1, old);
     old = 0;
#endif
     why = SPACE
  fi
}

// One call of send(), one byte. `why` says what it has to wait for.
inline send() {
  LOCK(S_LOCK);
  look_at_head();
  give_back();
  renew_sender();
  if
#ifdef OTHER_BYTES_FIRST
  :: s_path == RETURNING -> send_over_tcp()
#else
  :: s_path == RETURNING -> why = ROOM
#endif
  :: s_path == TCP -> begin_switch()  // full sockets may keep the next byte back
  :: s_path == TCP || s_path == DRAINING || s_path == TCP_AGAIN -> send_over_tcp()
  :: s_path == IN_RING -> send_by_ring()
  fi;
  UNLOCK(S_LOCK)
}

// Armed: is there anything to do after all? A thread that waits for a reply has many streams and looks at the hint only.
inline look_again() {
  if
#ifdef NO_LOOK_AT_HINT
  :: why == REPLY -> writable = (s_path == RETURNING)
#else
  :: why == REPLY && LOAD(LOOK_HERE) == 0 && s_path != RETURNING -> writable = false
#endif
#ifdef NO_LOOK_AT_HEAD
  :: why == SPACE -> skip
#endif
  :: else ->
     XCHG(LOOK_HERE, 0, old);
     old = 0;
     LOCK(S_LOCK);
#ifndef WISH_BEFORE_ARMED
     if  // after arming: who takes an earlier wish may find nobody armed
#ifdef WISH_STORED
     :: why == SPACE && s_path == IN_RING -> STORE(WANT_SPACE(s_channel), 1)
#else
     :: why == SPACE && s_path == IN_RING -> XCHG(WANT_SPACE(s_channel), 1, old); old = 0
#endif
     :: else
     fi;
#endif
     look_at_head();
     give_back();
     atomic {
       writable = (s_path == RETURNING || why == ROOM);
       if
       :: why == SPACE && (s_path == TCP_AGAIN || s_path == TCP || s_path == IN_RING && s_tail - POSITION(head) < RING) -> why = NOTHING
       :: else
       fi
     };
     UNLOCK(S_LOCK)
  fi
}

#ifdef NO_WAIT_FOR_ROOM
#define WRITABLE (why == ROOM && s_path != RETURNING)
#else
#define WRITABLE writable
#endif

// The sending process sleeps: in send() until it may go on, or in poll() until the peer, having got all, replies.
inline sleep_sender() {
  do
  :: why != NOTHING ->
     XCHG(S_ARMED, 1, old);
     old = 0;
     look_again();
     if
     :: why == NOTHING
     :: why != NOTHING ->
        atomic {
          FENCED && (s_bell || (why == REPLY && r_received == s_sent) || (WRITABLE && nfull(tcp))) ->
          if
          :: s_bell -> s_bell = false
          :: why == REPLY && r_received == s_sent -> why = NOTHING
          :: WRITABLE && nfull(tcp)
          fi;
          writable = false;
          if
          :: why == REPLY || why == NOTHING
          :: else -> why = NOTHING
          fi
        }
     fi;
     STORE(S_ARMED, 0)
  :: why == NOTHING -> break
  od
}

inline close_sender() {
  LOCK(S_LOCK);
  look_at_head();
  do
  :: give_back();
     if
#ifndef CLOSE_AT_ONCE
     :: s_path == RETURNING -> nfull(tcp)
#endif
     :: else -> break
     fi
  od;
  atomic { FENCED -> fin = true; s_closed = true };
  UNLOCK(S_LOCK)
}

active proctype sender() {
  mtype why = NOTHING;
  byte head, old;
  bool writable, late;
  {
    do
    :: s_sent < BYTES ->
       send();
       if
       :: why != NOTHING -> sleep_sender()
       :: why == NOTHING -> why = REPLY; sleep_sender()
       :: why == NOTHING
#ifdef AWAY
       :: why == NOTHING -> r_received == s_sent  // waits for the reply where the library is not asked
#endif
       fi
    :: s_sent == BYTES -> break
    od;
    close_sender()
  } unless { crash -> atomic { FENCED -> fin = true; s_closed = true } }
}

// The receiver ---------------------------------------------------------------------------------------------------------

inline deliver(b) {
  assert(b == r_received + 1);
  r_received++
}

#ifdef RENEW_BEFORE_RETURN
#define RENEWABLE true
#else
#define RENEWABLE LOAD(RETURNED(r_channel))
#endif

// Receive lock held: the returned bytes are all in TCP, the next switch has the words of a new channel.
inline renew_receiver() {
#if CHANNELS > 1
  if
  :: atomic { r_path == TCP_AGAIN && r_channel + 1 < CHANNELS && RENEWABLE ->
              r_channel++; r_path = TCP; r_head = 0; STORE(ACCEPTED(r_channel), 1) }
  :: else
  fi
#else
  skip
#endif
}

// After a read from TCP in path TCP: does the ring come next?
inline look_at_switch() {
  atomic {
    at = LOAD(SWITCH_AT(r_channel));
    if
    :: at == 0 || r_tcp < at
    :: else -> r_path = IN_RING
    fi
  };
  if
  :: r_path == IN_RING && r_tcp > at -> atomic { assert(LOAD(HEAD(r_channel)) & FROZEN); r_path = TCP_AGAIN }
  :: else
  fi;
  at = 0
}

#define RESCUABLE (r_path == TCP_AGAIN && LOAD(SWITCH_AT(r_channel)) && r_tcp >= LOAD(SWITCH_AT(r_channel)) && \
                   r_head + r_tcp - LOAD(SWITCH_AT(r_channel)) < LOAD(TAIL(r_channel)))

// One byte, or two if they are there. At its end: bytes that the sender, closed or dead, could not return are taken from the ring.
inline read_tcp() {
  if
  :: atomic { nempty(tcp) && FENCED -> tcp?b; deliver(b); r_tcp++; got = true;
       if
       :: nempty(tcp) -> tcp?b; deliver(b); r_tcp++
       :: true
       fi; b = 0 };
     if
     :: r_path == TCP -> look_at_switch()
     :: else
     fi
  :: atomic { empty(tcp) && !fin && FENCED }
  :: atomic { empty(tcp) && fin && FENCED } ->
#ifndef NO_RESCUE
     do
     :: atomic { RESCUABLE -> b = AT(r_channel, r_head + r_tcp - LOAD(SWITCH_AT(r_channel))); deliver(b); r_tcp++; b = 0 }
     :: else -> break
     od;
#endif
     eof = true
  fi
}
inline publish_head() {
#ifdef HEAD_STORED
  STORE(HEAD(r_channel), r_head + n); ok = true;
#else
  atomic {
    FENCED ->
    if
    :: mem[HEAD(r_channel)] == r_head -> mem[HEAD(r_channel)] = r_head + n; ok = true
    :: else -> ok = false
    fi
  };
#endif
}

// `n` bytes are there. Copied to the program first, theirs only when the head could be moved.
inline take_from_ring() {
  atomic {
    b = AT(r_channel, r_head);
    if
    :: n = 1
    :: n > 1
    fi
  };
  atomic { c = AT(r_channel, r_head + n - 1) };
  publish_head();
  if
#ifdef KEEP_DISCARDED
  :: true ->
#else
  :: ok ->
#endif
     atomic {
       deliver(b);
       if
       :: n == 2 -> deliver(c)
       :: else
       fi;
       r_head = r_head + n; n = 0; b = 0; c = 0; ok = false; got = true
     };
#ifndef NO_SPACE_BELL
     if
     :: LOAD(WANT_SPACE(r_channel)) == 0
     :: else ->
        XCHG(WANT_SPACE(r_channel), 0, old);
        if
        :: old -> old = 0; ring_if_armed(S_ARMED, s_bell)
        :: else
        fi
     fi
#endif
#ifndef KEEP_DISCARDED
  :: !ok -> atomic { r_path = TCP_AGAIN; n = 0; b = 0; c = 0 }
#endif
  fi
}

inline read_ring() {
  n = LOAD(TAIL(r_channel)) - r_head;
  if
  :: n > 0 -> take_from_ring()
  :: n == 0 ->
     if
     :: atomic { LOAD(HEAD(r_channel)) & FROZEN -> r_path = TCP_AGAIN }
     :: else ->
        if  // the ring is empty, as far as seen: what does TCP say?
        :: atomic { nempty(tcp) && FENCED };  // the next look finds FROZEN, or the peer lied
           atomic { assert(LOAD(HEAD(r_channel)) & FROZEN); r_path = TCP_AGAIN }
        :: atomic { empty(tcp) && !fin && FENCED }
        :: atomic { empty(tcp) && fin && FENCED };
#ifdef EOF_UNCHECKED
           eof = true
#else
           if
           :: LOAD(TAIL(r_channel)) == r_head -> eof = true
           :: else
           fi
#endif
        fi
     fi
  fi
}

inline sleep_armed() {
#ifdef ARM_STORED
  STORE(R_ARMED, 1);
#else
  XCHG(R_ARMED, 1, old);
#endif
  old = 0;
  if
#ifndef NO_SECOND_LOOK
  :: r_path == IN_RING && LOAD(TAIL(r_channel)) != r_head
#endif
  :: else ->
     atomic { FENCED && (r_bell || nempty(tcp) || fin) -> r_bell = false }
  fi;
  STORE(R_ARMED, 0)
}

// Asleep: in recv(), in the kernel alone, or armed and in poll().
inline sleep_receiver() {
  if
  :: r_path != IN_RING -> nempty(tcp) || fin
  :: else -> sleep_armed()
  fi
}

active proctype receiver() {
  byte b, c, n, at, old;
  bool got, eof, ok;
  do
  :: !eof ->
     LOCK(R_LOCK);
     got = false;
     renew_receiver();
     if
     :: r_path == IN_RING -> read_ring()
     :: else -> read_tcp()
     fi;
     UNLOCK(R_LOCK);
     if
     :: !got && !eof -> sleep_receiver()
     :: else
     fi
  :: eof -> break
  od;
  assert(r_received >= s_sent);
  assert(crash || r_received == BYTES)
}

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
