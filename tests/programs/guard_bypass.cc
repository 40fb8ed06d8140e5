// SPDX-License-Identifier: MIT
// The ways around a protection key that the kernel leaves open to a process (research: "PKU Pitfalls" and pkeys(7)), tried one by one against
// the library's memory: prints `BYPASS name open|blocked`, or `absent` where this machine has no such call. The test knows which are
// documented as open. What was unread in the ring must arrive all the same.
#include <cpuid.h>
#include <dirent.h>
#include <linux/io_uring.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "guarded.h"
#include "peer.h"

using namespace testlib;

namespace {

constexpr size_t kUnreadBytes = 3000;
constexpr size_t kNeedle = 64;

enum Outcome { kBlocked, kOpen, kAbsent };

Mapping g_channel;  // the memfd's mapping: header and rings
char g_needle[kNeedle];
char g_copy[2 << 20];

char* channel() { return reinterpret_cast<char*>(g_channel.begin); }
size_t channel_bytes() { return g_channel.end - g_channel.begin; }
char* last_page() { return reinterpret_cast<char*>(g_channel.end) - kPageBytes; }  // of a ring that never comes so far here

// The unread bytes are in it: it was read.
Outcome shows(const void* memory) { return memmem(memory, channel_bytes(), g_needle, kNeedle) != nullptr ? kOpen : kBlocked; }

// This thread's own loads, as they are now.
Outcome shows_to_loads() {
  Outcome outcome = kBlocked;
  const Fault fault = fault_of([&] { memcpy(g_copy, hidden(channel()), channel_bytes()); });
  if (!fault.raised) outcome = shows(g_copy);
  return outcome;
}

// By number and past the library, which would take a process with io_uring off its rings and help a child to end.
long raw(long number, long a = 0, long b = 0, long c = 0, long d = 0) {
  long result = number;
  register long r10 asm("r10") = d;
  asm volatile("syscall" : "+a"(result) : "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
  return result;
}

// In a process of its own: what it does to its mappings and keys ends with it.
Outcome in_child(Outcome (*attempt)()) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) raw(SYS_exit_group, attempt());
  int status;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status));
  return static_cast<Outcome>(WEXITSTATUS(status));
}

// ---- the attempts -----------------------------------------------------------------------------------------------------

Outcome loads() { return shows_to_loads(); }

Outcome vm_read() {
  const struct iovec here = {g_copy, channel_bytes()}, there = {channel(), channel_bytes()};
  const ssize_t n = process_vm_readv(getpid(), &here, 1, &there, 1, 0);
  return n == static_cast<ssize_t>(channel_bytes()) ? shows(g_copy) : kBlocked;
}

// Zero over zero: the page is not in use.
Outcome vm_write() {
  char zero = 0;
  const struct iovec here = {&zero, 1}, there = {last_page(), 1};
  return process_vm_writev(getpid(), &here, 1, &there, 1, 0) == 1 ? kOpen : kBlocked;
}

int open_memory() { return open("/proc/self/mem", O_RDWR | O_CLOEXEC); }

Outcome mem_read() {
  const int fd = open_memory();
  const ssize_t n = fd >= 0 ? pread(fd, g_copy, channel_bytes(), static_cast<off_t>(g_channel.begin)) : -1;
  close(fd);
  return n == static_cast<ssize_t>(channel_bytes()) ? shows(g_copy) : kBlocked;
}

Outcome mem_write() {
  const int fd = open_memory();
  const ssize_t n = fd >= 0 ? pwrite(fd, "", 1, reinterpret_cast<off_t>(last_page())) : -1;
  close(fd);
  return n == 1 ? kOpen : kBlocked;
}

// A descriptor of the memfd, which would give pread, pwrite and a second mapping without the key.
Outcome memfd() {
  DIR* dir = opendir("/proc/self/fd");
  CHECK(dir != nullptr);
  Outcome outcome = kBlocked;
  while (const struct dirent* entry = readdir(dir)) {
    char target[256];
    const ssize_t n = readlinkat(dirfd(dir), entry->d_name, target, sizeof target - 1);
    if (n <= 0) continue;
    target[n] = '\0';
    if ((strstr(target, "memfd:mpklink-") != nullptr && strstr(target, "mpklink-status") == nullptr) || strstr(target, "secretmem") != nullptr) outcome = kOpen;
  }
  closedir(dir);
  return outcome;
}

