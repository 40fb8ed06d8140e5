// SPDX-License-Identifier: MIT
// Code of the program's own that touches guarded memory: every touch must fault, and what is unread in the ring must arrive as it
// was sent. The cases print what came of their touches; tests/integration/guard_test.py knows which guard was in force.
#include <sys/resource.h>
#include <sys/wait.h>

#include "guarded.h"
#include "peer.h"

using namespace testlib;

namespace {

constexpr size_t kUnreadBytes = 3000;  // fits into the smallest ring

// Bytes unread in both rings while `act` does its damage; then both arrive, and the stream goes on.
template <typename F>
void with_unread(int fd, const Sync& sync, F act) {
  Peer peer(fd, sync);
  peer.arrive(kUnreadBytes);
  peer.put(kUnreadBytes);
  catch_faults();
  act();
  peer.take(kUnreadBytes);
  peer.drained();
  peer.finish();
}

void touch_all(Tally* tally) {
  const Guarded guarded;
  for (const Mapping& m : guarded)
    for (uintptr_t at = m.begin; at < m.end; at += kPageBytes) touch_both(tally, at + at / kPageBytes % kPageBytes, m.key);
}

// Every page of every mapping. Its key is smaps' key, and nothing of it would be in a core dump.
void pages_server(int fd, const Sync& sync) {
  with_unread(fd, sync, [] {
    Tally tally = {};
    touch_all(&tally);
    tally.print("pages");
    const Guarded guarded;
    for (const Mapping& m : guarded) {
      CHECK(m.shared && m.no_dump);
      CHECK_EQ(m.key, guarded.key());
    }
    printf("KEY %d\n", guarded.key());
  });
}

// The address space between the mappings belongs to nobody, whatever the guard.
void gaps_server(int fd, const Sync& sync) {
  with_unread(fd, sync, [] {
    Tally tally = {};
    const Guarded guarded;
    for (const Mapping& m : guarded) {
      if (m.anonymous) touch_both(&tally, m.begin - 1, 0);
      if (m.ours) touch_both(&tally, m.end, 0);
    }
    tally.print("gaps");
  });
}

// ---- from any thread --------------------------------------------------------------------------------------------------

struct Toucher {
  int go[2];
  Tally tally;
};

void* touch_on_word(void* argument) {
  auto* self = static_cast<Toucher*>(argument);
  char byte;
  CHECK_EQ(read(self->go[0], &byte, 1), 1);
  touch_all(&self->tally);
  return nullptr;
}

Toucher g_old, g_fresh;
pthread_t g_old_thread;

void start_toucher(Toucher* toucher, pthread_t* thread) {
  CHECK_EQ(pipe2(toucher->go, O_CLOEXEC), 0);
  *thread = start_thread(touch_on_word, toucher);
}

// The thread that made the key is not the only one that must not have it: one from before (main starts it), and one from after.
void threads_server(int fd, const Sync& sync) {
  with_unread(fd, sync, [] {
    pthread_t fresh_thread;
    start_toucher(&g_fresh, &fresh_thread);
    CHECK_EQ(write(g_old.go[1], "g", 1), 1);
    join_thread(g_old_thread);
    CHECK_EQ(write(g_fresh.go[1], "g", 1), 1);
    join_thread(fresh_thread);
    g_old.tally.print("old-thread");
    g_fresh.tally.print("new-thread");
  });
}

// A child of fork has the mappings and the closed key.
void child_server(int fd, const Sync& sync) {
  with_unread(fd, sync, [] {
    fflush(stdout);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      Tally tally = {};
      touch_all(&tally);
      tally.print("child");
      _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
  });
}

// ---- the usual accidents ----------------------------------------------------------------------------------------------

// memcpy, memset and a loop that run into guarded memory. Where the guard lets the first one read, the writes put back what was there:
// the test without a guard must not destroy its own stream.
void wild_server(int fd, const Sync& sync) {
  with_unread(fd, sync, [] {
    constexpr size_t kWild = 5000;  // more than a page
    static char copy[kWild];
    Tally tally = {};
    const Guarded guarded;
    for (const Mapping& m : guarded) {
      const size_t length = m.end - m.begin < kWild ? m.end - m.begin : kWild;
      auto* there = reinterpret_cast<char*>(m.begin);
      memset(copy, 0xa5, sizeof copy);
      const Fault read_fault = fault_of([=] { memcpy(copy, hidden(there), length); });
      tally.count(read_fault, m.begin, length, m.key, false);
      tally.count(fault_of([=] { memcpy(hidden(there), copy, length); }), m.begin, length, m.key, true);
      if (read_fault.raised) {
        tally.count(fault_of([=] { memset(hidden(there), 0xa5, length); }), m.begin, length, m.key, true);
      }
      tally.count(fault_of([=] {
        for (size_t i = length; i-- > 0;) static_cast<volatile char*>(there)[i] = copy[i];
      }), m.begin, length, m.key, true);
    }
    tally.print("wild");
  });
}

// A buffer that lies right in front of the library's range, and a loop that does not stop at its end.
void overrun_server(int fd, const Sync& sync) {
  with_unread(fd, sync, [] {
    Tally tally = {};
    const Guarded guarded;
    for (const Mapping& m : guarded) {
      if (!m.anonymous) continue;
      // Down from the mapping through the reserved address space in front of it: a heap block could lie only before that.
      uintptr_t at = m.begin - kPageBytes;
      tally.count(fault_of([=] { memset(reinterpret_cast<char*>(hidden(at)), 0xa5, 2 * kPageBytes); }), at, kPageBytes, 0, true);
    }
    tally.print("overrun");
  });
}

// A touch that nobody catches: it ends the process as SIGSEGV does, and the library tells of it first. The child's stderr goes to our
// stdout, where the test reads it.
__attribute__((noinline)) void stray_write(uintptr_t at) {
  auto* byte = reinterpret_cast<volatile char*>(at);
  *byte = *byte;
}

void reported_server(int fd, const Sync& sync) {
  with_unread(fd, sync, [] {
    const Guarded guarded;
    for (const Mapping& m : guarded) {
      fflush(stdout);
      const pid_t child = fork();
      CHECK(child >= 0);
      if (child == 0) {
        CHECK(signal(SIGSEGV, SIG_DFL) != SIG_ERR);
        CHECK_EQ(dup2(1, 2), 2);
        stray_write(m.begin + 8);
        _exit(0);
      }
      int status = 0;
      CHECK_EQ(waitpid(child, &status, 0), child);
      printf("ENDED %s %d\n", WIFSIGNALED(status) ? "signal" : "exit", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    }
  });
}

// The core that such an end leaves, in the working directory.
void core_server(int fd, const Sync& sync) {
  with_unread(fd, sync, [] {
    const Guarded guarded;
    for (const Mapping& m : guarded) printf("GUARDED %lx %lx\n", static_cast<unsigned long>(m.begin), static_cast<unsigned long>(m.end));
    fflush(stdout);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      const struct rlimit most = {RLIM_INFINITY, RLIM_INFINITY};
      CHECK_EQ(setrlimit(RLIMIT_CORE, &most), 0);
      CHECK(signal(SIGSEGV, SIG_DFL) != SIG_ERR);
      CHECK_EQ(dup2(1, 2), 2);
      stray_write(guarded[0].begin + 8);
      abort();  // with the guard off
    }
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    printf("CORE %d\n", WIFSIGNALED(status) && WCOREDUMP(status));
  });
}

const Case kCases[] = {
    {"pages", pages_server, obedient_client},     {"gaps", gaps_server, obedient_client},
    {"threads", threads_server, obedient_client}, {"child", child_server, obedient_client},
    {"wild", wild_server, obedient_client},       {"overrun", overrun_server, obedient_client},
    {"reported", reported_server, obedient_client}, {"core", core_server, obedient_client},
};

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  if (strcmp(options.text("case", ""), "threads") == 0 && options.is("server")) start_toucher(&g_old, &g_old_thread);
  return case_main(argc, argv, kCases);
}
