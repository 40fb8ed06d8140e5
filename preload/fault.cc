// SPDX-License-Identifier: MIT
#include "preload/fault.h"

#include <sys/syscall.h>
#include <ucontext.h>

#include "preload/fault_report.h"
#include "preload/real.h"
#include "shm/atomic.h"
#include "shm/raw_syscall.h"
#include "shm/user_copy.h"

namespace mpklink {
namespace {

Atomic<std::uint32_t> g_installed;  // bit 0 SIGSEGV, bit 1 SIGBUS: ours stands for the default action

std::uint32_t bit_of(int number) { return number == SIGSEGV ? 1 : 2; }

void on_fault(int number, siginfo_t* info, void* context) {
  auto* machine = static_cast<ucontext_t*>(context);
  greg_t& pc = machine->uc_mcontext.gregs[REG_RIP];
  if (info->si_code > 0) {
    if (const std::uintptr_t there = user_copy_continuation(static_cast<std::uintptr_t>(pc))) {
      pc = static_cast<greg_t>(there);
      return;
    }
  }
  report_fault(*info, *machine);
  // The default action, with the instruction and the information the fault had.
  g_installed.fetch_and(~bit_of(number));
  struct sigaction plain = {};
  real().sigaction(number, &plain, nullptr);
  if (info->si_code > 0) return;  // faults again
  raw_syscall(SYS_rt_tgsigqueueinfo, raw_syscall(SYS_getpid), raw_syscall(SYS_gettid), number, reinterpret_cast<long>(info));
}

struct sigaction fault_action() {
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  return action;
}

void install(int number) {
  struct sigaction before = {};
  if (real().sigaction(number, nullptr, &before) != 0) return;
  if (before.sa_handler != SIG_DFL || (before.sa_flags & SA_SIGINFO)) return;
  g_installed.fetch_or(bit_of(number));
  const struct sigaction ours = fault_action();
  real().sigaction(number, &ours, nullptr);
}

}  // namespace

void install_fault_handlers() {
  install(SIGSEGV);
  install(SIGBUS);
}

bool is_fault_handler(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == on_fault;
}

bool stands_for_default(int number, struct sigaction* ours) {
  *ours = fault_action();
  return (g_installed.load_relaxed() & bit_of(number)) != 0;  // relaxed: programs set handlers in one thread
}

bool can_read(const void* at, std::size_t n) {
  unsigned char scratch[256];
  const auto* from = static_cast<const unsigned char*>(at);
  while (n > 0) {
    const std::size_t part = n < sizeof scratch ? n : sizeof scratch;
    if (user_copy(scratch, from, part) != 0) return false;
    from += part;
    n -= part;
  }
  return true;
}

bool can_write(void* at, std::size_t n) {
  if (n == 0) return true;
  auto* bytes = static_cast<unsigned char*>(at);
  // The first and the last byte: for arrays of the kernel's answers, which may lie across a page border.
  return user_copy(bytes, bytes, 1) == 0 && user_copy(bytes + n - 1, bytes + n - 1, 1) == 0;
}

}  // namespace mpklink