Outcome map_files() {
  char path[100];
  snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", static_cast<unsigned long>(g_channel.begin),
           static_cast<unsigned long>(g_channel.end));
  const int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return kBlocked;
  const void* alias = mmap(nullptr, channel_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  return alias != MAP_FAILED ? shows(alias) : kBlocked;
}

Outcome map_files_unprivileged() {
  if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) return kAbsent;
  prctl(PR_SET_DUMPABLE, 1);  // or its /proc would be root's
  return map_files();
}

Outcome map_files_privileged() { return geteuid() == 0 ? map_files() : kAbsent; }

Outcome mprotect_plain() {
  CHECK_EQ(mprotect(channel(), channel_bytes(), PROT_READ | PROT_WRITE), 0);
  return shows_to_loads();
}

Outcome mprotect_exec() {
  if (mprotect(channel(), channel_bytes(), PROT_EXEC) != 0) return kBlocked;
  CHECK_EQ(mprotect(channel(), channel_bytes(), PROT_READ | PROT_WRITE), 0);
  return shows_to_loads();
}

Outcome pkey_mprotect_zero() {
  if (pkey_mprotect(channel(), channel_bytes(), PROT_READ | PROT_WRITE, 0) != 0) return kBlocked;
  return shows_to_loads();
}

Outcome move_mapping() {
  void* at = mremap(channel(), channel_bytes(), channel_bytes(), MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
  if (at == MAP_FAILED) return kBlocked;
  g_channel.end = reinterpret_cast<uintptr_t>(at) + channel_bytes();
  g_channel.begin = reinterpret_cast<uintptr_t>(at);
  return shows_to_loads();
}

Outcome free_key() {
  if (pkey_free(g_channel.key) != 0) return kBlocked;
  for (int i = 0; i < 16; i++)
    if (pkey_alloc(0, 0) == g_channel.key) return shows_to_loads();
  return kBlocked;
}

Outcome write_pkru() {
  wrpkru(rdpkru() & ~(3u << (2 * g_channel.key)));
  return shows_to_loads();
}

// A handler that changes PKRU in the frame that sigreturn restores.
void forge_frame(int, siginfo_t*, void* context) {
  constexpr unsigned kXstateHeader = 512, kPkru = 9;
  auto* area = reinterpret_cast<char*>(static_cast<ucontext_t*>(context)->uc_mcontext.fpregs);
  unsigned a, offset, c, d;
  __cpuid_count(0xd, kPkru, a, offset, c, d);
  uint64_t present;
  memcpy(&present, area + kXstateHeader, sizeof present);
  present |= uint64_t{1} << kPkru;
  memcpy(area + kXstateHeader, &present, sizeof present);
  memset(area + offset, 0, 4);
}

Outcome forged_frame() {
  struct sigaction action = {};
  action.sa_sigaction = forge_frame;
  action.sa_flags = SA_SIGINFO;
  CHECK_EQ(sigaction(SIGUSR1, &action, nullptr), 0);
  raise(SIGUSR1);
  return shows_to_loads();
}

// The contents are punched out although nobody here may write them: a mark goes in by way of mem_write, and is gone.
Outcome remove_pages() {
  const int fd = open_memory();
  const off_t at = reinterpret_cast<off_t>(last_page());
  if (fd < 0 || pwrite(fd, "m", 1, at) != 1) return kAbsent;
  madvise(last_page(), kPageBytes, MADV_REMOVE);
  char byte = 'm';
  CHECK_EQ(pread(fd, &byte, 1, at), 1);
  CHECK_EQ(pwrite(fd, "", 1, at), 1);
  close(fd);
  return byte == 'm' ? kBlocked : kOpen;
}

Outcome dont_need() {
  if (madvise(channel(), channel_bytes(), MADV_DONTNEED) != 0) return kBlocked;  // secret memory is locked
  // Shared contents are still there, and still closed.
  CHECK_EQ(mem_read(), kOpen);
  return shows_to_loads();
}

Outcome traced() {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) raw(SYS_exit_group, 1);
    raw(SYS_kill, raw(SYS_getpid), SIGSTOP);
    raw(SYS_exit_group, 0);
  }
  int status;
  CHECK_EQ(waitpid(child, &status, 0), child);
  if (!WIFSTOPPED(status)) return kAbsent;
  bool all = true;
  for (size_t i = 0; i < channel_bytes() && all; i += sizeof(long)) {
    errno = 0;
    const long word = ptrace(PTRACE_PEEKDATA, child, channel() + i, nullptr);
    all = errno == 0;
    memcpy(g_copy + i, &word, sizeof word);
  }
  CHECK_EQ(ptrace(PTRACE_CONT, child, nullptr, nullptr), 0);
  CHECK_EQ(waitpid(child, &status, 0), child);
  return all ? shows(g_copy) : kBlocked;
}

