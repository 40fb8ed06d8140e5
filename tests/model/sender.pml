// SPDX-License-Identifier: MIT
// The sending process of stream.pml.

// One byte is given to TCP. The first one that a socket shut down both ways refuses is answered with a reset.
inline to_tcp(byte_of_it) {
  if
  :: refused -> reset = true
  :: else -> tcp!byte_of_it
  fi
}
#define TCP_TAKES (len(tcp) < TCP_ROOM || refused)

// Send lock held. Looks at the head word; a freeze met in TCP or DRAINING has nothing to return (head == tail == 0).
inline look_at_head() {
#ifdef SHUT
  atomic {  // what is in the ring stays there, what follows is TCP's to refuse
    if
    :: (s_path == IN_RING || s_path == RETURNING) && LOAD(SHUT_WORD) -> s_path = TCP_AGAIN
    :: else
    fi
  };
#endif
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
  :: atomic { s_path == RETURNING && s_cursor < s_tail && TCP_TAKES && FENCED ->
              to_tcp(AT(s_channel, s_cursor)); s_cursor++; s_tcp++ }
  :: atomic { s_path == RETURNING && s_cursor == s_tail -> STORE(RETURNED(s_channel), 1); s_path = TCP_AGAIN; s_cursor = 0 }
  :: s_path != RETURNING || (s_cursor < s_tail && !TCP_TAKES) -> break
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
  :: atomic { TCP_TAKES && FENCED -> s_sent++; to_tcp(s_sent); s_tcp++;
       if
       :: s_path == DRAINING -> s_left--;
          if
          :: s_left == 0 -> s_path = IN_RING
          :: else
          fi
       :: else
       fi }
  :: !TCP_TAKES -> why = ROOM
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
          FENCED && (s_bell || (why == REPLY && r_received == s_sent) || (WRITABLE && TCP_TAKES) || (why == REPLY && refused) || hung_up) ->
          if
          :: s_bell -> s_bell = false
          :: why == REPLY && r_received == s_sent -> why = NOTHING
          :: WRITABLE && TCP_TAKES
          :: (why == REPLY && refused) || hung_up -> why = NOTHING
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
    :: s_sent < BYTES && !reset ->
       send();
       if
       :: why != NOTHING -> sleep_sender()
       :: why == NOTHING -> why = REPLY; sleep_sender()
       :: why == NOTHING
#ifdef AWAY
       :: why == NOTHING -> r_received == s_sent  // waits for the reply where the library is not asked
#endif
       fi
    :: s_sent == BYTES || reset -> break
    od;
    close_sender()
  } unless { crash -> atomic { FENCED -> fin = true; s_closed = true } }
}
