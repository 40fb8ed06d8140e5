// SPDX-License-Identifier: MIT
#include "preload/status.h"

#include <netinet/in.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <initializer_list>

#include "preload/eligibility.h"
#include "preload/pollers.h"
#include "preload/probes.h"
#include "preload/rendezvous.h"
#include "preload/revoke.h"
#include "shm/segment.h"
#include "shm/user_copy.h"

namespace mpklink {

StatusRow g_no_row;
StatusRow g_inherited_row;

namespace {

constexpr std::uint32_t kFailuresMax = 16;  // a process without descriptors or memory is not asked for ever

Atomic<StatusHeader*> g_page;
Atomic<std::uint32_t> g_page_fd;   // + 1
Atomic<std::uint32_t> g_failures;
SpinLock g_making;
void* g_place;                     // in a forked child: where the parent's page was, and its own comes

StatusRow* rows_of(StatusHeader* page) { return reinterpret_cast<StatusRow*>(page + 1); }

// What tools read is the page's; where it is not there, or another process's, it goes nowhere.
StatusRow* row_of(const Stream* s) {
  return own_memory().mine.load_relaxed() != 0 ? s->row.load_relaxed() : &g_no_row;  // relaxed: see row_now
}

RowMode mode_of(State state) {
  switch (state) {
    case State::kCandidate: return RowMode::kCandidate;
    case State::kSettling: case State::kClaimed: case State::kOffered: return RowMode::kUpgrading;
    case State::kShared: return RowMode::kShared;
    case State::kPlain: return RowMode::kPlain;
    case State::kFree: case State::kFresh: break;
  }
  return RowMode::kFree;
}

// Counters that others keep, too.
void copy_counters(StatusHeader* page) {
  page->counters.gates.store_relaxed(process().guard.gates());  // relaxed: a statistic, as is the next
  page->counters.gate_found_open.store_relaxed(process().guard.found_open());
}

void write_guard(StatusHeader* page) {
  constexpr std::uint32_t kDecided = 2;
  const std::uint32_t decided = process().guard_state.load_acquire();  // SYNC: guard decided
  if (decided == 0) return;
  const char* const why = process().guard_why;
  if (why != nullptr) strncpy(page->guard_why, why, sizeof page->guard_why - 1);
  page->guard.store_release(decided == kDecided ? 1 + static_cast<std::uint32_t>(process().guard.mode()) : 4);
}
static_assert(static_cast<int>(GuardMode::kOff) == 0 && static_cast<int>(GuardMode::kPkey) == 1 && static_cast<int>(GuardMode::kMprotect) == 2);

void write_header(StatusHeader* page) {
  page->version = kStatusVersion;
  page->header_bytes = sizeof(StatusHeader);
  page->row_bytes = sizeof(StatusRow);
  page->rows = kStatusRows;
  page->pid.store_relaxed(process().pid.load_relaxed());  // relaxed: whoever finds the magic finds all, as are the next
  page->layout_version.store_relaxed(layout_version());
  static_assert(sizeof MPKLINK_VERSION <= sizeof page->library_version);
  memcpy(page->library_version, MPKLINK_VERSION, sizeof MPKLINK_VERSION);
  page->started_ns.store_relaxed(now_ns());
  const Counters& counters = process().counters;
  page->counters.upgraded.store_relaxed(counters.upgraded.load_relaxed());
  for (unsigned i = 0; i < static_cast<unsigned>(Reason::kCount); ++i) page->counters.plain[i].store_relaxed(counters.plain[i].load_relaxed());
  write_guard(page);
  copy_counters(page);
  thread_fence_seq_cst();
  page->magic = kStatusMagic;
}

StatusHeader* map_page(int* hidden) {
  const SystemCalls& sys = real().sys;
  const int fd = make_segment(sys, kStatusName, kStatusBytes, Backing::kMemfd);
  if (fd < 0) return nullptr;
  *hidden = hide_fd(fd);
  if (*hidden < 0) return nullptr;
  void* const at = sys.mmap(g_place, kStatusBytes, PROT_READ | PROT_WRITE, MAP_SHARED | (g_place != nullptr ? MAP_FIXED : 0), *hidden, 0);
  if (at != MAP_FAILED) return static_cast<StatusHeader*>(at);
  close_hidden(*hidden);
  return nullptr;
}

// The program may need each of them.
bool few_descriptors() {
  constexpr rlim_t kFew = 64;
  rlimit limit = {};
  return getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur < kFew;
}

bool make_page() {
  notice_fork();  // or the page is the parent's
  if (g_page.load_acquire() != nullptr) return true;  // SYNC: status page
  if (process().settings.disabled || g_failures.load_relaxed() >= kFailuresMax) return false;  // relaxed: a hint
  if (in_foreign_child() || g_making.held_by_this_thread()) return false;
  const ErrnoSaver keep;
  const LockGuard one(g_making);
  if (g_page.load_acquire() != nullptr) return true;
  int fd = -1;
  StatusHeader* const page = few_descriptors() ? nullptr : map_page(&fd);
  if (page == nullptr) return g_failures.fetch_add(1), false;
  write_header(page);
  g_page_fd.store_relaxed(static_cast<std::uint32_t>(fd) + 1);  // relaxed: published by the next
  g_page.store_release(page);                                   // SYNC: status page, as are the next
  own_memory().shown.store_release(&page->counters);
  own_memory().wanted.store_release(&page->requests.wanted);
  return true;
}

std::uint16_t port_of(const sockaddr_storage& from) {
  return ntohs(from.ss_family == AF_INET ? reinterpret_cast<const sockaddr_in&>(from).sin_port : reinterpret_cast<const sockaddr_in6&>(from).sin6_port);
}

void write_address(const sockaddr_storage& from, Atomic<std::uint64_t> (&address)[2]) {
  in6_addr bytes = reinterpret_cast<const sockaddr_in6&>(from).sin6_addr;
  if (from.ss_family == AF_INET) {
    bytes = {};
    bytes.s6_addr[10] = bytes.s6_addr[11] = 0xff;
    memcpy(&bytes.s6_addr[12], &reinterpret_cast<const sockaddr_in&>(from).sin_addr, 4);
  }
  std::uint64_t words[2];
  memcpy(words, &bytes, sizeof words);
  address[0].store_relaxed(words[0]);  // relaxed: within the row's sequence
  address[1].store_relaxed(words[1]);
}

// The row is between two even numbers of its sequence.
class RowChange {
 public:
  explicit RowChange(StatusRow* row) : row_(row) { row_->sequence.fetch_add(1); }
  ~RowChange() { row_->sequence.fetch_add(1); }
  RowChange(const RowChange&) = delete;
  RowChange& operator=(const RowChange&) = delete;

