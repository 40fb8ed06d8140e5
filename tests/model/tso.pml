// SPDX-License-Identifier: MIT
// x86-TSO for Promela: shared words behind one FIFO store buffer per thread, which drains as a step of its own.
//
// LOAD looks into the own buffer first; what is locked on x86 (XCHG, CAS, fetch_or) waits until it is empty, and so does every
// system call, because the kernel takes locks in it. Threads are numbered by _pid, so the thread processes come first.

#define THREADS 4
#define DEPTH 2

byte mem[MEMORY_WORDS];
typedef Buffer {
  byte n;
  byte word[DEPTH];
  byte value[DEPTH]
}
Buffer buffer[THREADS];

#define MINE buffer[_pid]
#define FENCED (MINE.n == 0)
#define LOAD(w) (MINE.n == 2 && MINE.word[1] == (w) -> MINE.value[1] : \
                 (MINE.n >= 1 && MINE.word[0] == (w) -> MINE.value[0] : mem[w]))

inline STORE(w, v) {
  atomic {
    MINE.n < DEPTH;
    MINE.word[MINE.n] = w;
    MINE.value[MINE.n] = v;
    MINE.n++
  }
}
inline XCHG(w, v, old) { atomic { FENCED -> old = mem[w]; mem[w] = v } }

// A lock is taken with a locked operation and given back with a plain store. What it protects needs no store buffer: no other
// thread looks before that store, and with it all earlier ones, has drained.
inline LOCK(w) { atomic { FENCED && mem[w] == 0 -> mem[w] = 1 } }
inline UNLOCK(w) { STORE(w, 0) }

inline drain(i) {
  atomic {
    buffer[i].n > 0 ->
    mem[buffer[i].word[0]] = buffer[i].value[0];
    buffer[i].word[0] = buffer[i].word[1];
    buffer[i].value[0] = buffer[i].value[1];
    buffer[i].word[1] = 0;
    buffer[i].value[1] = 0;
    buffer[i].n--;
    if
    :: buffer[i].n == 0 -> buffer[i].word[0] = 0; buffer[i].value[0] = 0
    :: else
    fi
  }
}