Outcome core_dump() {
  for (const Mapping& m : Guarded())
    if (!m.no_dump) return kOpen;
  return kBlocked;
}

// Calls of the kernel on behalf of this thread respect its PKRU.
Outcome pipe_write() {
  int ends[2];
  CHECK_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
  const ssize_t n = write(ends[1], hidden(channel()), 100);
  close(ends[0]);
  close(ends[1]);
  return n > 0 ? kOpen : kBlocked;
}

Outcome pipe_splice() {
  int ends[2];
  CHECK_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
  const struct iovec there = {channel(), 100};
  const ssize_t n = vmsplice(ends[1], &there, 1, 0);
  close(ends[0]);
  close(ends[1]);
  return n > 0 ? kOpen : kBlocked;
}

Outcome uring_buffers() {
  struct io_uring_params params = {};
  const long fd = raw(SYS_io_uring_setup, 2, reinterpret_cast<long>(&params));
  if (fd < 0) return kAbsent;
  struct iovec there = {channel(), kPageBytes}, good = {g_copy, kPageBytes};
  const long registered = raw(SYS_io_uring_register, fd, IORING_REGISTER_BUFFERS, reinterpret_cast<long>(&there), 1);
  const long good_registered = raw(SYS_io_uring_register, fd, IORING_REGISTER_BUFFERS, reinterpret_cast<long>(&good), 1);
  raw(SYS_close, fd);
  if (registered < 0 && good_registered < 0) return kAbsent;  // refuses any: RLIMIT_MEMLOCK
  return registered >= 0 ? kOpen : kBlocked;
}

const struct {
  const char* name;
  Outcome (*attempt)();
  bool alone;  // in a child: it would not leave the process as it was
} kAttempts[] = {
    {"loads", loads, false},
    {"process_vm_readv", vm_read, false},
    {"process_vm_writev", vm_write, false},
    {"proc_mem_read", mem_read, false},
    {"proc_mem_write", mem_write, false},
    {"memfd", memfd, false},
    {"map_files", map_files_privileged, true},
    {"map_files_unprivileged", map_files_unprivileged, true},
    {"mprotect", mprotect_plain, true},
    {"mprotect_exec", mprotect_exec, true},
    {"pkey_mprotect_0", pkey_mprotect_zero, true},
    {"mremap", move_mapping, true},
    {"pkey_free", free_key, true},
    {"wrpkru", write_pkru, true},
    {"forged_sigframe", forged_frame, true},
    {"madv_remove", remove_pages, false},
    {"madv_dontneed", dont_need, false},
    {"ptrace_by_parent", traced, false},
    {"core_dump", core_dump, false},
    {"write_to_pipe", pipe_write, false},
    {"vmsplice", pipe_splice, false},
    {"io_uring_buffers", uring_buffers, true},
};

void table_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(kUnreadBytes);
  pattern_fill(g_needle, kNeedle, kUp, kUnreadBytes / 2);
  for (const Mapping& m : Guarded())
    if (m.ours && m.end - m.begin > g_channel.end - g_channel.begin) g_channel = m;  // the board is the smaller one
  if (g_channel.end != 0) {
    CHECK(channel_bytes() <= sizeof g_copy);
    catch_faults();
    for (const auto& a : kAttempts) {
      memset(g_copy, 0, sizeof g_copy);
      const char* const words[] = {"blocked", "open", "absent"};
      fflush(stdout);
      printf("BYPASS %s %s\n", a.name, words[a.alone ? in_child(a.attempt) : a.attempt()]);
    }
    expect_closed(g_channel.key);
  }
  peer.take(kUnreadBytes);
  peer.finish();
}

const Case kCases[] = {{"table", table_server, obedient_client}};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
