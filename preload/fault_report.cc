// SPDX-License-Identifier: MIT
#include "preload/fault_report.h"

#include <dlfcn.h>
#include <fcntl.h>
#define UNW_LOCAL_ONLY
#include <libunwind.h>
#include <sys/prctl.h>

#include <cstdint>

#include "preload/log.h"
#include "preload/pair.h"
#include "preload/process.h"
#include "preload/stream.h"
#include "shm/layout.h"

namespace mpklink {
namespace {

constexpr int kFramesMax = 32;
constexpr std::size_t kStackNeeded = std::size_t{48} << 10;  // libunwind's, and some
constexpr greg_t kWriteAccess = 2;                           // bit of the page fault's error code (Intel SDM 3A, 4.7)

struct Unwinder {
  decltype(&unw_init_local2) init;
  decltype(&unw_step) step;
  decltype(&unw_get_reg) get_reg;
  decltype(&unw_get_proc_name) get_name;
};
Unwinder g_unwinder;
Atomic<std::uint32_t> g_unwinder_state;  // 0 not tried, 1 being opened, 2 there
Atomic<std::uint32_t> g_reported;

// "0x…": fmt's own hexadecimal brings its locales along (log.h).
class Hex {
 public:
  explicit Hex(std::uint64_t value) {
    char* at = text_ + sizeof text_;
    *--at = '\0';
    do {
      *--at = "0123456789abcdef"[value % 16];
      value /= 16;
    } while (value != 0);
    *--at = 'x';
    *--at = '0';
    begin_ = at;
  }
  const char* text() const { return begin_; }

