// SPDX-License-Identifier: MIT
// The receiving process of stream.pml.

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

// Nothing more comes over TCP: the sender has finished, or we take nothing more.
#define ENDED (fin || refused)

#ifdef RESCUE_UNLESS_RETURNED
#define ALL_RETURNED LOAD(RETURNED(r_channel))
#else
#define ALL_RETURNED false
#endif

#define RESCUABLE (!ALL_RETURNED && r_path == TCP_AGAIN && LOAD(SWITCH_AT(r_channel)) && r_tcp >= LOAD(SWITCH_AT(r_channel)) && \
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
  :: atomic { empty(tcp) && !ENDED && FENCED }
  :: atomic { empty(tcp) && ENDED && FENCED } ->
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
    :: n > 1 -> n = 2
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
        :: atomic { empty(tcp) && !ENDED && FENCED }
        :: atomic { empty(tcp) && ENDED && FENCED };
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
     atomic { FENCED && (r_bell || nempty(tcp) || ENDED) -> r_bell = false }
  fi;
  STORE(R_ARMED, 0)
}

// Asleep: in recv(), in the kernel alone, or armed and in poll().
inline sleep_receiver() {
  if
  :: r_path != IN_RING -> nempty(tcp) || ENDED
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
#ifdef SHUT
  assert(r_received >= promised);  // whatever was sent later TCP may refuse
  atomic { FENCED -> mem[SHUT_WORD] = 1; hung_up = true }
#else
  assert(r_received >= s_sent);
  assert(crash || r_received == BYTES)
#endif
}
