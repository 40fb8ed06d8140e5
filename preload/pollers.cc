// SPDX-License-Identifier: MIT
#include "preload/pollers.h"

#include <errno.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "preload/epoll_set.h"
#include "preload/fd_table.h"
#include "preload/pair.h"
#include "preload/process.h"
#include "preload/sleepers.h"
#include "preload/status.h"
#include "preload/tap.h"
#include "shm/raw_syscall.h"

namespace mpklink {
namespace {

constexpr int kHiddenBaseMax = 4096;  // higher would grow the kernel's descriptor table for nothing

Atomic<std::uint64_t> g_taken[kPollers / 64];
Atomic<std::uint32_t> g_bells[kPollers];  // fd + 1

int hidden_base() {
  struct rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return kHiddenBaseMax;
  const rlim_t base = limit.rlim_cur / 4 * 3;
  return base < kHiddenBaseMax ? static_cast<int>(base) : kHiddenBaseMax;
}

}  // namespace

std::uint32_t take_poller(bool epoll_set) {
  const std::uint32_t first = epoll_set ? 0 : kBitmapPollers / 64;
  const std::uint32_t last = epoll_set ? kBitmapPollers / 64 : kPollers / 64;
  for (std::uint32_t w = first; w < last; ++w) {
    std::uint64_t taken = g_taken[w].load_relaxed();  // relaxed: the fetch_or decides
    while (taken != ~std::uint64_t{0}) {
      const std::uint64_t bit = std::uint64_t{1} << __builtin_ctzll(~taken);
      taken = g_taken[w].fetch_or(bit);
      if (!(taken & bit)) return w * 64 + static_cast<std::uint32_t>(__builtin_ctzll(bit));
    }
  }
  return kNoPoller;
}

void give_poller(std::uint32_t id) { g_taken[id / 64].fetch_and(~(std::uint64_t{1} << (id % 64))); }

int bell_of(std::uint32_t id) {
  const std::uint32_t known = g_bells[id].load_acquire();  // SYNC: bell made
  if (known != 0) return static_cast<int>(known) - 1;
  const ErrnoSaver keep;
  const int fd = real().eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  const int hidden = fd < 0 ? -1 : hide_fd(fd);
  if (hidden >= 0) g_bells[id].store_release(static_cast<std::uint32_t>(hidden) + 1);  // SYNC: bell made
  return hidden;
}

int hide_fd(int fd) {
  const int high = real().fcntl(fd, F_DUPFD_CLOEXEC, hidden_base());
  quiet().close(fd);
  if (high < 0) return -1;
  if (!fd_table().set_hidden(high)) {
    quiet().close(high);
    return -1;
  }
  return high;
}

int dup_hidden(int fd) {
  const ErrnoSaver keep;
  const int copy = real().fcntl(fd, F_DUPFD_CLOEXEC, hidden_base());
  if (copy >= 0) fd_table().set_hidden(copy);
  return copy;
}

void close_hidden(int fd) {
  if (fd < 0) return;
  const ErrnoSaver keep;
  fd_table().clear(fd);
  quiet().close(fd);
}

void make_way(int fd) {
  const ErrnoSaver keep;
  if (tap_leave_number(fd)) return fd_table().clear(fd);
  const int moved = real().fcntl(fd, F_DUPFD_CLOEXEC, fd + 1);
  if (moved < 0) return;  // the program's call will take the descriptor; its wake-ups are then slow, not lost
  fd_table().set_hidden(moved);
  const std::uint32_t from = static_cast<std::uint32_t>(fd) + 1;
  const std::uint32_t to = static_cast<std::uint32_t>(moved) + 1;
  for (auto& bell : g_bells) {
    std::uint32_t expected = from;
    bell.compare_exchange(expected, to);
  }
  if (Stream* s = fd_table().stream(fd)) move_stand_in(s, fd, moved);
  epoll_sets_move_hidden(fd, moved);
  status_move_hidden(fd, moved);
  for (std::uint32_t i = 0; i < kPairsMax; ++i) {
    Pair* pair = pair_at(i);
    if (pair == nullptr || !pair->used) continue;
    if (pair->control_fd == fd) pair->control_fd = moved;
    for (auto& bell : pair->peer_bell) {
      std::uint32_t expected = from;
      bell.compare_exchange(expected, to);
    }
  }
  for_each_stream([&](Stream* s) {
    if (s->rendezvous_fd == fd) s->rendezvous_fd = moved;
  });
  fd_table().clear(fd);
}

void drain_bell(std::uint32_t id) {
  // Not read(2): the peer shares the description and may have cleared O_NONBLOCK, and emptied it before us.
  std::uint64_t count = 0;
  const iovec part = {&count, sizeof count};
  const int bell = bell_of(id);
  const long result = raw_syscall(SYS_preadv2, bell, reinterpret_cast<long>(&part), 1, -1, -1, RWF_NOWAIT);
  if (result == -EOPNOTSUPP || result == -ENOSYS) {
    const ErrnoSaver keep;
    if (quiet().read(bell, &count, sizeof count) < 0) return;  // an older kernel
  }
}

// The parent's bells are the parent's: two processes asleep on one eventfd would take each other's wake-ups.
void pollers_forked_child() {
  for (auto& word : g_taken) word.store_relaxed(0);
  for (auto& bell : g_bells) {
    const std::uint32_t known = bell.exchange(0);
    if (known != 0) close_hidden(static_cast<int>(known) - 1);
  }
}

}  // namespace mpklink