 private:
  char text_[19];
  char* begin_;
};

#define MPKLINK_NAME_OF(name) #name
#define MPKLINK_NAME(name) MPKLINK_NAME_OF(name)

template <class Function>
bool find(void* library, const char* name, Function* out) {
  *out = reinterpret_cast<Function>(::dlsym(library, name));
  return *out != nullptr;
}

// What of a channel lies at `offset` from its private page, in words.
struct Place {
  const char* what;
  std::uint64_t at, of;
};

Place place_in_channel(const Stream& s, std::uint64_t offset) {
  if (offset < kPage) return {"the private state", offset, kPage};
  offset -= kPage;
  if (offset < sizeof(ChannelHeader)) return {"the header", offset, sizeof(ChannelHeader)};
  for (std::uint32_t side = 0; side < 2; ++side) {
    const std::uint64_t begin = ring_offset(s.capacity, side);
    if (offset < begin || offset >= begin + s.capacity) continue;
    return {side == s.side ? "the ring to the peer" : "the ring from the peer", offset - begin, s.capacity};
  }
  return {"the mapping", offset, 0};
}

void say_place(LogLine* line, std::uintptr_t address) {
  const std::uint64_t slot = process().guard.range().slot_bytes();
  bool found = false;
  for_each_stream([&](Stream* s) {
    const auto begin = reinterpret_cast<std::uintptr_t>(s->core);
    if (found || begin == 0 || address < begin || address - begin >= slot) return;
    found = true;
    const Place place = place_in_channel(*s, address - begin);
    line->add(FMT_COMPILE("byte {} of {} in {} of the connection that has descriptor {}"), place.at, place.of, place.what, fd_of(s));
  });
  for (std::uint32_t i = 0; i < kPairsMax && !found; ++i) {
    const Pair* pair = pair_at(i);
    const auto begin = pair == nullptr ? 0 : reinterpret_cast<std::uintptr_t>(pair->board);
    if (begin == 0 || address < begin || address - begin >= sizeof(Board)) continue;
    found = true;
    line->add(FMT_COMPILE("byte {} of {} in the board shared with a peer process"), address - begin, sizeof(Board));
  }
  if (!found) line->add(FMT_COMPILE("between the connections (a guard page, or one that is gone)"));
}

void say_frame(int number, std::uintptr_t pc, const char* name, std::uint64_t offset) {
  Dl_info where = {};
  const bool known = ::dladdr(reinterpret_cast<void*>(pc), &where) != 0 && where.dli_fname != nullptr;
  LogLine line(LogLevel::kError);
  line.add(FMT_COMPILE("  #{} {} {}+{} ({}+{})"), number, Hex(pc).text(), name, Hex(offset).text(), known ? where.dli_fname : "?",
           Hex(known ? pc - reinterpret_cast<std::uintptr_t>(where.dli_fbase) : 0).text());
  line.write();
}

// The handler may be on an alternate stack of the program's making, and those are small.
bool enough_stack(const ucontext_t& context) {
  const stack_t& stack = context.uc_stack;
  const auto here = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
  const auto bottom = reinterpret_cast<std::uintptr_t>(stack.ss_sp);
  const bool on_it = !(stack.ss_flags & SS_DISABLE) && here >= bottom && here < bottom + stack.ss_size;
  return !on_it || here - bottom >= kStackNeeded;
}

void say_stack(const ucontext_t& context) {
  if (g_unwinder_state.load_acquire() != 2 || !enough_stack(context)) {  // SYNC: unwinder
    say_frame(0, static_cast<std::uintptr_t>(context.uc_mcontext.gregs[REG_RIP]), "?", 0);
    log_always(LogLevel::kError, FMT_COMPILE("  (no more of the stack: {})"),
               enough_stack(context) ? "libunwind.so.8 is not installed" : "the alternate signal stack is small");
    return;
  }
  unw_cursor_t cursor;
  auto* machine = const_cast<ucontext_t*>(&context);  // libunwind's context is this one on x86-64; it only reads it
  if (g_unwinder.init(&cursor, machine, UNW_INIT_SIGNAL_FRAME) != 0) return;
  for (int i = 0; i < kFramesMax; ++i) {
    unw_word_t pc = 0;
    unw_word_t offset = 0;
    char name[128] = "?";
    if (g_unwinder.get_reg(&cursor, UNW_REG_IP, &pc) != 0 || pc == 0) return;
    if (g_unwinder.get_name(&cursor, name, sizeof name, &offset) != 0) offset = 0;
    say_frame(i, pc, name, offset);
    if (g_unwinder.step(&cursor) <= 0) return;
  }
}

}  // namespace

void prepare_fault_report() {
  std::uint32_t untried = 0;
  if (!process().settings.fault_report || !g_unwinder_state.compare_exchange(untried, 1)) return;
  const ErrnoSaver keep;
  void* library = ::dlopen("libunwind.so.8", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return;
  const bool all = find(library, MPKLINK_NAME(unw_init_local2), &g_unwinder.init) && find(library, MPKLINK_NAME(unw_step), &g_unwinder.step) &&
                   find(library, MPKLINK_NAME(unw_get_reg), &g_unwinder.get_reg) &&
                   find(library, MPKLINK_NAME(unw_get_proc_name), &g_unwinder.get_name);
  if (all) g_unwinder_state.store_release(2);  // SYNC: unwinder
}

bool report_fault(const siginfo_t& info, const ucontext_t& context) {
  const Guard& guard = process().guard;
  if (info.si_signo != SIGSEGV || info.si_code <= 0 || guard.mode() == GuardMode::kOff || !guard.range().touches(info.si_addr, 1)) return false;
  if (!process().settings.fault_report || g_reported.exchange(1) != 0) return true;
  char thread[17] = "";
  ::prctl(PR_GET_NAME, thread, 0, 0, 0);
  const auto address = reinterpret_cast<std::uintptr_t>(info.si_addr);
  log_always(LogLevel::kError, FMT_COMPILE("thread {} ({}) tried to {} guarded memory at {}; guard: {}"), thread_id(), static_cast<const char*>(thread),
             context.uc_mcontext.gregs[REG_ERR] & kWriteAccess ? "write to" : "read", Hex(address).text(), guard_mode_name(guard.mode()));
  {
    LogLine line(LogLevel::kError);
    line.add(FMT_COMPILE("  that is "));
    say_place(&line, address);
    line.write();
  }
  say_stack(context);
  log_always(LogLevel::kError, FMT_COMPILE("  the access did not happen; the signal takes its course (MPKLINK_FAULT_REPORT=0: without this report)"));
  return true;
}

}  // namespace mpklink
