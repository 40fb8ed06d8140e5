// SPDX-License-Identifier: MIT
#include "preload/tap.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>

#include "preload/fd_table.h"
#include "preload/identity.h"
#include "preload/log.h"
#include "preload/pollers.h"
#include "preload/transfer_step.h"
#include "shm/raw_syscall.h"

namespace mpklink {
namespace {

// One connected socket for the process. Whoever uses its number counts itself; it is closed by the last of them, so that nobody
// sends into another file that got the number.
Atomic<std::uint32_t> g_socket;  // fd + 1
Atomic<std::uint32_t> g_users;
Atomic<std::uint32_t> g_doomed;  // fd + 1, to be closed when there are no users

class SocketUse {
 public:
  SocketUse() { g_users.fetch_add(1); }  // SYNC: tap users, before the look at the number
  ~SocketUse() {
    if (g_users.fetch_add(~std::uint32_t{0}) == 1) close_hidden(static_cast<int>(g_doomed.exchange(0)) - 1);
  }
  SocketUse(const SocketUse&) = delete;
  SocketUse& operator=(const SocketUse&) = delete;

  int fd() const { return static_cast<int>(g_socket.load_acquire()) - 1; }
  void doom(int fd) {
    std::uint32_t number = static_cast<std::uint32_t>(fd) + 1;
    if (g_socket.compare_exchange(number, 0)) g_doomed.exchange(static_cast<std::uint32_t>(fd) + 1);
  }
};

void withdraw_request() {
  StatusHeader* const page = shown_page();
  if (page == nullptr) return;
  std::uint32_t seen = page->requests.wanted.load_relaxed();  // relaxed: the exchange decides
  page->requests.wanted.compare_exchange(seen, seen & ~std::uint32_t{kRequestTap});
}

// The name as it stands there, whoever wrote it. False: it cannot be one.
bool tap_address(sockaddr_un* address, socklen_t* size) {
  const StatusHeader* const page = shown_page();
  if (page == nullptr) return false;
  const std::uint32_t length = page->requests.tap_length.load_relaxed();  // relaxed: behind `wanted`, or the next operation gets it right
  std::uint64_t words[8];
  static_assert(sizeof words == sizeof page->requests.tap_name && sizeof words < sizeof address->sun_path);
  if (length == 0 || length > sizeof words) return false;
  for (unsigned i = 0; i < 8; ++i) words[i] = page->requests.tap_name[i].load_relaxed();
  *address = {};
  address->sun_family = AF_UNIX;
  memcpy(address->sun_path + 1, words, length);
  *size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
  return true;
}

bool is_ours(int socket) {
  ucred creds = {};
  socklen_t size = sizeof creds;
  if (real().getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &creds, &size) != 0) return false;
  return creds.uid == 0 || (creds.uid == ::geteuid() && uid_is_somebody(creds.uid));
}

// The connected socket, or -1: with nobody there the request is withdrawn.
int connect_tap() {
  if (g_doomed.load_acquire() != 0) return -1;
  sockaddr_un address;
  socklen_t size = 0;
  if (!tap_address(&address, &size)) return withdraw_request(), -1;
  int fd = real().socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  fd = fd < 0 ? -1 : hide_fd(fd);
  if (fd < 0) return -1;
  const int room = 1 << 20;  // as much of it as the system allows
  real().setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
  const bool connected = quiet().connect(fd, reinterpret_cast<const sockaddr*>(&address), size) == 0;
  if (!connected || !is_ours(fd)) {
    if (connected) log(LogLevel::kWarn, FMT_COMPILE("a tap that another user listens to is refused"));
    if (connected || errno != EAGAIN) withdraw_request();
    close_hidden(fd);
    return -1;
  }
  std::uint32_t none = 0;
  if (g_socket.compare_exchange(none, static_cast<std::uint32_t>(fd) + 1)) return fd;
  close_hidden(fd);
  return static_cast<int>(none) - 1;
}

bool nobody_there(int error) { return error == EPIPE || error == ECONNREFUSED || error == ENOTCONN || error == ECONNRESET; }

// Header and window as one message. False: lost.
bool send_record(SocketUse* use, const TapRecord& record, const Window& window) {
  iovec parts[1 + kPartsMax];
  parts[0] = {const_cast<TapRecord*>(&record), sizeof record};
  memcpy(parts + 1, window.parts, sizeof(iovec) * static_cast<std::size_t>(window.count));
  msghdr message = {};
  message.msg_iov = parts;
  message.msg_iovlen = 1 + static_cast<std::size_t>(window.count);
  // Twice: the socket may be that of a tool that is gone, and the request the next one's.
  for (int tries = 0; tries < 2; ++tries) {
    int fd = use->fd();
    if (fd < 0) fd = connect_tap();
    if (fd < 0) return false;
    if (quiet().sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return true;
    if (!nobody_there(errno)) return false;
    use->doom(fd);
    // Alone with it: closed now, for the next try.
    if (g_users.load_acquire() == 1) close_hidden(static_cast<int>(g_doomed.exchange(0)) - 1);
  }
  return false;
}

void fill(TapRecord* r, const StatusRow& row, const Stream* s, bool outgoing) {
  *r = {};
  r->magic = kTapMagic;
  timespec now = {};
  clock_gettime(CLOCK_REALTIME, &now);
  r->time_ns = static_cast<std::uint64_t>(now.tv_sec) * 1000000000u + static_cast<std::uint64_t>(now.tv_nsec);
  r->pid = process().pid.load_relaxed();  // relaxed: changes by fork only
  r->row = s->index;
  r->outgoing = outgoing ? 1 : 0;
  const std::uint64_t local[2] = {row.local_address[0].load_relaxed(), row.local_address[1].load_relaxed()};  // relaxed: for the tool to read
  const std::uint64_t peer[2] = {row.peer_address[0].load_relaxed(), row.peer_address[1].load_relaxed()};
  memcpy(r->local, local, sizeof local);
  memcpy(r->peer, peer, sizeof peer);
  const std::uint32_t ports = s->ports;
  r->local_port = static_cast<std::uint16_t>(ports >> 16);
  r->peer_port = static_cast<std::uint16_t>(ports);
  r->connector = s->connector ? 1 : 0;
  r->shared = state_of(s) == State::kShared ? 1 : 0;
}

// One operation on its way to the tool.
class Tap {
 public:
  Tap(Stream* s, bool outgoing) {
    StatusRow* const row = s->row.load_relaxed();  // relaxed: this process's, or one of two that are nobody's
    const StatusHeader* const page = shown_page();
    if (row == &g_no_row || row == &g_inherited_row || page == nullptr || in_foreign_child()) return;
    const std::uint64_t port = page->requests.tap_port.load_relaxed();  // relaxed: a wish
    const std::uint32_t ports = s->ports;
    if (port != 0 && port != ports >> 16 && port != (ports & 0xffff)) return;
    on_ = true;
    fill(&record_, *row, s, outgoing);
    record_.offset = (outgoing ? row->tx_bytes : row->rx_bytes).load_relaxed();  // relaxed: as of the operation that is over
  }
  bool on() const { return on_; }

  // What begins at record().offset; moves on behind it.
  void send(TapKind kind, const Window& window, std::size_t length) {
    record_.kind = kind;
    record_.length = static_cast<std::uint32_t>(length);
    record_.dropped = process().counters.tap_dropped.load_relaxed();  // relaxed: a statistic
    if (tap_wanted() && send_record(&use_, record_, window)) {
      process().counters.tap_records.fetch_add(1);
    } else {
      process().counters.tap_dropped.fetch_add(1);
    }
    record_.offset += length;
  }
  void send_all(const iovec* parts, int count, std::size_t n) {
    record_.offset -= n;
    Parts memory;
    Window window;
    bool good = memory.read(parts, count) == 0;
    for (std::size_t done = 0; done < n;) {
      const std::size_t rest = n - done < kTapPayload ? n - done : kTapPayload;
      std::size_t length = 0;
      good = good && memory.window(done, rest, &window);
      for (int i = 0; good && i < window.count; ++i) length += window.parts[i].iov_len;
      // Or longer: memory of the call that another thread has changed.
      if (!good || length == 0 || length > rest) return process().counters.tap_dropped.fetch_add(1);
      send(TapKind::kData, window, length);
      done += length;
    }
  }
  TapRecord* record() { return &record_; }

 private:
  const ErrnoSaver keep_;
  const Undisturbed undisturbed_;  // a handler that jumps out of here would keep the socket in use for ever
  SocketUse use_;
  TapRecord record_;
  bool on_ = false;
};

}  // namespace

__attribute__((cold)) void tap_received(Stream* s, const iovec* parts, int count, ssize_t n, int flags) {
  if (!tap_wanted()) return;
  if (n < 0 && errno == ECONNRESET) return tap_end(s, false, TapKind::kReset);
  if (n < 0 || (flags & MSG_PEEK)) return;
  std::size_t asked = 0;
  if (n == 0) {
    const ErrnoSaver keep;
    if (check_parts(parts, count, &asked) == 0 && asked > 0) tap_end(s, false, TapKind::kEnd);
    return;
  }
  Tap tap(s, false);
  if (!tap.on()) return;
  if (flags & MSG_TRUNC) return process().counters.tap_dropped.fetch_add(1);  // thrown away: the program has not got them
  tap.send_all(parts, count, static_cast<std::size_t>(n));
}

__attribute__((cold)) void tap_sent(Stream* s, const iovec* parts, int count, ssize_t n) {
  if (!tap_wanted()) return;
  if (n < 0 && errno == ECONNRESET) return tap_end(s, true, TapKind::kReset);
  if (n <= 0) return;
  Tap tap(s, true);
  if (tap.on()) tap.send_all(parts, count, static_cast<std::size_t>(n));
}

__attribute__((cold)) void tap_sent_file(Stream* s, int file, off64_t end, ssize_t n) {
  Tap tap(s, true);
  if (n <= 0 || !tap.on()) return;
  tap.record()->offset -= static_cast<std::uint64_t>(n);
  char buffer[4096];
  Window window;
  window.parts = window.copy;
  window.count = 1;
  for (off64_t at = end - n; at < end;) {
    const std::size_t want = end - at < static_cast<off64_t>(sizeof buffer) ? static_cast<std::size_t>(end - at) : sizeof buffer;
    const long got = raw_syscall(SYS_pread64, file, reinterpret_cast<long>(buffer), static_cast<long>(want), at);
    if (got <= 0) return process().counters.tap_dropped.fetch_add(1);
    window.copy[0] = {buffer, static_cast<std::size_t>(got)};
    tap.send(TapKind::kData, window, static_cast<std::size_t>(got));
    at += got;
  }
}

__attribute__((cold)) void tap_end(Stream* s, bool outgoing, TapKind kind) {
  if (!tap_wanted()) return;
  const std::uint32_t bit = kind == TapKind::kReset ? 4 : outgoing ? 2 : 1;
  if (s->told_to_tap.load_relaxed() & bit) return;  // relaxed: told twice at worst
  Tap tap(s, outgoing);
  if (!tap.on()) return;
  s->told_to_tap.fetch_or(bit);
  Window nothing;
  nothing.parts = nothing.copy;
  nothing.count = 0;
  tap.send(kind, nothing, 0);
}

bool tap_leave_number(int fd) {
  constexpr int kYields = 100000;
  std::uint32_t number = static_cast<std::uint32_t>(fd) + 1;
  const bool in_use = g_socket.compare_exchange(number, 0);
  number = static_cast<std::uint32_t>(fd) + 1;
  // Or whoever is the last to use a doomed one closed the program's file.
  if (!in_use && !g_doomed.compare_exchange(number, 0)) return false;
  for (int i = 0; g_users.load_acquire() != 0 && i < kYields; ++i) sched_yield();  // they never wait, but for memory
  return true;
}

void tap_forked_child() {
  for (auto* number : {&g_socket, &g_doomed}) close_hidden(static_cast<int>(number->exchange(0)) - 1);
  g_users.store_relaxed(0);  // relaxed: one thread here
}

}  // namespace mpklink