 private:
  StatusRow* row_;
};

void note_row_used(StatusHeader* page, std::uint32_t index) {
  std::uint32_t used = page->rows_used.load_relaxed();  // relaxed: the exchange decides
  for (int i = 0; i < 64 && used <= index && !page->rows_used.compare_exchange(used, index + 1); ++i) {
  }
}

}  // namespace

StatusHeader* shown_page() { return g_page.load_acquire(); }  // SYNC: status page

void show_process() { make_page(); }

void show_guard() {
  if (StatusHeader* page = shown_page()) write_guard(page);
}

void show_stream(int fd, Stream* s, const Addresses& addresses) {
  StatusRow* before = s->row.load_relaxed();  // relaxed: the exchange decides
  const bool inherited = before == &g_inherited_row;
  if ((before != &g_no_row && !inherited) || !make_page()) return;
  StatusHeader* const page = shown_page();
  const bool known = s->ports != 0;
  const std::uint32_t ports = std::uint32_t{port_of(addresses.local)} << 16 | port_of(addresses.peer);
  s->ports = ports;
  if (s->index >= kStatusRows) {
    if (!known) page->rows_missing.fetch_add(1);
    return;
  }
  StatusRow* const row = rows_of(page) + s->index;
  const RowChange change(row);
  write_address(addresses.local, row->local_address);
  write_address(addresses.peer, row->peer_address);
  row->ports.store_relaxed(ports);  // relaxed: within the row's sequence, as are the next
  row->connector.store_relaxed(s->connector ? 1 : 0);
  row->fd.store_relaxed(static_cast<std::uint32_t>(fd));
  row->since_ns.store_relaxed(now_ns());
  for (auto* word : {&row->reason, &row->upgrades, &row->revokes}) word->store_relaxed(0);
  const std::uint64_t sent = inherited ? 0 : s->tcp_sent.load_relaxed(), received = inherited ? 0 : s->tcp_received.load_relaxed();
  for (auto* word : {&row->tx_bytes, &row->tcp_tx_bytes}) word->store_relaxed(sent);
  for (auto* word : {&row->rx_bytes, &row->tcp_rx_bytes}) word->store_relaxed(received);
  for (auto* word : {&row->tx_calls, &row->rx_calls}) word->store_relaxed(0);
  if (!s->row.compare_exchange(before, row)) return;  // another thread's first operation, which has shown it
  note_row_used(page, s->index);
  show_state(s);
}

void show_inherited(int fd, Stream* s) {
  if (s->row.load_relaxed() != &g_inherited_row) return;  // relaxed: the exchange decides
  const ErrnoSaver keep;
  Addresses addresses;
  if (addresses_of(fd, &addresses)) show_stream(fd, s, addresses);
}

void show_if_loopback(int fd, Stream* s, const sockaddr* peer, socklen_t size) {
  const ErrnoSaver keep;
  sockaddr_storage copy = {};
  if (user_copy(&copy, peer, size < sizeof(sockaddr_in6) ? size : sizeof(sockaddr_in6)) != 0) return;  // another thread unmaps it
  Addresses addresses;
  Reason reason = Reason::kNotLocal;
  // Of one that is not connected yet the kernel does not say: it is shown when it is used.
  if (!may_be_loopback(copy) || !addresses_of(fd, &addresses)) return;
  if (eligible(s, addresses, &reason) || reason != Reason::kNotLocal) show_stream(fd, s, addresses);
}

void hide_stream(Stream* s) {
  StatusRow* const row = row_of(s);
  s->row.store_relaxed(&g_no_row);  // relaxed: nobody else has the stream
  StatusHeader* const page = shown_page();
  if (row == &g_no_row || row == &g_inherited_row || page == nullptr) return;
  const std::uint64_t tcp_sent = row->tcp_tx_bytes.load_relaxed(), tcp_received = row->tcp_rx_bytes.load_relaxed();  // relaxed: statistics
  const std::uint64_t sent = row->tx_bytes.load_relaxed(), received = row->rx_bytes.load_relaxed();
  const struct {
    Atomic<std::uint64_t>* total;
    std::uint64_t bytes;
  } totals[] = {{&page->counters.tcp_tx, tcp_sent},
                {&page->counters.tcp_rx, tcp_received},
                {&page->counters.ring_tx, sent > tcp_sent ? sent - tcp_sent : 0},
                {&page->counters.ring_rx, received > tcp_received ? received - tcp_received : 0}};
  for (const auto& t : totals) t.total->fetch_add(t.bytes);
  const RowChange change(row);
  row->mode.store_relaxed(static_cast<std::uint32_t>(RowMode::kFree));  // relaxed: within the row's sequence
  copy_counters(page);
}

// Without a lock: of two threads that see the state change, the later one writes what the state is by then.
void show_state(Stream* s) {
  StatusRow* const row = row_of(s);
  row->reason.store_relaxed(s->why);  // relaxed: a statistic
  RowMode shown = RowMode::kFree;
  do {
    shown = mode_of(state_of(s));
    row->mode.exchange(static_cast<std::uint32_t>(shown));  // exchange: before the next look at the state
  } while (shown != mode_of(state_of(s)));
  StatusHeader* const page = shown_page();
  if (row != &g_no_row && page != nullptr) copy_counters(page);
}

void show_upgrade(Stream* s) {
  StatusRow* const row = row_of(s);
  row->upgrades.fetch_add(1);
  show_state(s);
  PROBE2(upgrade, s->last_fd.load_relaxed(), s->index);  // relaxed: a hint
}

void show_revoke(Stream* s) {
  row_of(s)->revokes.fetch_add(1);
  const std::uint32_t why = s->why;
  PROBE2(revoke, s->last_fd.load_relaxed(), why == 0 ? "peer" : reason_text(why - 1).slug);  // relaxed: a hint
}

void show_other_fd(int closed, Stream* s) {
  StatusRow* const row = row_of(s);
  if (row->fd.load_relaxed() != static_cast<std::uint32_t>(closed)) return;  // relaxed: a statistic
  row->fd.store_relaxed(static_cast<std::uint32_t>(fd_of(s)));
}

namespace {

bool port_is_off(const Requests& requests, std::uint32_t port) {
  return (requests.off_ports[port / 64].load_relaxed() >> (port % 64) & 1) != 0;  // relaxed: a wish
}

}  // namespace

__attribute__((cold)) void attend(int fd, Stream* s) {
  notice_fork();
  const StatusHeader* const page = shown_page();
  if (page == nullptr) return;
  const Requests& requests = page->requests;
  const std::uint32_t wanted = requests.wanted.load_relaxed();  // relaxed: a wish
  const std::uint32_t ports = s->ports;
  if (!(wanted & kRequestOff)) return;
  if ((wanted & kRequestOffPorts) && !port_is_off(requests, ports >> 16) && !port_is_off(requests, ports & 0xffff)) return;
  if (!in_foreign_child()) switch_off(fd, s);
}

void status_move_hidden(int from, int to) {
  auto expected = static_cast<std::uint32_t>(from) + 1;
  g_page_fd.compare_exchange(expected, static_cast<std::uint32_t>(to) + 1);
}

// The parent's page is the parent's. One thread here.
void status_forked_child() {
  for_each_stream([](Stream* s) {
    StatusRow* const row = s->row.load_relaxed();  // relaxed: one thread here, as are the next
    s->row.store_relaxed(row == &g_no_row ? &g_no_row : &g_inherited_row);
  });
  StatusHeader* const page = g_page.exchange(nullptr);
  g_failures.store_relaxed(0);
  g_making.reset();
  close_hidden(static_cast<int>(g_page_fd.exchange(0)) - 1);
  if (page == nullptr) return;
  void* const at = ::mmap(page, kStatusBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (at != MAP_FAILED) {
    g_place = at;
  } else {
    ::munmap(page, kStatusBytes);
  }
}

}  // namespace mpklink
